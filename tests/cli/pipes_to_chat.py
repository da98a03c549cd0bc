"""A t2 chat process that is asked line by line."""

from __future__ import annotations

import json
import select
import subprocess
from typing import Any


class Running:
    """A process that is asked line by line."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, line: str) -> dict[str, Any]:
        self.write(line)
        stdout = self.process.stdout
        assert stdout is not None
        assert select.select([stdout], [], [], 60)[0]
        found: dict[str, Any] = json.loads(stdout.readline())
        return found

    def end(self) -> tuple[int, list[str]]:
        _, stderr = self.process.communicate(timeout=60)
        return self.process.returncode, stderr.decode().splitlines()
