"""Interrupted runs that are finished, and what must be equal then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
import torch
from odd_task import start

from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.tasks.base import Task
from t2cli.training.checkpoint import run_to_resume
from t2cli.training.loop import TrainingRun
from t2cli.training.publish import Trained

Open = Callable[[], AdaptedModel]


TIMES = ("seconds", "elapsed", "eta", "tokens_per_second")


def lines_of(run: TrainingRun) -> list[dict[str, object]]:
    """Return metrics.jsonl without the times, which are never the same."""
    records = [asdict(record) for record in run.folder.metrics.read()]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def made(entry: ExpertEntry) -> dict[str, object]:
    """Return the manifest without its times and its version."""
    record = entry.manifest.to_dict()
    training = record["training"]
    assert isinstance(training, dict)
    del training["seconds"], record["created"], record["version"]
    return record


def assert_same(trained: Trained, run: TrainingRun, other: Trained, other_run: TrainingRun) -> None:
    assert trained.entry.z_bytes() == other.entry.z_bytes()
    assert made(trained.entry) == made(other.entry)
    assert lines_of(run) == lines_of(other_run)
    state, wanted = run.folder.load(), other_run.folder.load()
    assert state is not None
    assert wanted is not None
    assert replace(state, seconds=0, tensors={}) == replace(wanted, seconds=0, tensors={})
    for name, tensor in wanted.tensors.items():
        assert torch.equal(state.tensors[name], tensor), name


def resumed(
    first: TrainingRun, open_counting: Open, registry: LocalRegistry, task: Task | None = None
) -> tuple[Trained, TrainingRun]:
    """Interrupt `first` where it was told to be, and finish it as another process would; `task` is its own, if any."""
    with pytest.raises(KeyboardInterrupt):
        first.run(registry)
    again = open_counting()
    folder = run_to_resume(again.base.identity.folder_name, "odd")
    assert folder.path == first.folder.path
    run = start(again, folder=folder, task=task)
    return run.run(registry), run
