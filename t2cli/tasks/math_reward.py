"""The reward `math`: LaTeX answers that mean the same (math-verify, of the extra `tasks`), judged in another process.

Answers are whatever a model writes, and sympy may simplify some for ever, in C code that no alarm interrupts (as in
9^{9^{9^9}}); math-verify's own limits are such alarms, which also work in the main thread alone. So a worker process
with a limit on time and memory judges, one answer after the other; one that takes too long is wrong, and the next
gets a new worker.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO

from t2cli.errors import T2Error

SECONDS = 8.0  # for one answer: more than the three steps of the worker may take
STARTING = 60.0  # importing sympy on a busy machine
MAX_CHARACTERS = 20_000


def math(answer: str, completion: str, candidates: Sequence[str] = ()) -> bool:
    r"""Tell whether the completion's last formula (`\boxed{}` before others) means the same as the LaTeX `answer`.

    The question is the only one of `candidates`: what it asks to be calculated means the same as its answer, and is
    none. Raises T2Error if math-verify is not installed or cannot be started.
    """
    if not completion.strip() or len(completion) > MAX_CHARACTERS:
        return False
    return _judge.ask(answer, completion, "\n".join(candidates))


def check_installed() -> None:
    """Raise T2Error unless math-verify is installed; it is not imported."""
    if importlib.util.find_spec("math_verify") is None:
        raise T2Error(
            "answers of this task are judged by math-verify, which is not installed",
            hint='pip install "t2cli[tasks]"',
        )


class _Judge:
    """A worker process that is there when it is needed; threads take turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def ask(self, answer: str, completion: str, question: str = "") -> bool:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            assert self._process is not None
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(json.dumps([answer, completion, question]) + "\n")
                self._process.stdin.flush()
                return self._lines.get(timeout=SECONDS) == "true\n"
            except (queue.Empty, OSError):  # it computes for ever, or ran out of memory
                self.stop()
                return False
            except BaseException:  # Ctrl-C: the next answer must not get this one's verdict
                self.stop()
                raise

    def _start(self) -> None:
        check_installed()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "t2cli.tasks.math_worker"],  # -P: modules of the current folder are not ours
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for the process that trains
        )
        self._lines = queue.SimpleQueue()
        assert self._process.stdout is not None
        threading.Thread(target=_forward, args=(self._process.stdout, self._lines), daemon=True).start()
        try:
            ready = self._lines.get(timeout=STARTING)
        except queue.Empty:
            ready = ""
        if ready != "ready\n":
            self.stop()
            raise T2Error(
                "the process that judges mathematical answers could not be started",
                hint='pip install "t2cli[tasks]" again; `python -m t2cli.tasks.math_worker` shows what is wrong',
            )

    def stop(self) -> None:
        """End the worker."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):  # what could not be sent any more
                    if stream is not None:
                        stream.close()
            self._process = None


def _forward(stream: IO[str], lines: queue.SimpleQueue[str]) -> None:
    with contextlib.suppress(OSError, ValueError):  # closed
        for line in stream:
            lines.put(line)
    lines.put("")  # the end: whoever waits need not wait longer


_judge = _Judge()
atexit.register(_judge.stop)
