"""A run ends early where no better checkpoint comes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from interruptions import Heard
from odd_task import SMALL, start
from resumed_runs import Open, assert_same, resumed

from t2cli.errors import T2Error
from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import LocalRegistry


class Noting(Heard):
    """A listener that keeps the lines, too."""

    def __init__(self, *, after_step: int | None = None) -> None:
        super().__init__(after_step=after_step)
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


WILD = replace(SMALL, steps=12, learning_rate=0.4, validate_every=1, patience=2)  # gets better, and worse again


def test_a_run_ends_when_no_better_checkpoint_comes(open_counting: Open, registry: LocalRegistry) -> None:
    heard = Noting()
    run = start(open_counting(), WILD, listener=heard)
    trained = run.run(registry)
    seen = [record.validation or 0.0 for record in run.folder.metrics.read()]
    best = max(range(len(seen)), key=lambda index: seen[index])
    assert len(seen) == best + 1 + WILD.patience == trained.steps < WILD.steps
    assert heard.notes[-1] == (
        f"ended early, after step {trained.steps}: none of the last 2 validations found anything better than "
        f"the checkpoint of step {best + 1}"
    )
    assert run.folder.finished
    long = start(open_counting(), replace(WILD, patience=0)).run(registry)
    assert long.steps == WILD.steps


def test_patience_survives_an_interrupt(open_counting: Open, registry: LocalRegistry) -> None:
    whole_run = start(open_counting(), WILD)
    whole = whole_run.run(registry)
    for step in (whole.steps - 1, whole.steps):  # with one validation to go, and when it has ended
        first = start(open_counting(), WILD, listener=Heard(after_step=step))
        assert_same(*resumed(first, open_counting, registry), whole, whole_run)


def test_a_run_that_never_gets_better_ends_early_with_nothing(counting: AdaptedModel, registry: LocalRegistry) -> None:
    heard = Noting()
    run = start(counting, replace(WILD, learning_rate=0.0), listener=heard)
    with pytest.raises(T2Error, match="no checkpoint was better"):
        run.run(registry)
    assert heard.notes[-1].endswith("found anything better than the base")
    assert len(run.folder.metrics.read()) == 2
