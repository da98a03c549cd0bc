"""Event files hold every step once, whatever interrupted the run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from interruptions import Heard
from odd_task import SMALL, start

from t2cli.errors import T2Error
from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import LocalRegistry
from t2cli.training.metrics import Silent
from t2cli.training.tensorboard import WithEvents

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

Open = Callable[[], AdaptedModel]


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Return what TensorBoard shows: the value of each step by name."""
    events = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    shown = {}
    for name in events.Tags()["scalars"]:
        points = [(event.step, event.value) for event in events.Scalars(name)]
        assert len(points) == len(dict(points)), name
        shown[name] = dict(points)
    return shown


@pytest.mark.parametrize("step", [None, 2, 3])
def test_events_are_the_metrics(step: int | None, open_counting: Open, registry: LocalRegistry) -> None:
    run = start(open_counting())
    if step is not None:
        first = start(open_counting(), folder=run.folder)
        first.listener = events = WithEvents(Heard(after_step=step), run.folder)
        with pytest.raises(KeyboardInterrupt):
            first.run(registry)
        events.close()
        assert list(scalars(run.folder.path)["reward"]) == list(range(1, step + 1))
        # as a kill between the line and the checkpoint leaves it: a resume cuts the line, and its point is void
        line = run.folder.metrics.path.read_text().splitlines()[-1]
        with run.folder.metrics.path.open("a") as file:
            file.write(line.replace(f'"step": {step},', f'"step": {step + 1},') + "\n")
    run.listener = events = WithEvents(Silent(), run.folder)
    run.run(registry)
    events.close()
    found, records = scalars(run.folder.path), run.folder.metrics.read()
    assert len(records) == SMALL.steps
    for name in ("reward", "kl", "gradient_norm", "learning_rate", "tokens_per_second"):
        assert found[name] == pytest.approx({record.step: getattr(record, name) for record in records}, rel=1e-6)
    assert found["validation"] == pytest.approx({r.step: r.validation for r in records if r.validation is not None})
    assert not set(found) & {"step", "steps", "elapsed", "eta"}


def test_a_run_with_events_does_not_go_on_without_the_package(
    counting: AdaptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(T2Error, match="need the package tensorboard") as error:
        WithEvents(Silent(), start(counting).folder)
    assert "t2cli[tensorboard]" in error.value.hint


def test_another_listener_hears_all(counting: AdaptedModel, registry: LocalRegistry) -> None:
    heard = Heard()
    run = start(counting)
    run.listener = run.publisher.listener = events = WithEvents(heard, run.folder)
    run.run(registry)
    events.close()
    assert [record.step for record in heard.records] == [1, 2, 3, 4]
    assert ("train", SMALL.steps) in heard.stages
    assert heard.advanced == SMALL.validation_examples + 2 * SMALL.evaluation_examples
