"""One progress bar: on stderr, only where a person watches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


class Progress:
    """A bar that is advanced; the same calls do nothing where no bar is shown."""

    def __init__(self, bar: tqdm[Any] | None) -> None:
        self._bar = bar

    def advance(self, n: int = 1) -> None:
        """Count `n` more units (bytes for a bar of bytes)."""
        if self._bar is not None:
            self._bar.update(n)

    def expect(self, total: int | None) -> None:
        """Set the total, where it becomes known only after the start."""
        if self._bar is not None:
            self._bar.total = total
            self._bar.refresh()

    def note(self, text: str) -> None:
        """Show `text` after the bar, as in "reward 0.31"."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)


@contextlib.contextmanager
def progress(
    what: str, total: int | None = None, *, unit: str = "", in_bytes: bool = False, quiet: bool = False
) -> Iterator[Progress]:
    """Show a bar named `what` on stderr while the block runs, and clear it afterwards.

    `total` is in units, or in bytes with `in_bytes` (shown as kB, MB); None: unknown, only counted.
    Silent if `quiet` or stderr is no terminal.
    """
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield Progress(None)
        return
    from tqdm import tqdm

    with tqdm(
        desc=what,
        total=total,
        unit="B" if in_bytes else f" {unit}" if unit else "",
        unit_scale=in_bytes,
        leave=False,
        dynamic_ncols=True,
        file=sys.stderr,
    ) as bar:
        yield Progress(bar)


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Take any bar off the screen while the block writes to stderr, so that lines stay whole."""
    if "tqdm" not in sys.modules:  # no bar was ever shown, and importing tqdm costs time
        yield
        return
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stderr):
        yield
