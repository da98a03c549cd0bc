"""A policy that collapses is given up while it does: the run goes on from the best checkpoint, more carefully."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from interruptions import Heard
from odd_task import SMALL, OddTask, spec_of

from t2cli.errors import T2Error
from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import LocalRegistry
from t2cli.tasks.base import Example
from t2cli.training.checkpoint import RunFolder, new_run, run_to_resume
from t2cli.training.loop import TrainingRun
from t2cli.training.metrics import Listener

Open = Callable[[], AdaptedModel]
TURN = 8  # the step from which on nothing is right any more in training
CONFIG = replace(SMALL, steps=15, learning_rate=0.3, schedule="constant", validate_every=4, seed=0)


@dataclass(frozen=True)
class TurningTask(OddTask):
    """Pays for odd digits, until it pays for nothing."""

    def reward(self, example: Example, completion: str) -> float:
        _, split, seed, _ = example.id.split("-")
        return -1.0 if split == "train" and int(seed) >= TURN else super().reward(example, completion)


class ReversedTask(OddTask):
    """Validates the opposite of what it tests."""

    def reward(self, example: Example, completion: str) -> float:
        right = super().reward(example, completion)
        return -right if "-test-" in example.id else right


class Noting(Heard):
    """Remembers what was said."""

    def __init__(self, after_step: int | None = None) -> None:
        super().__init__(after_step=after_step)
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def run_of(
    adapted: AdaptedModel, listener: Listener, folder: RunFolder | None = None, task: OddTask | None = None
) -> TrainingRun:
    spec = spec_of(adapted, CONFIG)
    folder = folder or new_run(adapted.base.identity.folder_name, spec)
    return TrainingRun(adapted, task or TurningTask(), folder.spec(), folder, listener)


def test_a_collapse_falls_back_to_the_best_checkpoint(open_counting: Open, registry: LocalRegistry) -> None:
    heard = Noting()
    run = run_of(open_counting(), heard)
    trained = run.run(registry)
    records = run.folder.metrics.read()
    (collapse,) = [record for record in records if record.collapse]
    assert TURN < collapse.step <= TURN + 4
    assert "right rollouts fell from" in collapse.collapse
    (said,) = [note for note in heard.notes if "collapse" in note]
    assert said.startswith(f"collapse at step {collapse.step}: right rollouts fell from")
    assert "going on at 0.5 of the learning rate from the checkpoint of step " in said
    assert [record.learning_rate for record in records[collapse.step :]] == [0.15] * (15 - collapse.step)
    assert trained.evaluation.gain > 0.2


def test_a_collapse_and_an_interruption_end_the_same(open_counting: Open, registry: LocalRegistry) -> None:
    whole = run_of(open_counting(), Noting())
    whole.run(registry)
    (step,) = [record.step for record in whole.folder.metrics.read() if record.collapse]
    wanted = whole.folder.load()
    assert wanted is not None
    for after in (step - 1, step, step + 1):
        first = run_of(open_counting(), Noting(after_step=after))
        with pytest.raises(KeyboardInterrupt):
            first.run(registry)
        again = open_counting()
        run = run_of(again, Noting(), run_to_resume(again.base.identity.folder_name, "odd"))
        run.run(registry)
        state = run.folder.load()
        assert state is not None
        assert (state.collapses, state.restarted, state.best_step) == (1, step, wanted.best_step)
        for name, tensor in wanted.tensors.items():
            assert torch.equal(state.tensors[name], tensor), (after, name)


def test_what_is_worse_than_the_base_is_not_published(open_counting: Open, registry: LocalRegistry) -> None:
    run = run_of(open_counting(), Noting(), task=ReversedTask())
    with pytest.raises(T2Error, match="worse than the base on 40 held-out questions"):
        run.run(registry)
    assert registry.list() == []
    assert run.folder.finished
