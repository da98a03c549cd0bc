"""What a run tells while it goes on: a record per step in metrics.jsonl, and whoever listens."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from t2cli.errors import T2Error
from t2cli.files import disk_error, write_atomic


@dataclass(frozen=True)
class StepRecord:
    """One line of metrics.jsonl. Times in seconds, `tokens` and `tokens_per_second` of generated tokens."""

    step: int  # counted from 1
    steps: int
    reward: float  # mean over the rollouts, in [-1, 1]
    kl: float | None  # mean k3 estimate per token against the base; None: not measured
    informative: float  # share of prompts with both right and wrong rollouts
    gradient_norm: float
    learning_rate: float
    tokens: int
    tokens_per_second: float
    seconds: float  # of this step
    elapsed: float  # of the run, interruptions left out
    eta: float  # until the last step
    validation: float | None = None  # greedy accuracy on the validation examples, where they were run
    rollouts: int = 0
    temperature: float | None = None  # that they were sampled at; None: they were not
    collapse: str = ""  # why the policy was given up at this step, where it was


class Listener(Protocol):
    """Shows the progress of a run to a person; the training code prints nothing itself."""

    def stage(self, what: str, total: int) -> None:
        """A stage of `total` units begins (and ends the one before); total 0 ends the last."""

    def advance(self, units: int) -> None:
        """Units of the current stage are done."""

    def step(self, record: StepRecord) -> None:
        """A training step is done."""

    def note(self, text: str) -> None:
        """Something worth a line happened."""


class Silent:
    """A listener that shows nothing."""

    def stage(self, what: str, total: int) -> None:
        """Ignore it."""

    def advance(self, units: int) -> None:
        """Ignore it."""

    def step(self, record: StepRecord) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""


class MetricsFile:
    """metrics.jsonl of a run: append-only, and cut back to the checkpoint's step on resume."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: StepRecord) -> None:
        """Add one line. Raises T2Error when the disk is full."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record)) + "\n")
                file.flush()
                os.fsync(file.fileno())  # before the checkpoint, which is: a resume reads both
        except OSError as error:
            raise disk_error(self.path, error) from error

    def cut_after(self, step: int) -> None:
        """Drop the lines of steps that a checkpoint at `step` does not know, and half-written ones."""
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                break  # a line cut short by a kill is the last
        write_atomic(self.path, "".join(line + "\n" for line in kept))

    def done(self) -> list[StepRecord]:
        """Return the records up to the first line that is none, such as one that is being written just now."""
        records: list[StepRecord] = []
        try:
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                records.append(StepRecord(**json.loads(line)))
        except (OSError, ValueError, TypeError):
            pass
        return records

    def read(self) -> list[StepRecord]:
        """Return all records, none before the first step has ended. Raises T2Error if a line is none."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
            return [StepRecord(**json.loads(line)) for line in lines]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:
            raise T2Error(f"{self.path} is no metrics file: {error}", hint="the run's other files are whole") from error
