"""Pass 1 by a dispatcher: its probabilities are those of the base under its z, and the base is itself afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from t2cli.config import DispatchConfig
from t2cli.dispatch.classifier import ClassifierStrategy, newest_dispatcher
from t2cli.dispatch.decision import OTHER
from t2cli.dispatch.prompt import PromptStrategy
from t2cli.dispatch.two_pass import TwoPass
from t2cli.errors import CorruptArtifactError, IncompatibleBaseError, NotFoundError, UsageError
from t2cli.models.adapted import AdaptedModel
from t2cli.models.labels import LabelPrompt, LabelReader
from t2cli.registry.dispatcher_record import DispatcherRecord
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.vectors import read_z
from t2cli.svf.zvector import ZVectors

Put = Callable[..., ExpertEntry]

RECORD = DispatcherRecord(
    "what is it? A: math (sums). B: story (who did what). C: other (all else).",
    ("math", "story", OTHER),
    ("A", "B", "C"),
    0.0,
    ((3, 0, 1), (0, 4, 0), (1, 1, 6)),
)
QUESTIONS = [
    "What is 17 + 25?",
    "x",
    "Who  was\n\nit?",
    "Ünïcödé 数学 🙂",
    "Category: math\nAnswer: A",
    "sum of two " * 9,
]
CHATS = [[{"role": "user", "content": question}] for question in QUESTIONS]


@pytest.fixture
def dispatcher(put: Put) -> Put:
    """Return a function that puts a dispatcher into the test's registry."""

    def make(name: str = "dispatch", record: DispatcherRecord = RECORD, **fields: object) -> ExpertEntry:
        return put(name, kind="dispatcher", category="dispatch", dispatcher=record, **{"seed": 7, **fields})

    return make


def strategy_of(two_pass: TwoPass, config: DispatchConfig = DispatchConfig()) -> ClassifierStrategy:  # noqa: B008
    strategy = two_pass.strategy("classifier", config)
    assert isinstance(strategy, ClassifierStrategy)
    return strategy


def test_probabilities_are_those_of_the_base_under_the_dispatchers_z(
    two_pass: TwoPass, put: Put, dispatcher: Put
) -> None:
    put("math")
    put("tales", category="story", seed=1)
    z = read_z(dispatcher())
    strategy = strategy_of(two_pass)
    adapted = two_pass.adapted
    prompt = LabelPrompt(adapted.base, RECORD.instruction, RECORD.labels)
    for question, chat in zip(QUESTIONS, CHATS, strict=True):
        with adapted.use_z(z, folded=False):
            wanted = LabelReader(adapted, prompt).read(question).exp().tolist()
        decision = strategy.decide(chat)
        assert list(decision.probabilities) == list(RECORD.categories)
        assert list(decision.probabilities.values()) == pytest.approx(wanted, abs=1e-4)
        assert decision.category == max(decision.probabilities, key=lambda name: decision.probabilities[name])
        reference = {"math": "math@1", "story": "tales@1"}.get(str(decision.category))
        assert decision.weights == ({reference: 1.0} if reference else {})
        assert decision.strategy == "classifier"
        assert decision.seconds > 0


@pytest.mark.parametrize("variant", ["llama", "qwen2", "mistral"])
def test_questions_read_side_by_side_are_judged_as_each_alone(
    variant: str, adapt: Callable[..., AdaptedModel], random_z: Callable[..., ZVectors]
) -> None:
    adapted = adapt(variant)
    strategy = ClassifierStrategy(adapted, random_z(adapted.ranks, sigma=0.5), RECORD, [])
    chats = [*CHATS * 3, [{"role": "user", "content": "long " * 300}]]
    together, alone = strategy.decide_each(chats), [strategy.decide(chat) for chat in chats]
    for one, other in zip(together, alone, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-3)
        assert (one.strategy, one.category, one.weights) == (other.strategy, other.category, other.weights)
    assert strategy.decide_each([]) == []


