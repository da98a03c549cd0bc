"""Runs a Python program that nobody should trust, and talks to it line by line.

With bubblewrap a program has namespaces of its own: no network, no processes but itself, and of the file system only
the Python interpreter and system libraries; no environment, no /proc, no capabilities, no system calls that would make
processes, or memory that no limit counts (t2cli.tasks.seccomp). It cannot write anywhere: a file system in memory has a
limit on its blocks, but its names, links and inodes are memory of the kernel that no limit counts. Everything in its
namespaces dies with it. Its CPU time, memory, files and threads are limited by the kernel, its wall-clock time and the
length of its lines by this module.

What this does not protect from: a hole in the kernel itself, and on machines that t2cli.tasks.seccomp does not know,
memory that is counted by no limit. Without bubblewrap (`unsafe`) there are only the limits: such a program can read
and change what the user can, and reach the network.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from t2cli.errors import T2Error
from t2cli.tasks.seccomp import program as seccomp_program

MEBIBYTE = 1 << 20
UNSAFE_HINT = "or accept the risk with --unsafe-code"


@dataclass(frozen=True)
class Limits:
    """What a program may use; the kernel kills it or refuses more beyond that."""

    cpu_seconds: int = 5  # of all its threads
    wall_seconds: float = 15.0  # from its start to its last line
    memory: int = 512 * MEBIBYTE  # address space
    disk: int = 16 * MEBIBYTE  # of a file, where there is no sandbox
    files: int = 32  # open at a time
    processes: int = 64  # with threads
    line: int = MEBIBYTE  # the longest line it may send

    def arguments(self) -> list[str]:
        """Return the limits that a program sets for itself before anything else, as NAME=VALUE."""
        values = {
            "RLIMIT_CPU": self.cpu_seconds,
            "RLIMIT_AS": self.memory,
            "RLIMIT_FSIZE": self.disk,
            "RLIMIT_NOFILE": self.files,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_CORE": 0,
        }
        return [f"{name}={value}" for name, value in values.items()]


class SandboxClosed(Exception):  # noqa: N818 - not always an error
    """The program ended, or broke a limit and was killed; `reason` says which, in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def require_sandbox(*, unsafe: bool = False) -> None:
    """Raise T2Error unless model-written code can be run here; `unsafe` asks for no more than limits."""
    if os.name != "posix":
        raise T2Error(
            "model-written code cannot be run on this system: its limits need POSIX",
            hint="use Linux, or WSL on Windows",
        )
    if not unsafe and (reason := _trial()):
        raise T2Error(f"model-written code is only run in a sandbox: {reason}", hint=_hint(reason))


def _hint(reason: str) -> str:
    if not sys.platform.startswith("linux"):
        return f"use Linux, {UNSAFE_HINT}"
    if "not installed" in reason:
        return f"install it (on Debian and Ubuntu: apt install bubblewrap), {UNSAFE_HINT}"
    return f"allow user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0), {UNSAFE_HINT}"


@functools.cache
def _trial() -> str:
    """Return why programs cannot be sandboxed here, or nothing: found out once, by doing it."""
    if not sys.platform.startswith("linux"):
        return "it needs bubblewrap, which there is for Linux only"
    if shutil.which("bwrap") is None:
        return "it needs bubblewrap (the command bwrap), which is not installed"
    text = "import _json, ast, json, math, random, resource, typing; print('started', flush=True); input()"
    with Program(text, Limits(), errors=True) as trial:
        try:
            return "" if trial.receive() == b"started" else "the interpreter does not start in it"
        except SandboxClosed:
            lines = trial.complaint().splitlines()
            return f"bwrap does not work here: {lines[-1] if lines else 'it says nothing'}"


@functools.cache
def _interpreter() -> str:
    """Return the interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@functools.cache
def _file_system() -> tuple[str, ...]:
    """Return bwrap's arguments for a file system with the interpreter, its libraries and nothing else."""
    arguments: list[str] = []
    libraries = ["/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/nix/store"]
    own = [*(str(Path(sys.base_prefix) / name) for name in ("lib", "lib64")), sysconfig.get_path("stdlib")]
    bound: list[str] = []
    for folder in [*libraries, *own, _interpreter()]:
        path = Path(folder)
        if not path.exists() or any(path.is_relative_to(other) for other in bound):
            continue
        if path.is_symlink() and path.parent == Path("/"):
            arguments += ["--symlink", str(path.readlink()), folder]
        else:
            arguments += ["--ro-bind", os.path.realpath(folder), folder]
        bound.append(folder)
    for packages in sorted(Path(sysconfig.get_path("stdlib")).glob("*-packages")):
        arguments += ["--size", "4096", "--tmpfs", str(packages), "--remount-ro", str(packages)]
    for device in ("null", "urandom"):
        arguments += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    return tuple(arguments)


