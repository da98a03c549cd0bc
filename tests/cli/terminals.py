"""A process on a pseudo-terminal, as a person has one."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from typing import Any

EDITING = "\x1b[?2004h"  # the line editor asks for pasted text in brackets: it reads from now on


class Terminal:
    """A process on a terminal of its own, and what a person sees of it."""

    def __init__(self, command: list[str], *, kind: str = "dumb", **streams: Any) -> None:
        import pty

        self.master, slave = pty.openpty()
        given = {"stdin": slave, "stdout": slave, "stderr": slave, **streams}
        self.process = subprocess.Popen(
            command,
            **given,
            env={**os.environ, "TERM": kind, "PROMPT_TOOLKIT_NO_CPR": "1"},
            start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(slave), os.O_RDWR)),  # makes it the controlling one
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, text: str, *, seconds: float = 60) -> str:
        """Read until `text` has come; return what came before it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            left = end - time.monotonic()
            assert left > 0, f"no {text!r} in {self.seen!r}"
            if select.select([self.master], [], [], left)[0]:
                try:
                    self.seen += os.read(self.master, 4096).decode(errors="replace")
                except OSError as error:  # the other end is closed
                    raise AssertionError(f"ended without {text!r}: {self.seen!r}") from error
        before, _, self.seen = self.seen.partition(text)
        return before

    def prompted(self) -> str:
        """Read until a line can be edited; return what came before it."""
        return self.until(EDITING)

    def record(self) -> dict[str, Any]:
        """Return the next answer of --json."""
        self.until('{"schema"')
        loaded: dict[str, Any] = json.loads('{"schema"' + self.until("}}") + "}}")
        return loaded

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
