"""Of the best checkpoint's way from the base as much is published as validation prefers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interruptions import Heard
from odd_task import SMALL, OddTask, start
from resumed_runs import Open, assert_same, resumed

from t2cli.config import TrainConfig, preset
from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import LocalRegistry
from t2cli.registry.vectors import z_to_bytes
from t2cli.tasks.base import Example
from t2cli.training.checkpoint import RunState
from t2cli.training.loop import TrainingRun
from t2cli.training.lora import LoRAPolicy
from t2cli.training.metrics import StepRecord

CONFIG = replace(SMALL, steps=6, learning_rate=0.5, validate_every=6)


class OvershotTask(OddTask):
    """Pays for odd digits; elsewhere than in training not always for the one that training ends with, a 5."""

    def reward(self, example: Example, completion: str) -> float:
        _, split, _, i = example.id.split("-")
        right = super().reward(example, completion)
        return right if split == "train" or int(i) % 2 or completion != "5" else -1.0


class Keeping(Heard):
    """Keeps the numbers of every step, and what is said."""

    def __init__(self, *, in_stage: str = "") -> None:
        super().__init__(in_stage=in_stage)
        self.numbers: list[torch.Tensor] = []
        self.notes: list[str] = []

    def step(self, record: StepRecord) -> None:
        self.numbers.append(self.run.policy.flat.detach().clone())

    def note(self, text: str) -> None:
        self.notes.append(text)

    run: TrainingRun


def keeping(adapted: AdaptedModel, config: TrainConfig) -> tuple[Keeping, RunState]:
    """Train, and return what was heard and where the run ended."""
    heard = Keeping()
    heard.run = start(adapted, config, listener=heard, task=OvershotTask())
    return heard, heard.run.train()


def accuracy(run: TrainingRun, numbers: torch.Tensor) -> float:
    return run._validate(run.policy.answering(numbers)).accuracy


def test_a_shorter_way_that_validates_better_is_taken(counting: AdaptedModel) -> None:
    heard, state = keeping(counting, CONFIG)
    assert state.best_share < 1
    checkpoint = heard.numbers[state.best_step - 1]
    best = state.tensors["best"]
    assert torch.equal(best, 1 + state.best_share * (checkpoint - 1))
    assert accuracy(heard.run, best) == state.best_accuracy
    shares = [0.75**i for i in range(1, 9)]
    taken = shares.index(state.best_share) + 1
    measured = [accuracy(heard.run, 1 + share * (checkpoint - 1)) for share in (1.0, *shares[: taken + 1])]
    assert measured[: taken + 1] == sorted(set(measured[: taken + 1]))  # each better than the one before
    assert measured[taken + 1] <= measured[taken]
    said = [note for note in heard.notes if "of the way from the base" in note]
    assert len(said) == taken
    assert said[0].startswith(f"75% of the way from the base to the checkpoint of step {state.best_step} is better")
    assert said[0].endswith(f"{measured[1]:.3f} instead of {measured[0]:.3f}")


def test_none_is_looked_for_where_that_is_said(counting: AdaptedModel) -> None:
    heard, state = keeping(counting, replace(CONFIG, shorten=0.0))
    assert state.best_share == 1
    assert torch.equal(state.tensors["best"], heard.numbers[state.best_step - 1])
    assert not [what for what, _ in heard.stages if "of the way" in what]


def test_a_run_interrupted_while_it_looks_for_one_ends_the_same(open_counting: Open, registry: LocalRegistry) -> None:
    whole = start(open_counting(), CONFIG, task=OvershotTask())
    wanted = whole.run(registry)
    training = wanted.entry.manifest.training
    assert training is not None
    assert training.config["best_share"] < 1  # type: ignore[operator]
    for share in ("75%", "56%"):
        first = start(open_counting(), CONFIG, listener=Heard(in_stage=f"validate {share}"), task=OvershotTask())
        assert_same(*resumed(first, open_counting, registry, OvershotTask()), wanted, whole)


def test_what_is_published_is_the_shorter_one(open_counting: Open, registry: LocalRegistry) -> None:
    run = start(open_counting(), CONFIG, task=OvershotTask())
    trained = run.run(registry)
    state = run.folder.load()
    assert state is not None
    assert trained.entry.z_bytes() == z_to_bytes(run.policy.z_of(state.tensors["best"]))  # type: ignore[attr-defined]


def test_a_lora_that_goes_a_share_of_its_way_adds_that_share(counting: AdaptedModel) -> None:
    pytest.importorskip("peft")
    policy = LoRAPolicy(counting, preset("t2", adapter="lora", rank=2, seed=3))
    with torch.no_grad():
        policy.flat.add_(torch.randn(policy.flat.shape, generator=torch.Generator().manual_seed(0)))
    weights = [layer.get_base_layer().weight for layer in policy._layers]
    added = []
    for share in (1.0, 0.25, 0.0):
        with policy.answering(policy.towards_base(policy.flat.detach(), share)):
            now = [layer.get_base_layer().weight for layer in policy._layers]
            added.append([W - base for W, base in zip(now, weights, strict=True)])
    for whole, quarter, none in zip(*added, strict=True):
        torch.testing.assert_close(quarter, 0.25 * whole, atol=1e-6, rtol=1e-5)
        assert not none.any()
        assert whole.any()


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan")])
def test_a_factor_that_shortens_nothing_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="shorten must be at least 0 and below 1"):
        TrainConfig(shorten=share)


def test_who_looks_for_one() -> None:
    assert preset("t2").shorten == preset("t2", adapter="lora").shorten == 0.75
    assert preset("paper").shorten == preset("reference").shorten == preset("t2", trainer="labels").shorten == 0