def _bubblewrap(seccomp: int | None) -> list[str]:
    """Return the command that precedes a program; `seccomp` is the descriptor its filter is read from."""
    return [
        *(shutil.which("bwrap") or "bwrap", "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session"),
        *("--clearenv", "--setenv", "PYTHONHASHSEED", "0", "--cap-drop", "ALL"),
        *("--uid", "65534", "--gid", "65534", "--hostname", "sandbox"),
        *_file_system(),
        # Last, so that nothing can be written: the root is a file system in memory without a limit.
        *("--dir", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"),  # noqa: S108
        *(() if seccomp is None else ("--seccomp", str(seccomp))),
        "--",
    ]


class Program:
    """A running program: text in, lines out. A context manager: leaving it kills what still runs.

    `text` is Python source that honours the limits given to it as arguments (t2cli.tasks.sandboxed). `unsafe`
    leaves the sandbox away. `errors` keeps what the program writes to standard error for `complaint`.
    """

    def __init__(self, text: str, limits: Limits, *, unsafe: bool = False, errors: bool = False) -> None:
        self.limits = limits
        self.deadline = time.monotonic() + limits.wall_seconds
        self._rest = b""
        self._stack = contextlib.ExitStack()
        # -I would also ignore PYTHONHASHSEED, without which the order of sets, and rewards with it, would differ
        # between runs. The rest of it is here: no user site, no current folder, and no other variable is set.
        command = [_interpreter(), "-s", "-S", "-P", "-B", "-c", text, *limits.arguments()]
        filters = () if unsafe else tuple(self._stack.enter_context(_filter()))
        if unsafe:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        else:
            folder = None
            command = _bubblewrap(filters[0] if filters else None) + command
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if errors else subprocess.DEVNULL,
                cwd=folder,
                env={"PYTHONHASHSEED": "0"},
                start_new_session=True,
                pass_fds=filters,
                bufsize=0,
            )
        except BaseException:
            self._stack.close()
            raise
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: PT018
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def send(self, line: bytes) -> None:
        """Write `line` and a line break; SandboxClosed when the program does not take it."""
        rest = memoryview(line + b"\n")
        while rest:
            self._wait(self._in, select.POLLOUT)
            try:
                rest = rest[os.write(self._in, rest) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise SandboxClosed("ended") from error

    def receive(self) -> bytes:
        """Return the next line without its line break; SandboxClosed at its end, on time, or when it is too long."""
        pieces, length = [self._rest], len(self._rest)
        while b"\n" not in pieces[-1]:
            if length > self.limits.line:
                raise SandboxClosed("too much output")
            self._wait(self._out, select.POLLIN)
            try:
                piece = os.read(self._out, 1 << 16)
            except BlockingIOError:
                continue
            if not piece:
                raise SandboxClosed("ended")
            pieces.append(piece)
            length += len(piece)
        line, _, self._rest = b"".join(pieces).partition(b"\n")
        return line

    def renew(self) -> None:
        """Start the wall-clock time again: a program that serves one request after another."""
        self.deadline = time.monotonic() + self.limits.wall_seconds

    def complaint(self) -> str:
        """Return what an ended program wrote to standard error, at most 4 kB of it."""
        self._process.kill()
        stream = self._process.stderr
        return stream.read(4096).decode(errors="replace") if stream else ""

    def kill(self) -> None:
        """End the program with everything it started, and wait until it is gone."""
        # bwrap's death is that of its process namespace (--die-with-parent); without it the group is all there is.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.wait()
        self._stack.close()

    def _wait(self, descriptor: int, event: int) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        left = self.deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise SandboxClosed("took too long")


@contextlib.contextmanager
def _filter() -> Iterator[list[int]]:
    """Give the descriptor that bwrap reads the system call filter from, if there is one."""
    code = seccomp_program()
    if code is None:
        yield []
        return
    reading, writing = os.pipe()
    try:
        os.write(writing, code)
        os.close(writing)
        yield [reading]
    finally:
        os.close(reading)
