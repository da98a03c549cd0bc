"""The reward of model-written code: do its functions pass unit tests?

Two programs run for it, each in a sandbox of its own (t2cli.tasks.sandbox): the candidate, which loads the code
and answers calls, and the judge, which runs the tests. Where the tests call a function of the candidate, this module
carries name and arguments over, and the returned value back.

What that guarantees: the code can influence the verdict by nothing but the plain values its functions return, or
the names of exceptions they raise. It never shares a process, a file, a descriptor or a process table with the tests,
so there is no expected value to read, no comparison, `assert` or result channel to replace, and no secret to find;
leaving, printing, or writing whatever it likes to its own channel answers its own calls at most. Objects that are
not plain values (numbers, text, bytes, lists, tuples, sets, dictionaries, ranges; iterators are read out) arrive
as something that equals nothing. What it does not guarantee: that tests suffice. Code that returns right values for
the wrong reason passes, as before any judge. Arguments are copies: a test of what a function does to its argument
fails. Without the sandbox (`unsafe`) both programs are ordinary processes of one user, and none of this holds.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import NamedTuple

from t2cli.errors import CorruptArtifactError, T2Error
from t2cli.tasks.code_text import extract_code
from t2cli.tasks.sandbox import MEBIBYTE, Limits, Program, SandboxClosed, require_sandbox

PROGRAMS = Path(__file__).parent / "sandboxed"
LIMITS = Limits()
STARTS = 3  # tries to start a program on a machine that is short of something


class Outcome(NamedTuple):
    """Whether all tests passed; `reason` says in a few words why not."""

    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class Suite:
    """Unit tests, as Python.

    `setup` runs before `tests`. `entry` names the function under test; without it those are under test that the
    tests call and `reference`, a right solution, defines; without that too, those that the tests call and nothing
    defines. `prefix` is code that a completion goes on with.
    """

    tests: str
    setup: str = ""
    entry: str = ""
    prefix: str = ""
    reference: str = ""

    @classmethod
    def parse(cls, answer: str) -> Suite:
        """Return the suite that a task's answer holds: the tests themselves, or a JSON object with these fields.

        In JSON, `tests` and `setup` may be lists of texts. Raises CorruptArtifactError for other keys or values.
        """
        if not answer.lstrip().startswith("{"):
            return cls(answer)
        try:
            fields = json.loads(answer)
            known = [each.name for each in dataclass_fields(cls)]
            if unknown := [key for key in fields if key not in known]:
                raise ValueError(f"there is no key {unknown[0]!r}")
            texts = {key: "\n".join(text) if isinstance(text, list) else text for key, text in fields.items()}
            if not all(isinstance(text, str) for text in texts.values()):
                raise TypeError("every value must be text")
            return cls(**texts)
        except (ValueError, TypeError, AttributeError) as error:
            raise CorruptArtifactError(
                f"unit tests cannot be read: {error}",
                hint="give Python, or JSON with tests, setup, entry, prefix and reference",
            ) from error


def suite_problem(answer: str) -> str:
    """Return what keeps `answer` from being a suite; "" for nothing."""
    try:
        suite = Suite.parse(answer)
    except CorruptArtifactError as error:
        return error.message
    if not suite.tests.strip():
        return "the answer holds no unit tests"
    for name in ("setup", "tests", "reference"):
        try:
            ast.parse(getattr(suite, name))
        except (SyntaxError, ValueError, RecursionError) as error:
            return f"the {name} of the answer are no Python: {error!s:.100}"
    return ""


def judge(
    answers: Sequence[str],
    completions: Sequence[str],
    *,
    limits: Limits = LIMITS,
    unsafe: bool = False,
    workers: int | None = None,
) -> list[Outcome]:
    """Return whether each completion's code passes the unit tests of its answer; equal pairs are judged once.

    `workers` completions are judged at a time (default: one per processor). Raises T2Error where no sandbox
    works, unless `unsafe`, and CorruptArtifactError for an answer that is no suite.
    """
    require_sandbox(unsafe=unsafe)
    pairs = []
    for answer, completion in zip(answers, completions, strict=True):
        suite = Suite.parse(answer)
        pairs.append((suite, extract_code(completion, suite)))
    distinct = list(dict.fromkeys(pair for pair in pairs if pair[1].strip()))
    outcomes = {pair: Outcome(False, "no code") for pair in pairs}
    pending, stop = iter(distinct), threading.Event()

    def work(_: int) -> None:
        with Bench(limits, unsafe=unsafe) as bench:
            for pair in pending:  # a list's iterator: threads may share it
                if stop.is_set():
                    return
                outcomes[pair] = bench.judge(*pair)

    threads = min(len(distinct), workers or os.cpu_count() or 1)
    if threads == 0:
        return [outcomes[pair] for pair in pairs]
    with ThreadPoolExecutor(threads, "judge") as executor:
        try:
            list(executor.map(work, range(threads)))
        finally:
            stop.set()
    return [outcomes[pair] for pair in pairs]


@functools.cache
def _text(role: str) -> str:
    return (PROGRAMS / f"{role}.py").read_text(encoding="utf-8")


class Bench:
    """Judges one completion after another; the judge's process is kept, each candidate gets a new one."""

    def __init__(self, limits: Limits = LIMITS, *, unsafe: bool = False) -> None:
        self.limits = limits
        self.unsafe = unsafe
        # Tests are slow only by what they call, and serve many candidates: the time of each is bounded by `renew`.
        self._judge_limits = replace(
            limits,
            cpu_seconds=1 << 20,
            memory=2 * limits.memory,
            line=4 * MEBIBYTE,
            wall_seconds=limits.wall_seconds + 5,
        )
        self._judge: Program | None = None

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def judge(self, suite: Suite, code: str) -> Outcome:
        """Run `code` and the tests of `suite` against it."""
        with self._start("candidate", self.limits) as candidate:
            try:
                candidate.send(ascii(code).encode())
                loaded = candidate.receive()
            except SandboxClosed as closed:
                return Outcome(False, closed.reason)
            if not loaded.startswith(b"v"):
                return Outcome(False, _shown(loaded))
            try:
                return self._run_tests(suite, candidate)
            except SandboxClosed as closed:
                self._close()  # it may wait for an answer that never comes
                return Outcome(False, closed.reason)

    def _run_tests(self, suite: Suite, candidate: Program) -> Outcome:
        if self._judge is None:
            self._judge = self._start("judge", self._judge_limits)
        self._judge.renew()
        setup = f"{suite.prefix}\n{suite.setup}"  # what tests may use of it is the task's, never the candidate's
        job = {"setup": setup, "tests": suite.tests, "entry": suite.entry, "reference": suite.reference}
        self._judge.send(json.dumps(job).encode())
        while (line := self._judge.receive()).startswith(b"c"):
            candidate.send(line[1:])
            self._judge.send(candidate.receive())
        return Outcome(True) if line == b"p" else Outcome(False, _shown(line))

    def _start(self, role: str, limits: Limits) -> Program:
        """Start a program and wait for its first line: without it the sandbox is broken, and no code to blame."""
        for _ in range(STARTS):
            program = Program(_text(role), limits, unsafe=self.unsafe)
            try:
                if program.receive() == b"started":
                    return program
            except SandboxClosed:
                pass
            except BaseException:
                program.kill()
                raise
            program.kill()
        raise T2Error("the sandbox does not start any more", hint="is the machine out of memory or processes?")

    def _close(self) -> None:
        if self._judge is not None:
            self._judge.kill()
            self._judge = None


def _shown(line: bytes) -> str:
    """Return the text of a line that says why something failed, in one short line without control characters."""
    text = line[1:301].decode(errors="replace").strip('"')
    return "".join(c if c.isprintable() else "?" for c in text)
