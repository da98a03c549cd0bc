"""The progress bar: on a terminal's stderr only. The terminal is a real pseudo-terminal."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pty = pytest.importorskip("pty", reason="this platform has no pseudo-terminals")
termios = pytest.importorskip("termios")

SCRIPT = """
import sys, time
from t2cli.cli.output import Output
from t2cli.cli.progress import progress
with progress("working", unit="step", quiet="quiet" in sys.argv) as bar:
    bar.expect(4)
    for i in range(4):
        bar.advance()
        bar.note(f"reward {i}")
    Output().say("half time")
    Output().aside("math")
with progress("fetching", 3_000_000, in_bytes=True, quiet="quiet" in sys.argv) as bar:
    for _ in range(30):
        bar.advance(100_000)
        time.sleep(0.01)
print("data")
if sys.stdout.isatty():
    with progress("answering", 2) as bar:
        bar.advance()
        Output(json=True).emit("chat", {"answer": 7})
"""


def run(*arguments: str, terminal: bool, both: bool = False, **environment: str) -> tuple[str, str]:
    """Return stdout and stderr of SCRIPT, stderr being a terminal or a pipe, or all that a terminal shows of `both`."""
    command = [sys.executable, "-c", SCRIPT, *arguments]
    settings = {**os.environ, "TERM": "xterm", **environment}
    if not terminal:
        result = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
        return result.stdout, result.stderr
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    try:
        output = theirs if both else subprocess.PIPE
        with subprocess.Popen(command, stdout=output, stderr=theirs, env=settings) as process:
            os.close(theirs)
            seen = b""
            while chunk := _read(ours):
                seen += chunk
            data = process.stdout.read() if process.stdout is not None else b""
        assert process.returncode == 0, seen
        return data.decode(), seen.decode()
    finally:
        os.close(ours)


def _read(handle: int) -> bytes:
    try:
        return os.read(handle, 4096)
    except OSError:  # Linux's way to say that the other side has closed
        return b""


def test_a_terminal_shows_counts_bytes_and_notes() -> None:
    stdout, stderr = run(terminal=True)
    assert stdout == "data\n"
    assert "working: 100%" in stderr
    assert "4/4" in stderr
    assert "reward 3" in stderr
    assert re.search(r"fetching: +\d+%.* \S+M/3.00M", stderr)


def test_a_line_said_while_a_bar_is_shown_stands_alone() -> None:
    _, stderr = run(terminal=True)
    before, _, after = stderr.partition("half time")
    assert before.endswith(("\r", "\x1b[A"))
    assert after.startswith("\r\n")


def test_data_said_while_a_bar_is_shown_stand_alone_on_the_same_terminal() -> None:
    _, shown = run(terminal=True, both=True)
    before, _, after = shown.partition('{"schema": "t2.chat/1", "answer": 7}')
    assert "answering" in before
    assert before.endswith(("\r", "\x1b[A"))
    assert after.startswith("\r\n")


def test_the_dispatch_line_is_dim_only_where_colours_are_wanted() -> None:
    assert "\x1b[2mmath\x1b[0m" in run(terminal=True, NO_COLOR="")[1]
    assert "\x1b[2m" not in run(terminal=True, NO_COLOR="1")[1]
    assert "\x1b[2m" not in run(terminal=True, NO_COLOR="", TERM="dumb")[1]


def test_silent_without_a_terminal_and_when_quiet() -> None:
    assert run(terminal=False) == ("data\n", "half time\nmath\n")
    assert "working" not in run("quiet", terminal=True)[1]
