"""Many mixes in one batch answer, and are scored, as each of them does alone with folded weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from t2cli.config import SamplingConfig
from t2cli.dispatch.examples import FewShot
from t2cli.dispatch.mixer import Mixer
from t2cli.dispatch.population import LOST, Exam, Judged
from t2cli.errors import IncompatibleBaseError, UsageError
from t2cli.models.adapted import AdaptedModel
from t2cli.models.generate import generate
from t2cli.svf.zvector import ZVectors, mix

TOKENS = 8
QUESTIONS = ["what is the sum of two numbers", "who?", "numbers", "is the sum of the two numbers a number " * 3, "1 2"]


def asked(question: str, answer: str, reward: str = "exact") -> FewShot:
    return FewShot([{"role": "user", "content": question}], answer, reward, 1)


def alone(adapted: AdaptedModel, z: ZVectors, examples: Sequence[FewShot]) -> Judged:
    """Return how one folded mix answers: one question after the other, without batch, cache or packing."""
    right, logp, tokens = [], 0.0, 0
    with adapted.use_z(z):
        for example in examples:
            prompt = adapted.base.encode(example.messages)
            answer = list(adapted.base.tokenizer(example.answer, add_special_tokens=False)["input_ids"])
            done = generate(adapted, [prompt], SamplingConfig(TOKENS))[0]
            right.append(done.ended and example.is_right(adapted.base.decode(list(done.ids))))
            with torch.no_grad():
                logits = adapted.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
            logp += sum(float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(answer))
            tokens += len(answer)
    return Judged(tuple(right), logp / tokens)


def right_for(adapted: AdaptedModel, z: ZVectors) -> list[FewShot]:
    """Return questions of which about half are right under `z`: it was asked itself. Any end counts as one."""
    examples = []
    with adapted.use_z(z):
        for number, question in enumerate(QUESTIONS):
            prompt = adapted.base.encode([{"role": "user", "content": question}])
            said = adapted.base.decode(list(generate(adapted, [prompt], SamplingConfig(TOKENS))[0].ids)).strip()
            examples.append(asked(question, "something else" if number % 2 or not said else said))
    return examples


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("variant", ["llama", "qwen3", "mistral", "gemma2", "gpt2", "gpt-neox", "falcon", "mixtral"])
def test_a_population_scores_as_each_mix_alone(
    variant: str,
    folds: bool,
    adapt: Callable[..., AdaptedModel],
    random_z: Callable[..., ZVectors],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapted = adapt(variant, double=True)
    monkeypatch.setattr(adapted, "folding_pays", lambda *_: folds)
    object.__setattr__(adapted.base, "eos", adapted.base.eos | set(range(0, 300, 3)))  # answers end soon, all of them
    experts = [random_z(adapted.ranks, seed=seed) for seed in (1, 2)]
    examples = right_for(adapted, experts[0])
    mixer = Mixer(adapted, experts)
    alphas = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.5], [-0.3, 1.2], [0.0, 1.0]], dtype=torch.float64)
    found = Exam(adapted, examples, TOKENS).judge(mixer.z(alphas))
    wanted = [alone(adapted, mixer.vectors(row), examples) for row in alphas]
    assert [judged.right for judged in found] == [judged.right for judged in wanted]
    assert [judged.logp for judged in found] == pytest.approx([judged.logp for judged in wanted], rel=1e-6)
    assert any(found[1].right)
    assert not all(found[1].right)
    assert adapted.rows is None  # the base again


@pytest.mark.parametrize("folds", [False, True])
def test_a_mix_whose_numbers_overflow_loses_and_the_others_stay_as_they_are(
    folds: bool, adapted: AdaptedModel, random_z: Callable[..., ZVectors], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapted, "folding_pays", lambda *_: folds)
    expert = random_z(adapted.ranks)
    mixer = Mixer(adapted, [expert])
    examples = right_for(adapted, expert)
    sane = Exam(adapted, examples, TOKENS).judge(mixer.z(torch.tensor([[0.0], [1.0]])))
    mixed = Exam(adapted, examples, TOKENS).judge(mixer.z(torch.tensor([[0.0], [1e35], [1.0]])))
    assert mixed[1] == Judged((False,) * len(examples), LOST)
    for found, wanted in zip((mixed[0], mixed[2]), sane, strict=True):
        assert found.right == wanted.right
        assert found.logp == pytest.approx(wanted.logp, rel=1e-6)
    assert adapted.rows is None


@pytest.fixture
def adapted(adapt: Callable[..., AdaptedModel]) -> AdaptedModel:
    return adapt("llama", double=True)


@pytest.mark.parametrize("folds", [False, True])
def test_batches_do_not_change_the_scores(
    folds: bool, adapted: AdaptedModel, random_z: Callable[..., ZVectors], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapted, "folding_pays", lambda *_: folds)
    experts = [random_z(adapted.ranks, seed=seed) for seed in (1, 2)]
    mixer = Mixer(adapted, experts)
    z = mixer.z(torch.tensor([[1.0, 0.0], [0.2, 0.9], [0.7, -0.2]]))
    examples = [asked(f"{question} {n}", "the sum") for n in range(4) for question in QUESTIONS]  # more than PACKED
    whole = Exam(adapted, examples, 4).judge(z)
    small = Exam(adapted, examples, 4, batch_bytes=1)
    small.folded_at_once.size = 3
    single = small.judge(z)
    assert [judged.right for judged in whole] == [judged.right for judged in single]
    assert [judged.logp for judged in whole] == pytest.approx([judged.logp for judged in single], rel=1e-9)


def test_many_questions_are_read_folded_and_few_are_not(
    adapted: AdaptedModel, random_z: Callable[..., ZVectors], monkeypatch: pytest.MonkeyPatch
) -> None:
    z = Mixer(adapted, [random_z(adapted.ranks, seed=1)]).z(torch.tensor([[0.0], [0.5], [1.0]]))
    used: list[int | None] = []
    answers = Exam._answers
    monkeypatch.setattr(Exam, "_answers", lambda exam, *given: used.append(adapted.rows) or answers(exam, *given))
    Exam(adapted, [asked("who?", "x")], 2).judge(z)
    assert used == [3]
    for mixes in (z, z.flip(0)):  # the base may be the first or the last
        used.clear()
        Exam(adapted, [asked(f"{question} {n}", "x") for n in range(30) for question in QUESTIONS], 2).judge(mixes)
        assert used == [None] * (3 * 3)  # three mixes, each 150 questions in three parts


def test_one_alpha_per_expert_is_the_mix(adapted: AdaptedModel, random_z: Callable[..., ZVectors]) -> None:
    full = random_z(adapted.ranks, seed=1)
    part = ZVectors({name: z for name, z in random_z(adapted.ranks, seed=2).items() if ".mlp." in name})
    alphas = torch.tensor([0.7, -0.4], dtype=torch.float64)
    found, wanted = Mixer(adapted, [full, part]).vectors(alphas), mix([(0.7, full), (-0.4, part)])
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert set(Mixer(adapted, [part]).vectors(alphas[:1])) == set(part)


def test_one_alpha_per_matrix(adapted: AdaptedModel, random_z: Callable[..., ZVectors]) -> None:
    experts = [random_z(adapted.ranks, seed=seed) for seed in (1, 2)]
    mixer = Mixer(adapted, experts, per_layer=True)
    names = sorted(adapted.ranks)
    assert mixer.size == 2 * len(names)
    alphas = torch.randn(mixer.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = mixer.vectors(alphas)
    for place, name in enumerate(names):
        one = [(float(alphas[k * len(names) + place]), ZVectors({name: z[name]})) for k, z in enumerate(experts)]
        assert torch.equal(found[name], mix(one)[name])
    assert mixer.per_expert(alphas) == pytest.approx(
        [float(alphas[: len(names)].mean()), float(alphas[len(names) :].mean())]
    )
    same = alphas[:2].repeat_interleave(len(names))
    assert all(
        torch.equal(vector, Mixer(adapted, experts).vectors(alphas[:2])[name])
        for name, vector in mixer.vectors(same).items()
    )


def test_an_answer_that_does_not_end_is_wrong(adapted: AdaptedModel) -> None:
    prompt = adapted.base.encode([{"role": "user", "content": QUESTIONS[0]}])
    object.__setattr__(adapted.base, "eos", frozenset())
    with adapted.reference():
        said = generate(adapted, [prompt], SamplingConfig(4))[0]
    text = adapted.base.decode(list(said.ids))
    example = asked(QUESTIONS[0], text.strip() or "x")
    z = torch.ones(1, sum(adapted.ranks.values()))
    assert Exam(adapted, [example], 4).judge(z)[0].right == (False,)
    object.__setattr__(adapted.base, "eos", frozenset({said.ids[-1]}))
    assert Exam(adapted, [example], 4).judge(z)[0].right == (example.is_right(text),)


def test_answers_are_cut_by_the_longest_right_one_of_earlier_calls(
    adapted: AdaptedModel,
) -> None:
    z = torch.ones(1, sum(adapted.ranks.values()))
    prompt = adapted.base.encode([{"role": "user", "content": QUESTIONS[0]}])
    object.__setattr__(adapted.base, "eos", frozenset())
    with adapted.reference():
        said = generate(adapted, [prompt], SamplingConfig(40))[0].ids
    end = next(n for n in range(2, 30) if said[n] not in said[:n])  # the first answer ends there
    object.__setattr__(adapted.base, "eos", frozenset({said[end]}))
    examples = [asked(QUESTIONS[0], adapted.base.decode(list(said[: end + 1])).strip()), asked(QUESTIONS[1], "never")]
    exam = Exam(adapted, examples, 200)
    assert exam.limit == 200
    first = exam.judge(z)
    assert first[0].right[0]
    assert exam.longest_right == end + 1
    assert exam.limit == 2 * (end + 1) + 8
    read: list[int] = []
    hook = adapted.model.register_forward_pre_hook(lambda *_: read.append(1))
    assert exam.judge(z) == first  # what was right is right again
    hook.remove()
    assert len(read) <= exam.limit  # the packed row, and a step per token after the first


def test_a_question_without_room_for_an_answer_is_named(adapted: AdaptedModel) -> None:
    with pytest.raises(UsageError, match="line 1: the question has"):
        Exam(adapted, [asked("sum " * 600, "x")], 4)


def test_an_expert_of_other_shapes_is_refused(adapted: AdaptedModel) -> None:
    with pytest.raises(IncompatibleBaseError):
        Mixer(adapted, [ZVectors({"elsewhere": torch.ones(3)})])
