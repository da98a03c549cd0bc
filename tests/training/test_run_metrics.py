"""metrics.jsonl: cut back to the checkpoint on resume, whatever a kill has left in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2cli.errors import T2Error
from t2cli.training.metrics import MetricsFile, StepRecord


def record(step: int) -> StepRecord:
    return StepRecord(step, 9, -0.5, 0.01, 0.25, 1.5, 2e-3, 96, 210.5, 1.5, 1.5 * step, 3.0, None if step % 2 else 0.3)


@pytest.fixture
def metrics(tmp_path: Path) -> MetricsFile:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        file.append(record(step))
    return file


def test_what_is_appended_is_read(metrics: MetricsFile) -> None:
    assert metrics.read() == [record(1), record(2), record(3)]


@pytest.mark.parametrize("kept", range(4))
def test_steps_that_the_checkpoint_does_not_know_are_cut(kept: int, metrics: MetricsFile) -> None:
    metrics.cut_after(kept)
    assert metrics.read() == [record(step) for step in range(1, kept + 1)]


@pytest.mark.parametrize("rest", ['{"step": 4, "rew', '{"step": 4', "\0\0\0\0", "\n\n", "7\n", '{"x": 1}\n', "[1]"])
def test_a_line_cut_short_is_dropped(rest: str, metrics: MetricsFile) -> None:
    with metrics.path.open("a") as file:
        file.write(rest)
    metrics.cut_after(3)
    metrics.append(record(4))
    assert metrics.read() == [record(1), record(2), record(3), record(4)]


def test_bytes_that_are_no_text_are_dropped(metrics: MetricsFile) -> None:
    with metrics.path.open("ab") as file:
        file.write(b"\xff\xfe\x80 garbage")
    metrics.cut_after(9)
    assert metrics.read() == [record(1), record(2), record(3)]


def test_without_a_file_there_is_nothing_to_cut_or_to_read(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.cut_after(3)
    assert not file.path.exists()
    assert file.read() == []


def test_a_damaged_file_is_said_to_be_one(metrics: MetricsFile) -> None:
    with metrics.path.open("a") as file:
        file.write("{")
    with pytest.raises(T2Error, match="no metrics file"):
        metrics.read()


def test_a_folder_that_has_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(T2Error, match="could not be written"):
        MetricsFile(tmp_path / "gone" / "metrics.jsonl").append(record(1))
