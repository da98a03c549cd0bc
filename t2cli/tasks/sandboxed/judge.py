"""Inside a sandbox of its own: runs unit tests, whose calls of the candidate go out and come back as plain values.

The candidate's code never enters this process. A function under test is a stub: it writes its name and
arguments to standard output and reads what was returned, as JSON, from standard input; values are rebuilt from
builtin types alone, so that no object of the candidate's takes part in a comparison.

Arguments are limits as NAME=VALUE. Every line of standard input is a job, {"setup", "tests", "entry", "reference"};
it is answered by any number of lines `c` and a call, each of which gets a reply, and one line `p` (passed) or `f`
(failed) and why.
"""

import ast
import builtins
import json
import os
import random
import resource
import sys
from collections.abc import Callable
from typing import BinaryIO

# What tests may expect a candidate to raise. Never StopIteration: raised out of a stub it would silently end
# `all(map(f, cases))` before the first case.
RAISED = (
    *("ArithmeticError", "AssertionError", "AttributeError", "IndexError", "KeyError", "LookupError", "NameError"),
    *("NotImplementedError", "OverflowError", "RecursionError", "RuntimeError", "TypeError", "UnicodeError"),
    *("ValueError", "ZeroDivisionError"),
)


class CandidateError(Exception):
    """The candidate raised something that tests have no business with, or sent what is no value."""


class Opaque:
    """A returned object that is no plain value: it has a truth, and equals nothing."""

    def __init__(self, truth: bool) -> None:
        self.truth = truth

    def __bool__(self) -> bool:
        return self.truth


def decode(data: object) -> object:
    """Return the value that the candidate's side encoded; CandidateError for anything else."""
    if isinstance(data, list):
        return [decode(each) for each in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise CandidateError("no value")
    ((tag, body),) = data.items()
    if tag not in DECODERS:
        raise CandidateError("no value")
    return DECODERS[tag](body)


def decode_dict(pairs: list[list[object]]) -> dict[object, object]:
    """Return the dictionary of [key, value] pairs."""
    return {decode(key): decode(value) for key, value in pairs}


DECODERS: dict[str, Callable[..., object]] = {
    "i": lambda body: int(body, 16),
    "t": lambda body: tuple(decode(list(body))),  # type: ignore[arg-type]
    "s": lambda body: set(decode(list(body))),  # type: ignore[call-overload]
    "z": lambda body: frozenset(decode(list(body))),  # type: ignore[call-overload]
    "d": decode_dict,
    "c": lambda body: complex(*body),
    "b": bytes.fromhex,
    "r": lambda body: range(*body),
    "n": lambda body: iter(decode(list(body))),  # type: ignore[call-overload]
    "o": lambda body: Opaque(body is True),
}

PLAIN = (type(None), bool, int, float, complex, str, bytes, range)


def check_plain(value: object) -> None:
    """Raise TypeError unless `value` is made of builtin types only: its repr is then its copy."""
    if type(value) in (list, tuple, set, frozenset):
        for each in value:  # type: ignore[attr-defined]
            check_plain(each)
    elif type(value) is dict:
        for key, each in value.items():
            check_plain(key)
            check_plain(each)
    elif type(value) not in PLAIN:
        raise TypeError(f"a {type(value).__name__} cannot be passed to a function under test")


class Candidate:
    """The candidate's functions, far away; `calls` counts how often they were called."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self.incoming = incoming
        self.outgoing = outgoing
        self.calls = 0

    def say(self, text: str) -> None:
        """Write one line."""
        self.outgoing.write(text.encode() + b"\n")
        self.outgoing.flush()

    def stub(self, name: str) -> Callable[..., object]:
        """Return a function that has the candidate's function of that name called with copies of its arguments."""

        def call(*args: object, **kwargs: object) -> object:
            check_plain((args, kwargs))
            self.calls += 1
            self.say(f"c{(name, args, kwargs)!a}")
            reply = self.incoming.readline()
            try:
                data = json.loads(reply[1:])
                value = decode(data) if reply[:1] == b"v" else None
            except Exception as error:
                raise CandidateError("no value") from error
            if reply[:1] == b"v":
                return value
            kind = getattr(builtins, data) if data in RAISED else CandidateError
            raise kind(f"{name} raised {data}")

        return call


def names_under_test(job: dict[str, str], tree: ast.Module, known: set[str]) -> set[str]:
    """Return the names of the functions that the candidate has to define."""
    if job["entry"]:
        return {job["entry"]}
    # Not those that are called alone: a test may pass a function on, as in list(map(square, numbers)).
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    if job["reference"]:  # it may be named like a builtin: a task of MBPP wants a function `sum`
        reference = ast.parse(job["reference"])
        return used & (defined(reference) - imported(reference))  # `math`, which both use, is no function under test
    return used - defined(tree) - known - set(dir(builtins))


def defined(tree: ast.Module) -> set[str]:
    """Return the names that a program binds anywhere."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return names | imported(tree)


def imported(tree: ast.Module) -> set[str]:
    """Return the names that a program imports."""
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    return {(alias.asname or alias.name).split(".")[0] for node in imports for alias in node.names}


def run(job: dict[str, str], candidate: Candidate) -> None:
    """Run a job's tests; raises whatever they raise."""
    random.seed(0)  # tests that draw cases at random draw the same ones for every candidate
    candidate.calls = 0
    namespace: dict[str, object] = {"__name__": "tests"}
    exec(compile(job["setup"], "setup.py", "exec", dont_inherit=True), namespace)
    tree = ast.parse(job["tests"])
    for node in ast.walk(tree):  # some tests rely on a module that the solution imports
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = node.value.id
            if module not in namespace and module in sys.stdlib_module_names:
                namespace[module] = __import__(module)
    for name in names_under_test(job, tree, set(namespace)):
        namespace[name] = candidate.stub(name)
    exec(compile(tree, "tests.py", "exec", dont_inherit=True), namespace)
    if not candidate.calls:
        raise CandidateError("the tests called no function of the candidate")


def main() -> None:
    """Judge candidates until standard input ends."""
    for name, value in (limit.split("=") for limit in sys.argv[1:]):
        resource.setrlimit(getattr(resource, name), (int(value), int(value)))
    candidate = Candidate(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):  # tests may print too
        os.dup2(null, standard)
    candidate.say("started")
    while line := candidate.incoming.readline():
        try:
            run(json.loads(line), candidate)
            candidate.say("p")
        except BaseException as error:
            candidate.say(f"f{json.dumps(f'{type(error).__name__}: {error}')}")


if __name__ == "__main__":
    main()
