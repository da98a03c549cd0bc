"""Inside the sandbox: loads model-written code and calls its functions on demand.

Nothing here is trusted once the code was loaded: it may replace any of this, so what leaves the process is
treated as data, and neither tests nor expected values ever enter it. Imports are few because every
completion pays for them.

Arguments are limits as NAME=VALUE. The first line of standard input is the repr of the code, every other line
that of (function, args, kwargs). Each gets one line back: `v` and the value, or `e` and the name of the exception.
A value is JSON: lists are arrays, and other types than str, int, float, bool and None are objects with one key,
their tag; what is no plain value travels as its truth alone.
"""

import os
import resource
import sys
from _collections_abc import Iterable, Iterator
from _json import encode_basestring_ascii as quoted  # importing the module json takes longer than starting Python

MOST_ITEMS = 100_000  # of a generator


def encode(value: object) -> str:
    """Return a plain value as JSON; subclasses as the plain type they extend."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value) if -(1 << 63) < value < 1 << 63 else tagged("i", quoted(hex(int(value))))
    if isinstance(value, float):
        text = float.__repr__(value)
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(text, text)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return array(value)
    return encode_tagged(value)


def array(values: Iterable[object]) -> str:
    """Return a JSON array."""
    return f"[{','.join(map(encode, values))}]"


def tagged(tag: str, body: str) -> str:
    """Return a JSON object with one key."""
    return f'{{"{tag}":{body}}}'


def encode_tagged(value: object) -> str:
    """Return what JSON has no form for, as an object with one key."""
    for kind, tag in ((tuple, "t"), (set, "s"), (frozenset, "z")):
        if isinstance(value, kind):
            return tagged(tag, array(value))
    if isinstance(value, dict):
        return tagged("d", array([list(pair) for pair in value.items()]))
    if isinstance(value, complex):
        return tagged("c", array([value.real, value.imag]))
    if isinstance(value, bytes | bytearray):
        return tagged("b", quoted(value.hex()))
    if isinstance(value, range):
        return tagged("r", array([value.start, value.stop, value.step]))
    if isinstance(value, Iterator):
        return tagged("n", array(each for each, _ in zip(value, range(MOST_ITEMS), strict=False)))
    return tagged("o", "true" if value else "false")


def known_kind(error: BaseException) -> str:
    """Return the name of the builtin exception that an error is one of, for tests may expect that."""
    return next((kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"), "")


def seed_chance(code: str) -> None:
    """Have `random` draw the same in every process, so that a verdict is the same again.

    Importing it takes as long as starting Python, and most code does not use it. The seed is not the judge's: what the
    tests draw must not be what the code draws.
    """
    if "random" in code:
        import random

        random.seed(1)


def main() -> None:
    """Serve one candidate until standard input ends."""
    for name, value in (limit.split("=") for limit in sys.argv[1:]):
        resource.setrlimit(getattr(resource, name), (int(value), int(value)))
    calls, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):  # what the code prints is nobody's answer
        os.dup2(null, standard)

    def reply(text: str) -> None:
        rest = memoryview(text.encode() + b"\n")
        while rest:
            rest = rest[os.write(replies, rest) :]

    reply("started")
    # A module of its own: dataclasses look their classes' module up.
    solution = type(sys)("solution")
    sys.modules["solution"] = solution
    sys.argv = ["solution"]
    try:
        code = eval(calls.readline(), {"__builtins__": {}})
        seed_chance(code)
        exec(compile(code, "solution.py", "exec", dont_inherit=True), solution.__dict__)
        reply("v")
    except BaseException as error:
        reply(f"e{quoted(type(error).__name__)}")
    for line in calls:
        try:
            name, args, kwargs = eval(line, {"nan": float("nan"), "inf": float("inf")})
            reply(f"v{encode(getattr(solution, name)(*args, **kwargs))}")
        except BaseException as error:
            reply(f"e{quoted(known_kind(error))}")


if __name__ == "__main__":
    main()
    os._exit(0)
