"""Questions answered together: each as it would be alone, whatever else is in the batch and whatever fails there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from t2cli.config import SamplingConfig
from t2cli.dispatch.batch import Question, _Row, answer_each, batches
from t2cli.dispatch.decision import Decision, Messages, Strategy
from t2cli.dispatch.two_pass import KEPT_MIXES, Answer, TwoPass
from t2cli.errors import CorruptArtifactError, T2Error, UsageError
from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import ExpertEntry

Put = Callable[..., ExpertEntry]

SAMPLING = SamplingConfig(max_new_tokens=8)
TEXTS = ("what", "the sum of two numbers", "Anna likes cats. Who likes cats?", "6 * 7", "a " * 40, "x")


def asked(text: str) -> Messages:
    return [{"role": "user", "content": text}]


@pytest.fixture
def strategies(two_pass: TwoPass, put: Put) -> list[Strategy]:
    """Return ways to choose: two experts, a mix, the base, and pass 1."""
    put("math", seed=1, examples=("What is 1 + 2?",))
    put("story", seed=2, examples=("Who likes cats?",))
    by_hand = [{"math": 1.0}, {"story": 1.0}, {"math": 0.5, "story": 0.25}]
    return [*map(two_pass.by_hand, by_hand), two_pass.strategy("none"), two_pass.strategy("prompt")]


def together(
    two_pass: TwoPass, questions: list[Question], sampling: SamplingConfig, size: int
) -> list[Answer | T2Error]:
    found = dict(answer_each(two_pass, questions, sampling, size))
    assert sorted(found) == list(range(len(questions)))
    return [found[place] for place in range(len(questions))]


@pytest.mark.parametrize("size", [1, 4, 32])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_what_each_is_alone(
    size: int, temperature: float, two_pass: TwoPass, adapted: AdaptedModel, strategies: list[Strategy]
) -> None:
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    sampling = replace(SAMPLING, temperature=temperature, seed=3)
    questions = [Question(asked(text), strategy) for text in TEXTS for strategy in strategies]
    for question, answer in zip(questions, together(two_pass, questions, sampling, size), strict=True):
        assert isinstance(answer, Answer)
        decision = question.strategy.decide(question.messages)
        alone = two_pass.answer(question.messages, decision, sampling)
        assert answer.text == alone.text
        assert (answer.prompt_tokens, answer.answer_tokens) == (alone.prompt_tokens, alone.answer_tokens)
        assert (answer.decision.weights, answer.decision.category) == (decision.weights, decision.category)
        assert 0 <= answer.first_token_seconds - answer.decision.seconds <= answer.answer_seconds
    for name, tensor in adapted.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_prompts_are_read_folded_where_that_pays(
    two_pass: TwoPass, adapted: AdaptedModel, strategies: list[Strategy], monkeypatch: pytest.MonkeyPatch
) -> None:
    math, story = (two_pass.z_of(strategy.decide([]).weights) for strategy in strategies[:2])
    used: list[int] = []
    use_z = adapted.use_z
    monkeypatch.setattr(adapted, "use_z", lambda z: used.append(id(z)) or use_z(z))
    questions = [Question(asked(text), strategy) for text in TEXTS[:3] for strategy in strategies[:4]]
    said = []
    for folded in ([], [id(math)], [id(math), id(story)]):
        used.clear()
        monkeypatch.setattr(adapted, "folding_pays", lambda z, _tokens, folded=folded: id(z) in folded)
        answers = together(two_pass, questions, SAMPLING, 32)
        said.append([answer.text for answer in answers if isinstance(answer, Answer)])
        assert used == folded
    assert said[0] == said[1] == said[2]
    assert len(said[0]) == len(questions)


def test_one_that_fails_leaves_the_others_their_answers(two_pass: TwoPass, adapted: AdaptedModel, put: Put) -> None:
    put("math", seed=1)
    broken = put("story", seed=2)
    good, wild = two_pass.by_hand({"math": 1.0}), two_pass.by_hand({"math": 1e30})
    gone = two_pass.by_hand({"story": 1.0})
    (broken.path / "z.safetensors").write_bytes(b"nothing")
    long = Question(asked("zq" * adapted.base.context), good)
    questions = [Question(asked("what"), strategy) for strategy in (good, gone, wild, good)]
    first, no_z, overflow, too_long, last = together(two_pass, [*questions[:3], long, questions[3]], SAMPLING, 8)
    assert isinstance(no_z, CorruptArtifactError)
    assert isinstance(overflow, T2Error)
    assert "not finite" in overflow.message
    assert isinstance(too_long, UsageError)
    assert "reads at most 512" in too_long.message
    wanted = two_pass.answer(asked("what"), good.decide([]), SAMPLING).text
    assert [answer.text for answer in (first, last) if isinstance(answer, Answer)] == [wanted] * 2


def test_a_chat_that_the_template_refuses_is_the_users_to_read(two_pass: TwoPass, adapted: AdaptedModel) -> None:
    import copy

    tokenizer = copy.deepcopy(adapted.base.tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no system texts here') }}"
    adapted.base = replace(adapted.base, tokenizer=tokenizer)
    (found,) = together(two_pass, [Question(asked("what"), two_pass.strategy("none"))], SAMPLING, 8)
    assert isinstance(found, UsageError)
    assert "no system texts here" in found.message


def test_each_answer_ends_where_its_own_context_does(two_pass: TwoPass, adapted: AdaptedModel) -> None:
    adapted.base = replace(adapted.base, eos=frozenset())
    base = two_pass.strategy("none")
    lengths = [len(adapted.base.encode(asked(text))) for text in ("what", "zq" * 20)]
    adapted.base = replace(adapted.base, context=lengths[1] + 3)
    questions = [Question(asked("what"), base), Question(asked("zq" * 20), base)]
    answers = together(two_pass, questions, replace(SAMPLING, max_new_tokens=10), 2)
    assert [answer.answer_tokens for answer in answers if isinstance(answer, Answer)] == [10, 3]


def test_nothing_asked_is_nothing_answered(two_pass: TwoPass) -> None:
    assert together(two_pass, [], SAMPLING, 4) == []


def test_full_batches_are_of_one_expert_and_the_rest_of_like_length(two_pass: TwoPass, put: Put) -> None:
    put("math", seed=1)
    put("story", seed=2)
    z = [None, two_pass.z_of({"math": 1.0}), two_pass.z_of({"story": 1.0})]
    decision = Decision("none")
    rows = [_Row(place, [0] * (1 + place * 7 % 23), 4, decision, z[place % 3]) for place in range(40)]
    made = [list(batch) for batch in batches(rows, 6)]
    assert sorted(row.place for batch in made for row in batch) == list(range(40))
    pure = [batch for batch in made if len({id(row.z) for row in batch}) == 1 and len(batch) == 6]
    assert len(pure) >= 6  # 13 or 14 rows of each
    left = [row for batch in made if batch not in pure for row in batch]
    assert [len(row.ids) for row in left] == sorted(len(row.ids) for row in left)


def test_a_stream_of_mixes_does_not_fill_the_memory(two_pass: TwoPass, put: Put) -> None:
    put("math", seed=1)
    for number in range(KEPT_MIXES + 10):
        two_pass.z_of({"math": number / 100})
    assert len(two_pass._mixes) == KEPT_MIXES
    assert two_pass.z_of({"math": 0.73}) is two_pass.z_of({"math": 0.73})
