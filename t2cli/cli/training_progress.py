"""Shows a training run: a line per step, and a bar where a person watches."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from t2cli.cli.output import Output
from t2cli.cli.progress import Progress, progress
from t2cli.training.metrics import StepRecord


class TrainingProgress:
    """A training.metrics.Listener that writes to stderr."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._stack = ExitStack()
        self._bar = Progress(None)

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def stage(self, what: str, total: int) -> None:
        """Replace the bar; total 0 leaves none."""
        self._stack.close()
        self._bar = Progress(None)
        if total:
            self._bar = self._stack.enter_context(progress(what, total, quiet=self._out.quiet))

    def advance(self, units: int) -> None:
        """Move the bar."""
        self._bar.advance(units)

    def step(self, record: StepRecord) -> None:
        """Write a step's line and move the bar."""
        validation = "" if record.validation is None else f"  validation {record.validation:.3f}"
        kl = "" if record.kl is None else f"  KL {record.kl:.4f}"
        speed = f"  {record.tokens_per_second:.0f} tokens/s" if record.tokens else ""
        self._out.say(
            f"step {record.step}/{record.steps}  reward {record.reward:+.3f}{kl}{speed}  "
            f"{record.seconds:.1f} s  ETA {minutes(record.eta)}{validation}"
        )
        self._bar.advance()

    def note(self, text: str) -> None:
        """Write a line."""
        self._out.say(text)


def minutes(seconds: float) -> str:
    """Return a duration as m:ss or h:mm:ss."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
