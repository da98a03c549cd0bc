"""Run folders and listeners that stop a run where a test wants it."""

from __future__ import annotations

from t2cli.training.checkpoint import RunFolder, RunState
from t2cli.training.metrics import Silent, StepRecord


class KilledAtTheEnd(RunFolder):
    """A run folder whose process is killed after the expert is published, and before the run knows."""

    def finish(self, reference: str) -> None:
        raise KeyboardInterrupt


class InterruptedFolder(RunFolder):
    """A run folder whose user presses Ctrl-C when it is about to write the checkpoint of a step."""

    def __init__(self, folder: RunFolder, step: int) -> None:
        super().__init__(folder.path)
        self.step = step

    def save(self, state: RunState) -> None:
        if state.step == self.step:
            raise KeyboardInterrupt
        super().save(state)


class Heard(Silent):
    """A listener that keeps what it hears, and raises KeyboardInterrupt where asked."""

    def __init__(self, *, after_step: int | None = None, in_stage: str = "") -> None:
        self.after_step, self.in_stage = after_step, in_stage
        self.records: list[StepRecord] = []
        self.stages: list[tuple[str, int]] = []
        self.advanced = 0

    def step(self, record: StepRecord) -> None:
        self.records.append(record)
        if record.step == self.after_step:
            raise KeyboardInterrupt

    def stage(self, what: str, total: int) -> None:
        self.stages.append((what, total))
        if self.in_stage and what.startswith(self.in_stage):
            raise KeyboardInterrupt

    def advance(self, units: int) -> None:
        self.advanced += units
