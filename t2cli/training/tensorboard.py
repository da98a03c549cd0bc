"""The steps of a run as TensorBoard's event files, in `tensorboard/` inside the run's folder.

They are written anew from metrics.jsonl when a run is resumed, under TensorBoard's own mark that what came before is
void: no point is shown twice, and none that a kill kept from the disk is missing.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from t2cli.errors import T2Error
from t2cli.training.checkpoint import RunFolder
from t2cli.training.metrics import Listener, StepRecord

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NO_SERIES = ("step", "steps", "elapsed", "eta", "collapse")


def check_tensorboard() -> None:
    """Raise T2Error where the package is missing."""
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise T2Error(
            "events for TensorBoard need the package tensorboard, which is not installed",
            hint='install the extra "tensorboard": pip install "t2cli[tensorboard]"; t2 curve needs nothing more',
        ) from error


class WithEvents:
    """A listener that writes events and passes on what it hears to another."""

    def __init__(self, listener: Listener, folder: RunFolder) -> None:
        check_tensorboard()
        self._listener = listener
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._began = 0.0  # when the run would have begun, had nothing interrupted it

    def stage(self, what: str, total: int) -> None:
        """Pass it on; training begins with the steps that are done, which only now are those of the checkpoint."""
        if what == "train":
            self._open()
        self._listener.stage(what, total)

    def advance(self, units: int) -> None:
        """Pass it on."""
        self._listener.advance(units)

    def step(self, record: StepRecord) -> None:
        """Write a step's numbers to disk, and pass it on."""
        self._write(record)
        self._listener.step(record)

    def note(self, text: str) -> None:
        """Pass it on."""
        self._listener.note(text)

    def close(self) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.close()

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        home = self._folder.path / "tensorboard"
        again = home.is_dir()
        self._writer = SummaryWriter(str(home), purge_step=1 if again else None)
        done = self._folder.metrics.done()
        self._began = time.time() - (done[-1].elapsed if done else 0.0)
        for record in done:
            self._write(record)

    def _write(self, record: StepRecord) -> None:
        if self._writer is None:
            return
        for name, value in asdict(record).items():
            if name not in NO_SERIES and value is not None:
                self._writer.add_scalar(name, value, record.step, walltime=self._began + record.elapsed)
        self._writer.flush()