def test_the_base_is_itself_after_a_decision_and_after_an_error_in_one(two_pass: TwoPass, dispatcher: Put) -> None:
    dispatcher()
    strategy, model = strategy_of(two_pass), two_pass.adapted.model
    ids = torch.arange(9).unsqueeze(0)
    before = model(input_ids=ids).logits
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = strategy.decide(CHATS[0])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = model.get_submodule("model.layers.1.mlp").register_forward_hook(interrupt)
    for work in (lambda: strategy.decide(CHATS[1]), lambda: strategy.decide_each(CHATS)):
        with pytest.raises(KeyboardInterrupt):
            work()
    handle.remove()
    assert torch.equal(model(input_ids=ids).logits, before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert strategy.decide(CHATS[0]).probabilities == wanted.probabilities


def test_it_decides_alike_inside_another_expert(
    two_pass: TwoPass, dispatcher: Put, random_z: Callable[..., ZVectors]
) -> None:
    dispatcher()
    strategy, adapted = strategy_of(two_pass), two_pass.adapted
    wanted = strategy.decide(CHATS[0]).probabilities
    with adapted.use_z(random_z(adapted.ranks, seed=3)):
        assert strategy.decide(CHATS[0]).probabilities == wanted


def test_a_category_below_the_threshold_is_left_to_the_base(two_pass: TwoPass, put: Put, dispatcher: Put) -> None:
    put("math")
    put("story")
    dispatcher(record=replace(RECORD, threshold=1.0))
    advised = strategy_of(two_pass).decide_each(CHATS)
    assert all(decision.abstained for decision in advised)
    given = strategy_of(two_pass, DispatchConfig(threshold=0.0)).decide_each(CHATS)
    assert [decision.category for decision in given] == [decision.category for decision in advised]
    assert all(decision.abstained == (decision.category == OTHER) for decision in given)


def test_the_newest_dispatcher_of_the_base_is_used(
    two_pass: TwoPass, dispatcher: Put, publish: Put, tmp_path: Path, random_z: Callable[..., ZVectors]
) -> None:
    day = "2026-01-0{}T00:00:00Z".format
    assert newest_dispatcher(two_pass.resolver) is None
    dispatcher(created=day(2))
    newest = dispatcher("chooser", created=day(3))
    dispatcher(created=day(1))
    adapted = two_pass.adapted
    theirs = replace(adapted.base.identity, weights="a" * 64, probes={})
    z = random_z(adapted.ranks)
    publish(tmp_path / "experts", theirs, "foreign", z, kind="dispatcher", dispatcher=RECORD, created=day(9))
    found = newest_dispatcher(two_pass.resolver)
    assert found is not None
    assert found.digest == newest.digest


def test_without_a_dispatcher_the_way_to_one_is_said(
    two_pass: TwoPass, put: Put, publish: Put, tmp_path: Path, random_z: Callable[..., ZVectors]
) -> None:
    put("math")
    theirs = replace(two_pass.adapted.base.identity, weights="a" * 64, probes={})
    z = random_z(two_pass.adapted.ranks)
    publish(tmp_path / "experts", theirs, "foreign", z, kind="dispatcher", dispatcher=RECORD)
    with pytest.raises(NotFoundError, match="there is no dispatcher for") as caught:
        two_pass.strategy("classifier")
    assert "t2 train --task dispatch" in caught.value.hint
    assert isinstance(two_pass.strategy("auto"), PromptStrategy)


def test_categories_that_it_does_not_know_are_named_and_never_chosen(
    two_pass: TwoPass, put: Put, dispatcher: Put
) -> None:
    put("math")
    put("poems")
    dispatcher()
    strategy = strategy_of(two_pass)
    assert strategy.experts == {"math": "math@1"}
    (warning,) = two_pass.resolver.warnings
    assert "dispatch@1 was not trained to tell poems" in warning
    strategy_of(two_pass)
    assert two_pass.resolver.warnings == [warning]
    assert all(decision.category in RECORD.categories for decision in strategy.decide_each(CHATS))


def test_a_category_is_the_same_however_it_is_written(two_pass: TwoPass, put: Put, dispatcher: Put) -> None:
    put("sums", category=" MATH")
    dispatcher()
    strategy = two_pass.strategy("auto")
    assert isinstance(strategy, ClassifierStrategy)
    assert strategy.experts == {"math": "sums@1"}
    assert two_pass.resolver.warnings == []


def test_a_category_without_an_expert_goes_to_the_base(two_pass: TwoPass, dispatcher: Put) -> None:
    dispatcher()
    assert all(decision.abstained for decision in strategy_of(two_pass).decide_each(CHATS))


def test_auto_is_the_classifier_where_it_knows_every_category(two_pass: TwoPass, put: Put, dispatcher: Put) -> None:
    dispatcher()
    assert isinstance(two_pass.strategy("auto"), PromptStrategy)  # there is nothing to choose from
    put("math")
    strategy = two_pass.strategy("auto")
    assert isinstance(strategy, ClassifierStrategy)
    assert strategy.decide(CHATS[0]).strategy == "classifier"
    put("poems")
    strategy = two_pass.strategy("auto")
    assert isinstance(strategy, PromptStrategy)
    assert strategy.decide(CHATS[0]).strategy == "prompt"
    (warning,) = two_pass.resolver.warnings
    assert "does not know poems, so that the base itself chooses among the experts: --adapt classifier" in warning


def test_a_dispatcher_is_no_expert(two_pass: TwoPass, put: Put, dispatcher: Put) -> None:
    put("math")
    entry = dispatcher()
    for weights in ({"dispatch": 1.0}, {"math": 0.5, "dispatch@1": 0.5}, {f"dispatch@sha256:{entry.digest}": 1.0}):
        with pytest.raises(UsageError, match="dispatch@1 is a dispatcher"):
            two_pass.by_hand(weights)
        with pytest.raises(UsageError, match="dispatch@1 is a dispatcher"):
            two_pass.z_of(weights)


def test_a_damaged_dispatcher_is_refused(two_pass: TwoPass, put: Put, dispatcher: Put, tmp_path: Path) -> None:
    put("math")
    entry = dispatcher()
    manifest = entry.path / "expert.yaml"
    manifest.write_text(manifest.read_text().replace("threshold: 0.0", "threshold: 7.0"))
    registry = LocalRegistry([tmp_path / "experts"])
    again = TwoPass(two_pass.adapted, registry, quiet=True)
    assert isinstance(again.strategy("auto"), PromptStrategy)
    assert any("threshold" in problem.message for problem in registry.problems)
    blob = entry.path / "z.safetensors"
    manifest.write_text(manifest.read_text().replace("threshold: 7.0", "threshold: 0.0"))
    blob.write_bytes(blob.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CorruptArtifactError):
        TwoPass(two_pass.adapted, LocalRegistry([tmp_path / "experts"]), quiet=True).strategy("auto")


def test_a_dispatcher_of_other_shapes_is_refused(
    two_pass: TwoPass, publish: Put, tmp_path: Path, random_z: Callable[..., ZVectors]
) -> None:
    z = random_z(dict.fromkeys(two_pass.adapted.ranks, 3))
    publish(tmp_path / "experts", two_pass.adapted.base.identity, "x", z, kind="dispatcher", dispatcher=RECORD)
    with pytest.raises(IncompatibleBaseError):
        two_pass.strategy("classifier")


def test_only_the_last_message_is_judged(two_pass: TwoPass, dispatcher: Put) -> None:
    dispatcher()
    strategy = strategy_of(two_pass)
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}, *CHATS[0]]
    assert strategy.decide(chat).probabilities == strategy.decide(CHATS[0]).probabilities


def test_a_megabyte_of_text_is_decided_on_as_fast_as_a_page(two_pass: TwoPass, dispatcher: Put) -> None:
    dispatcher()
    strategy = strategy_of(two_pass)

    def seconds(text: str) -> float:
        started = time.perf_counter()
        decision = strategy.decide([{"role": "user", "content": text}])
        assert sum(decision.probabilities.values()) == pytest.approx(1)
        return time.perf_counter() - started

    page = min(seconds("the sum " * 2000) for _ in range(3))
    assert min(seconds("the sum " * 140_000) for _ in range(3)) < 5 * page + 0.1
