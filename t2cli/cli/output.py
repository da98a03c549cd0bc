"""The one sink of everything t2 says: stdout carries data, stderr carries talk.

Errors raised anywhere below are rendered here, once, by `render_error`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TextIO

from t2cli import paths
from t2cli.errors import Interrupted, OutputError, T2Error

DIM, RED, YELLOW = "2", "31", "33"
LONGEST_LINE = 500  # characters of an error line: some libraries put a whole listing into one message


class Output:
    """Where a command writes: `data` and `emit` to stdout, `say`, `aside` and `warn` to stderr.

    With `json`, stdout carries JSON objects only, so `data` writes nothing; without it `emit` writes
    nothing. A command calls both and never asks. `quiet` silences talk and progress, never a warning. `mute` is for
    a process beside another one that says it all: nothing is written but errors.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, mute: bool = False) -> None:
        self.json = json and not mute
        self.quiet = quiet or mute
        self.mute = mute

    def data(self, text: str, *, end: str = "\n") -> None:
        """Write `text` for people to stdout, at once; nothing with --json."""
        if not self.json and not self.mute:
            write_stdout(text + end)

    def emit(self, command: str, fields: Mapping[str, object], *, version: int = 1) -> None:
        """Write one JSON object on one line: "schema": "t2.<command>/<version>", then `fields`.

        Nothing without --json. ValueError if a field is NaN or infinite: that would not be JSON.
        """
        if self.json:
            import json

            # Pure ASCII, so that no locale, pipe or lone surrogate can make the line unwritable.
            record = {"schema": f"t2.{command}/{version}", **fields}
            write_stdout(json.dumps(record, allow_nan=False) + "\n")

    def say(self, text: str) -> None:
        """Write a line of talk to stderr unless quiet."""
        if not self.quiet:
            write_stderr(text)

    def aside(self, text: str) -> None:
        """Say `text` dimmed where the terminal can: the dispatch line."""
        self.say(styled(text, DIM))

    def warn(self, text: str) -> None:
        """Write "warning: `text`" to stderr as one line, also when quiet."""
        if self.mute:
            return
        write_stderr(styled("warning:", YELLOW) + " " + one_line(text))


def write_stdout(text: str) -> None:
    """Write `text` to stdout and flush it.

    BrokenPipeError if the reader has gone, OutputError if it cannot be written for another reason.
    """
    if sys.stdout is None:  # started with stdout closed
        return
    from t2cli.cli.progress import paused

    try:
        with paused() if sys.stdout.isatty() else contextlib.nullcontext():
            sys.stdout.write(text)
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise output_error(error) from error


def output_error(error: OSError) -> OutputError:
    """Return the error of a stdout that cannot be written; what still waits to be written is thrown away."""
    discard(sys.stdout)
    return OutputError(f"standard output could not be written: {error.strerror or error}")


def write_stderr(text: str) -> None:
    """Write a line to stderr, above a progress bar if one is shown. Never fails: talk must not end work."""
    if sys.stderr is None:
        return
    from t2cli.cli.progress import paused

    try:
        with paused():
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def has_no_reader(stream: TextIO | None) -> bool:
    """Tell whether `stream` is a pipe or socket whose other end is closed."""
    import select

    if stream is None:
        return False
    if not hasattr(select, "poll"):  # Windows: nothing to ask, and stdout is by far the likeliest
        return True
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # not a real file: a test's buffer
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def discard(stream: TextIO) -> None:
    """Send what `stream` still holds, and all that follows, nowhere: its reader has gone.

    Without this the interpreter's own flush at exit would fail again, print and change the exit code.
    """
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # not a real file: a test's buffer
        pass


def styled(text: str, code: str) -> str:
    """Return `text` in the ANSI style `code` if stderr is a terminal that shows it and NO_COLOR is unset."""
    return f"\x1b[{code}m{text}\x1b[0m" if shows_colour(sys.stderr) else text


