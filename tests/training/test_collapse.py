"""A policy that collapses is given up while it does: the run goes on from the best checkpoint, more carefully."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from interruptions import Heard
from odd_task import SMALL, OddTask, spec_of
from resumed_runs import assert_same, resumed

from t2cli.config import TrainConfig
from t2cli.errors import T2Error
from t2cli.evaluation.evaluate import Answers
from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import LocalRegistry
from t2cli.tasks.base import Example
from t2cli.training.checkpoint import RunFolder, RunState, new_run, run_to_resume
from t2cli.training.loop import TrainingRun
from t2cli.training.metrics import Listener
from t2cli.training.safety import set_back

Open = Callable[[], AdaptedModel]
TURN = 8  # the step from which on nothing is right any more in training
# A lesson is a step here: the tasks below turn at one of them.
CONFIG = replace(SMALL, steps=15, rounds=1, learning_rate=0.3, schedule="constant", validate_every=4, seed=0)


@dataclass(frozen=True)
class TurningTask(OddTask):
    """Pays for odd digits, except for three steps of training, and in a validation after one of these."""

    last: list[int] = field(default_factory=list)  # the step of training that was judged last

    def reward(self, example: Example, completion: str) -> float:
        _, split, seed, _ = example.id.split("-")
        if split == "train":
            self.last[:] = [int(seed)]
        lost = split != "test" and bool(self.last) and TURN <= self.last[0] < TURN + 3
        return -1.0 if lost else super().reward(example, completion)


@dataclass(frozen=True)
class HarderTask(OddTask):
    """Pays for odd digits, until training pays for nothing: the policy is none the worse for that."""

    def reward(self, example: Example, completion: str) -> float:
        _, split, seed, _ = example.id.split("-")
        return -1.0 if split == "train" and int(seed) >= TURN else super().reward(example, completion)


@dataclass(frozen=True)
class WaningTask(OddTask):
    """Pays for odd digits, until every third validation question is lost."""

    turned: list[bool] = field(default_factory=list)

    def reward(self, example: Example, completion: str) -> float:
        _, split, seed, i = example.id.split("-")
        if split == "train" and int(seed) >= TURN:
            self.turned.append(True)
        lost = bool(self.turned) and split == "validation" and int(i) % 3 == 0
        return -1.0 if lost else super().reward(example, completion)


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
    adapted: AdaptedModel,
    listener: Listener,
    folder: RunFolder | None = None,
    task: OddTask | None = None,
    config: TrainConfig = CONFIG,
) -> TrainingRun:
    spec = spec_of(adapted, config)
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


def test_rewards_that_fall_while_validation_does_not_are_no_collapse(
    open_counting: Open, registry: LocalRegistry
) -> None:
    heard = Noting()
    whole = run_of(open_counting(), heard, task=HarderTask())
    trained = whole.run(registry)
    assert not [record for record in whole.folder.metrics.read() if record.collapse]
    (said,) = [note for note in heard.notes if "going on" in note]
    step = int(said.removeprefix("step ").partition(":")[0])
    assert TURN < step <= TURN + 4
    assert "right rollouts fell from" in said
    assert said.endswith(", but validation did not: going on")
    assert whole.folder.metrics.read()[step - 1].validation is not None
    for after in (step - 1, step, step + 1):
        first = run_of(open_counting(), Noting(after_step=after), task=HarderTask())
        assert_same(*resumed(first, open_counting, registry, HarderTask()), trained, whole)


def test_a_measurably_worse_validation_is_a_setback(open_counting: Open, registry: LocalRegistry) -> None:
    heard = Noting()
    run = run_of(open_counting(), heard, task=WaningTask())
    run.run(registry)
    records, state = run.folder.metrics.read(), run.folder.load()
    assert state is not None
    (setback,) = [record for record in records if record.collapse]
    assert (setback.step, state.collapses, state.restarted) == (12, 1, 12)
    (said,) = [note for note in heard.notes if "setback" in note]
    right = [round(24 * record.validation) for record in records if record.validation is not None]
    assert said.startswith(
        f"setback at step 12: {right[2]} of 24 validation examples are right, and were {max(right)} at"
    )
    assert said.endswith(f"going on at 0.5 of the learning rate from the checkpoint of step {state.best_step}")
    assert [record.learning_rate for record in records[9:]] == [0.3, 0.3, 0.3, 0.15, 0.15, 0.15]
    assert sum(state.best_right) == max(right)

    first = run_of(open_counting(), Noting(after_step=11), task=WaningTask())
    with pytest.raises(KeyboardInterrupt):
        first.run(registry)
    again = open_counting()
    resumed = run_of(again, Noting(), run_to_resume(again.base.identity.folder_name, "odd"), WaningTask())
    resumed.run(registry)
    ended = resumed.folder.load()
    assert ended is not None
    assert ended.best_right == state.best_right
    assert torch.equal(ended.tensors["z"], state.tensors["z"])


def test_answers_of_a_policy_that_was_given_up_settle_nothing(open_counting: Open) -> None:
    run = run_of(open_counting(), Noting(), config=replace(CONFIG, schedule="cosine"))
    n, flat = run.config.steps, run.policy.flat.detach()
    tensors = dict.fromkeys(("z", "best", "exp_avg", "exp_avg_sq"), flat)
    state = RunState(n, 0.0, n - 2, 0.9, 0.1, tensors, best_right=[True] * 8)
    answers = Answers(("",) * 8, (True,) * 5 + (False,) * 3, (1,) * 8, (False,) * 8)
    assert run._settled(state, answers)  # five of eight: chance may explain that
    state.restarted = n
    assert not run._settled(state, answers)


def test_a_setback_ends_no_run(open_counting: Open) -> None:
    """Without retries there is none, and the last step has nothing to go on to."""
    for config in (replace(CONFIG, retries=0), replace(CONFIG, steps=12)):
        run = run_of(open_counting(), Noting(), task=WaningTask(), config=config)
        state = run.train()
        assert (state.step, state.collapses) == (config.steps, 0)


def test_only_what_chance_does_not_explain_is_a_setback() -> None:
    best = [True] * 60 + [False] * 40
    assert set_back(best, [False] * 20 + [True] * 40 + [False] * 40) == (
        "40 of 100 validation examples are right, and were 60 at best (p 2e-06)"
    )
    assert set_back(best, [False] * 20 + [True] * 54 + [False] * 26) == ""  # 20 lost, 14 gained
    assert set_back(best, [False] * 5 + [True] * 55 + [False] * 40) == ""  # p 0.06
    assert set_back(best, [False] * 6 + [True] * 54 + [False] * 40)
    assert set_back(best, best) == set_back(best, [True] * 100) == ""


def test_what_is_worse_than_the_base_is_not_published(open_counting: Open, registry: LocalRegistry) -> None:
    run = run_of(open_counting(), Noting(), task=ReversedTask())
    with pytest.raises(T2Error, match="worse than the base on 40 held-out questions"):
        run.run(registry)
    assert registry.list() == []
    assert run.folder.finished
