"""A training that its user interrupts."""

from __future__ import annotations

import signal
import subprocess


def ctrl_c_at(command: list[str], line: str) -> tuple[int, str, str]:
    """Run a command, press Ctrl-C once a line of its talk begins so; return exit code, stdout, and the talk after."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith(line):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    return process.returncode, stdout, stderr