def shows_colour(stream: TextIO | None) -> bool:
    """Tell whether `stream` is a terminal that shows colours, and NO_COLOR is unset."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return not plain and stream is not None and stream.isatty()


def one_line(text: str, longest: int | None = LONGEST_LINE) -> str:
    """Return `text` on one line, of `longest` characters at most (None: as it is), its control characters escaped.

    Names and descriptions come from other people's files: none may move the cursor or hide text.
    """
    line = " ".join(text.split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else escaped(c) for c in line)
    return line if longest is None or len(line) <= longest else line[: longest - 1] + "…"


def escaped(character: str) -> str:
    """Return the backslash escape of one character."""
    return character.encode("unicode_escape").decode()


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[int] = (),
    shrink: Collection[int] = (),
    width: int | None = None,
) -> str:
    """Return aligned plain columns, two spaces apart, without trailing spaces.

    `right` are the indices of right-aligned columns. Lines longer than `width` (None: as wide as
    stdout's terminal, no limit elsewhere) are avoided by shortening the cells of columns `shrink`,
    the widest first and none below 6 characters; without such columns long lines stay long.
    """
    lines = [[one_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if width is None and sys.stdout is not None and sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
    if width is not None:
        _shrink(widths, shrink, width)
    return "\n".join(_row(line, widths, right) for line in lines)


def interval(ends: tuple[float, float], number: str) -> str:
    """Return an interval as in [0.353, 0.463], each end in the format `number`."""
    return f"[{number.format(ends[0])}, {number.format(ends[1])}]"


def _shrink(widths: list[int], shrink: Collection[int], width: int) -> None:
    """Take characters from the widest of the columns `shrink` until the line fits or none can give more."""
    excess = sum(widths) + 2 * (len(widths) - 1) - width
    while excess > 0 and (able := [i for i in shrink if widths[i] > 6]):
        widths[max(able, key=lambda i: widths[i])] -= 1
        excess -= 1


def _row(cells: Sequence[str], widths: Sequence[int], right: Collection[int]) -> str:
    fitted = [c if len(c) <= w else c[: w - 1] + "…" for c, w in zip(cells, widths, strict=True)]
    aligned = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(fitted, widths, strict=True))]
    return "  ".join(aligned).rstrip()


def render_error(error: BaseException) -> int:
    """Write `error` to stderr in at most three lines (what, why, what to do) and return its exit code.

    T2Error: its message (a second line of it is the why) and hint. KeyboardInterrupt: one word.
    Usage errors that Typer found: as ours. Anything else is a bug and says so.
    With T2_DEBUG=1 the traceback comes first.
    """
    if paths.debug():
        import traceback

        write_stderr("".join(traceback.format_exception(error)).rstrip())
    what, hint, code = _described(error)
    head = "interrupted" if code == Interrupted.exit_code else "error"
    first, *rest = [line for line in what.splitlines() if line.strip()] or [type(error).__name__]
    if first == head:
        write_stderr(head)
    else:
        write_stderr(f"{styled(head + ':', RED)} {one_line(first)}")
    if rest:
        write_stderr(one_line(" ".join(rest)))
    if hint:
        write_stderr(f"hint: {one_line(hint)}")
    return code


def _described(error: BaseException) -> tuple[str, str, int]:
    """Return what to say of `error`, a hint, and the exit code."""
    if isinstance(error, T2Error):
        return error.message, error.hint, error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "", Interrupted.exit_code
    # Typer's usage errors have no public class in every version; they all have format_message().
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}", "check the path and its permissions", T2Error.exit_code
    if callable(message := getattr(error, "format_message", None)):
        command = getattr(getattr(error, "ctx", None), "command_path", "t2")
        # Newer versions put pydantic's prefix into the text.
        text = str(message()).replace("Value error, ", "")
        return one_line(text), f"{command} --help shows the usage", getattr(error, "exit_code", 2)
    hint = "this is a bug in t2: run it again with T2_DEBUG=1 and report the traceback"
    return one_line(f"{type(error).__name__}: {error}"), "" if paths.debug() else hint, 1
