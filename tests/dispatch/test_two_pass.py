"""Two passes: the expert that was chosen answers, exactly as it would alone, and the base is untouched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from t2cli.config import SamplingConfig
from t2cli.dispatch.categories import categories_of
from t2cli.dispatch.decision import Decision
from t2cli.dispatch.two_pass import TwoPass
from t2cli.errors import CorruptArtifactError, IncompatibleBaseError, NotFoundError, UsageError
from t2cli.models.adapted import AdaptedModel
from t2cli.models.generate import generate
from t2cli.registry.dispatcher_record import DispatcherRecord
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.manifest import ParentRecord
from t2cli.registry.vectors import read_z
from t2cli.svf.zvector import ZVectors, mix

Put = Callable[..., ExpertEntry]

SAMPLING = SamplingConfig(max_new_tokens=12)
QUESTION = [{"role": "user", "content": "what is the sum of two numbers"}]
NONE = Decision("none")


def folded_answer(adapted: AdaptedModel, z: ZVectors, messages: list[dict[str, str]]) -> str:
    with adapted.use_z(z):
        completion = generate(adapted, [adapted.base.encode(messages)], SAMPLING)[0]
    return adapted.base.decode(list(completion.ids))


def plain_answer(adapted: AdaptedModel, messages: list[dict[str, str]]) -> str:
    ids = torch.tensor([adapted.base.encode(messages)])
    with adapted.reference():
        out = adapted.model.generate(ids, max_new_tokens=12, do_sample=False)  # type: ignore[operator]
    return adapted.base.decode(out[0, ids.shape[1] :].tolist())


def test_an_expert_answers_as_its_folded_weights(two_pass: TwoPass, adapted: AdaptedModel, put: Put) -> None:
    z = read_z(put("math"))
    wanted = folded_answer(adapted, z, QUESTION)
    assert wanted != plain_answer(adapted, QUESTION)
    decision = two_pass.by_hand({"math": 1.0}).decide(QUESTION)
    assert (decision.strategy, decision.weights, decision.category) == ("fixed", {"math@1": 1.0}, None)
    assert not decision.abstained
    answer = two_pass.answer(QUESTION, decision, SAMPLING)
    assert answer.text == wanted
    assert answer.prompt_tokens == len(adapted.base.encode(QUESTION))
    assert 0 < answer.answer_tokens <= 12
    assert 0 < answer.first_token_seconds <= decision.seconds + answer.answer_seconds


def test_a_mix_answers_as_the_mix_of_the_vectors(two_pass: TwoPass, adapted: AdaptedModel, put: Put) -> None:
    first, second = read_z(put("math", seed=1)), read_z(put("story", seed=2))
    decision = two_pass.by_hand({"math": 0.75, "story@1": 0.5}).decide(QUESTION)
    assert decision.weights == {"math@1": 0.75, "story@1": 0.5}
    wanted = folded_answer(adapted, mix([(0.75, first), (0.5, second)]), QUESTION)
    assert two_pass.answer(QUESTION, decision, SAMPLING).text == wanted


def test_rows_of_a_batch_name_experts_mixes_and_the_base(two_pass: TwoPass, adapted: AdaptedModel, put: Put) -> None:
    a, b = (read_z(put(name, seed=seed)) for seed, name in enumerate("ab"))
    ids = [adapted.base.encode([{"role": "user", "content": text}]) for text in ("one", "three four", "five", "six")]
    sampling = SamplingConfig(max_new_tokens=6)
    with two_pass.per_row(["a", None, {"a": 0.5, "b": 0.25}, "b@1"]):
        found = generate(adapted, ids, sampling)
    for prompt, z, completion in zip(ids, (a, None, mix([(0.5, a), (0.25, b)]), b), found, strict=True):
        with adapted.reference() if z is None else adapted.use_z(z):
            assert generate(adapted, [prompt], sampling)[0] == completion
    with pytest.raises(NotFoundError), two_pass.per_row(["a", "nobody"]):
        pass


def test_without_an_expert_the_base_answers(two_pass: TwoPass, adapted: AdaptedModel, put: Put) -> None:
    put("math")
    decision = two_pass.strategy("none").decide(QUESTION)
    assert (decision.weights, decision.category, decision.abstained) == ({}, None, False)
    assert two_pass.answer(QUESTION, decision, SAMPLING).text == plain_answer(adapted, QUESTION)
    assert all(layer.basis is None for layer in adapted.layers.values())  # and nothing was decomposed for it


def test_with_no_experts_at_all_pass_1_leaves_it_to_the_base(two_pass: TwoPass, adapted: AdaptedModel) -> None:
    decision = two_pass.strategy("prompt").decide(QUESTION)
    assert (decision.category, decision.abstained) == ("other", True)
    assert two_pass.answer(QUESTION, decision, SAMPLING).text == plain_answer(adapted, QUESTION)


def test_answers_leave_the_base_bit_for_bit(two_pass: TwoPass, adapted: AdaptedModel, put: Put) -> None:
    put("math")
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    plain = plain_answer(adapted, QUESTION)
    strategy = two_pass.strategy("prompt")
    two_pass.answer(QUESTION, strategy.decide(QUESTION), SAMPLING)
    two_pass.answer(QUESTION, two_pass.by_hand({"math": 1.0}).decide(QUESTION), SAMPLING)

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        two_pass.answer(QUESTION, Decision("fixed", weights={"math@1": 2.0}), SAMPLING, on_text=interrupt)
    for name, tensor in adapted.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert two_pass.answer(QUESTION, NONE, SAMPLING).text == plain


def test_the_same_expert_is_read_and_folded_once(two_pass: TwoPass, adapted: AdaptedModel, put: Put) -> None:
    entry = put("math")
    decision = two_pass.by_hand({"math": 1.0}).decide(QUESTION)
    other = [{"role": "user", "content": "and another question"}]
    wanted = [folded_answer(adapted, read_z(entry), messages) for messages in (QUESTION, other)]
    places: list[int] = []

    def place(_text: str) -> None:
        folded = adapted.layers["model.layers.0.mlp.up_proj.weight"].folded
        if folded is not None:  # the last piece comes when the weights are the base's again
            places.append(folded.data_ptr())

    first = two_pass.answer(QUESTION, decision, SAMPLING, on_text=place)
    (entry.path / "z.safetensors").unlink()  # so a second reading would fail
    second = two_pass.answer(other, decision, SAMPLING, on_text=place)
    assert [first.text, second.text] == wanted
    assert len(places) > 2
    assert len(set(places)) == 1


@pytest.mark.parametrize("seed", range(6))
def test_streamed_pieces_are_the_text(seed: int, two_pass: TwoPass, adapted: AdaptedModel) -> None:
    # a random byte-level model says bytes that are no characters, halves of characters, and all between
    pieces: list[str] = []
    sampling = SamplingConfig(max_new_tokens=150, temperature=1.0, seed=seed)
    text = two_pass.answer(QUESTION, NONE, sampling, on_text=pieces.append).text
    assert "".join(pieces) == text
    assert len(pieces) > 20
    assert all(pieces)


def test_characters_of_several_tokens_are_shown_whole(two_pass: TwoPass, adapted: AdaptedModel) -> None:
    from t2cli.dispatch.two_pass import _Stream

    ids = adapted.base.tokenizer("é数🙂x", add_special_tokens=False)["input_ids"]
    assert len(ids) > 8  # bytes
    pieces: list[str] = []
    stream = _Stream(adapted.base.decode, pieces.append)
    for token in ids:
        stream.add(token)
    assert pieces == ["é", "数", "🙂", "x"]
    for token in ids[:1]:
        stream.add(token)  # a first half that ends the answer
    assert stream.finish() == "é数🙂x\ufffd"
    assert pieces[-1] == "\ufffd"


def test_a_seed_gives_the_same_answer_and_another_seed_another(two_pass: TwoPass) -> None:
    def answer(seed: int) -> str:
        return two_pass.answer(QUESTION, NONE, SamplingConfig(24, 1.0, seed)).text

    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in range(4)}) > 1


def test_a_prompt_longer_than_the_context_is_refused(two_pass: TwoPass, adapted: AdaptedModel) -> None:
    long = [{"role": "user", "content": "zq" * adapted.base.context}]
    with pytest.raises(UsageError, match="tokens and llama reads at most 512") as caught:
        two_pass.answer(long, NONE, SAMPLING)
    assert "shorten" in caught.value.hint


def test_an_answer_ends_where_the_context_does(two_pass: TwoPass, adapted: AdaptedModel) -> None:
    tokens = len(adapted.base.encode(QUESTION))
    adapted.base = replace(adapted.base, context=tokens + 5, eos=frozenset())
    answer = two_pass.answer(QUESTION, NONE, SamplingConfig(max_new_tokens=100))
    assert answer.answer_tokens == 5
    adapted.base = replace(adapted.base, context=tokens)
    with pytest.raises(UsageError):
        two_pass.answer(QUESTION, NONE, SAMPLING)


def test_an_answer_of_nothing_is_empty(two_pass: TwoPass, adapted: AdaptedModel) -> None:
    adapted.base = replace(adapted.base, eos=frozenset(range(300)))
    pieces: list[str] = []
    answer = two_pass.answer(QUESTION, NONE, SAMPLING, on_text=pieces.append)
    assert answer.answer_tokens == 1
    assert "".join(pieces) == answer.text


def test_categories_have_the_newest_expert_each(
    adapted: AdaptedModel, put: Put, publish: Callable[..., ExpertEntry], tmp_path: Path
) -> None:
    day = "2026-01-0{}T00:00:00Z".format
    put("sums", category="math", created=day(1), examples=("1 + 1?",))
    newest = put("adding", category="math", created=day(3), description="adds", examples=("2 + 2?", "3 + 3?"))
    put("sums", category="math", created=day(2))
    put("story", created=day(1))
    again = put("story", created=day(1))  # within the same second
    parents = (ParentRecord(newest.reference, newest.digest, 1.0),)
    put("both", kind="mix", category="math", created=day(9), parents=parents)
    chooses = DispatcherRecord("which?", ("story", "other"), ("A", "B"), 0.5, ((1, 0), (0, 1)))
    put("chooser", kind="dispatcher", category="story", dispatcher=chooses, created=day(9))
    put("everything", category="other", created=day(9))
    theirs = replace(adapted.base.identity, weights="a" * 64, probes={})
    publish(tmp_path / "experts", theirs, "foreign", read_z(newest), created=day(9))
    found = categories_of(TwoPass(adapted, LocalRegistry([tmp_path / "experts"])).resolver)
    assert [(category.name, category.reference) for category in found] == [("math", "adding@1"), ("story", "story@2")]
    assert found[0].examples == ("2 + 2?", "3 + 3?")
    assert found[0].description == "adds"
    assert again.reference == "story@2"


def test_a_category_has_the_expert_that_its_reference_means(
    adapted: AdaptedModel, put: Put, publish: Callable[..., ExpertEntry], tmp_path: Path
) -> None:
    first = put("math", created="2026-01-01T00:00:00Z", examples=("of the first folder",))
    z = read_z(first)
    fields = {"created": "2026-02-01T00:00:00Z", "examples": ("of the second",)}
    publish(tmp_path / "more", adapted.base.identity, "math", z, **fields)
    registry = LocalRegistry([tmp_path / "experts", tmp_path / "more"])
    (category,) = categories_of(TwoPass(adapted, registry).resolver)
    assert registry.find(category.reference).registry == tmp_path / "experts"
    assert category.examples == ("of the first folder",)


def test_unusable_experts_are_refused_at_once(
    two_pass: TwoPass, adapted: AdaptedModel, put: Put, publish: Callable[..., ExpertEntry], tmp_path: Path
) -> None:
    z = read_z(put("math"))
    publish(tmp_path / "experts", replace(adapted.base.identity, weights="a" * 64, probes={}), "foreign", z)
    with pytest.raises(NotFoundError, match="mth") as caught:
        two_pass.by_hand({"mth": 1.0})
    assert "did you mean math" in caught.value.hint
    with pytest.raises(IncompatibleBaseError):
        two_pass.by_hand({"foreign": 1.0})
    with pytest.raises(UsageError, match="math and math@1 are the same expert, math@1"):
        two_pass.by_hand({"math": 0.5, "math@1": 0.5})
    with pytest.raises(NotFoundError, match="no strategy named 'prompts'") as caught:
        two_pass.strategy("prompts")
    assert "did you mean prompt" in caught.value.hint


def test_an_expert_of_other_shapes_is_refused(
    two_pass: TwoPass, adapted: AdaptedModel, publish: Callable[..., ExpertEntry], tmp_path: Path
) -> None:
    publish(tmp_path / "experts", adapted.base.identity, "odd", ZVectors({"no.such.weight": torch.ones(4)}))
    decision = two_pass.by_hand({"odd": 1.0}).decide(QUESTION)
    with pytest.raises(IncompatibleBaseError, match=r"no\.such\.weight"):
        two_pass.answer(QUESTION, decision, SAMPLING)


def test_a_damaged_expert_is_refused(two_pass: TwoPass, put: Put) -> None:
    entry = put("math")
    path = entry.path / "z.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CorruptArtifactError):
        two_pass.answer(QUESTION, two_pass.by_hand({"math": 1.0}).decide(QUESTION), SAMPLING)


def test_weights_that_overflow_are_refused(two_pass: TwoPass, put: Put) -> None:
    put("math")
    for alpha in (3e38, 1e300):
        with pytest.raises(UsageError, match=r"weights are too large|must be a finite number of float32") as caught:
            two_pass.answer(QUESTION, two_pass.by_hand({"math": alpha}).decide(QUESTION), SAMPLING)
        assert "0.5" in caught.value.hint


def test_problems_of_the_registry_are_kept_and_the_rest_is_used(two_pass: TwoPass, put: Put) -> None:
    put("math")
    broken = put("story")
    (broken.path / "expert.yaml").write_text("schema: 1\n")
    decision = two_pass.strategy("prompt").decide(QUESTION)
    assert set(decision.probabilities) == {"math", "other"}
    assert len(two_pass.registry.problems) == 1
