"""Typed reads from the mappings of a document, each failure naming the exact key."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from t2cli.errors import CorruptArtifactError

INTEGER_LIMIT = 2**63 - 1
TEXT_LIMIT = 2000
KEY_LIMIT = 200

# Line breaks and terminal escapes could forge lines of output; the last ranges reverse the reading direction.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Fields:
    """The mapping `value`, found at `path` ("base.fingerprint") of the document `where`.

    Raises CorruptArtifactError unless it is a mapping whose keys are all in `known`. Every method returns the
    value of a key in the named type, or raises CorruptArtifactError saying which key is missing or what it
    must be.
    """

    def __init__(self, value: object, where: str, path: str = "", *, known: Sequence[str]) -> None:
        self.where, self.path = where, path
        if not isinstance(value, dict):
            raise CorruptArtifactError(f"{where}: {path or 'the document'} must be a mapping, not {_shown(value)}")
        self.values: dict[str, object] = value
        if any(len(key) > KEY_LIMIT or _UNPRINTABLE.search(key) for key in value):
            raise CorruptArtifactError(f"{where}: {path or 'the document'} has a key that is not short printable text")
        if unknown := sorted(str(key) for key in value if key not in known):
            raise CorruptArtifactError(
                f"{where}: unknown key {self.key(unknown[0][:80])!r}",
                hint=f"known keys here: {', '.join(known)}; a newer t2 may know more",
            )

    def key(self, name: str) -> str:
        """Return the full path of the key `name`."""
        return f"{self.path}.{name}" if self.path else name

    def fail(self, name: str, must: str) -> CorruptArtifactError:
        """Return the error that the key `name` is not what it must be."""
        return CorruptArtifactError(f"{self.where}: {self.key(name)} must be {must}, not {_shown(self.values[name])}")

    def has(self, name: str) -> bool:
        """Tell whether the key is there with a value other than null."""
        return self.values.get(name) is not None

    def get(self, name: str) -> object:
        """Return the value of a key that must be there."""
        if name not in self.values:
            raise CorruptArtifactError(f"{self.where}: the key {self.key(name)!r} is missing")
        return self.values[name]

    def text(self, name: str, pattern: re.Pattern[str] | None = None, *, empty: bool = False) -> str:
        """Return one line of printable text that all of `pattern` matches, at most TEXT_LIMIT characters."""
        value = self.get(name)
        if not isinstance(value, str) or not (value or empty) or len(value) > TEXT_LIMIT:
            raise self.fail(name, f"text of {0 if empty else 1} to {TEXT_LIMIT} characters")
        if _UNPRINTABLE.search(value):
            raise self.fail(name, "one line of printable text")
        if pattern is not None and not pattern.fullmatch(value):
            raise self.fail(name, f"text like {pattern.pattern}")
        return value

    def integer(self, name: str, low: int = -INTEGER_LIMIT, high: int = INTEGER_LIMIT) -> int:
        """Return an integer in [low, high]."""
        value = self.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.fail(name, f"an integer from {low} to {high}")
        return value

    def number(self, name: str, low: float = -math.inf, high: float = math.inf) -> float:
        """Return a finite number in [low, high]."""
        value = as_finite(self.get(name))
        if value is None or not low <= value <= high:
            limits = "" if math.isinf(low) and math.isinf(high) else f" from {low:g} to {high:g}"
            raise self.fail(name, f"a finite number{limits}")
        return value

    def interval(self, name: str, low: float, high: float) -> tuple[float, float]:
        """Return [lower, upper] with low <= lower <= upper <= high."""
        value = self.get(name)
        ends = [as_finite(end) for end in value] if isinstance(value, list) else []
        if len(ends) == 2 and ends[0] is not None and ends[1] is not None and low <= ends[0] <= ends[1] <= high:
            return ends[0], ends[1]
        raise self.fail(name, f"two increasing numbers from {low:g} to {high:g}")

    def items(self, name: str) -> list[object]:
        """Return a list; an absent or null key is the empty one."""
        value = self.get(name) if self.has(name) else []
        if not isinstance(value, list):
            raise self.fail(name, "a list")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of lines of printable text; an absent or null key is the empty one."""
        items = enumerate(self.items(name))
        lines = (Fields({"text": item}, self.where, f"{self.key(name)}[{i}]", known=["text"]) for i, item in items)
        return tuple(line.text("text") for line in lines)

    def numbers(self, name: str) -> list[float]:
        """Return a list of at least one finite number."""
        finite = [as_finite(value) for value in self.items(name)]
        numbers = [number for number in finite if number is not None]
        if len(numbers) < len(finite) or not numbers:
            raise self.fail(name, "a list of finite numbers")
        return numbers

    def number_lists(self, name: str) -> dict[str, list[float]]:
        """Return a mapping of names to lists of at least one finite number each."""
        value = self.get(name)
        if not isinstance(value, dict):
            raise self.fail(name, "a mapping of names to lists of numbers")
        lists = Fields(value, self.where, self.key(name), known=list(value))
        return {key: lists.numbers(key) for key in lists.values}


def as_finite(value: object) -> float | None:
    """Return a finite int or float as a float, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
        return None
    return float(value) if math.isfinite(value) else None


def all_finite(value: object) -> bool:
    """Tell whether no number inside nested lists and mappings is NaN, infinite or huge."""
    if isinstance(value, (dict, list)):
        return all(all_finite(inner) for inner in (value.values() if isinstance(value, dict) else value))
    return not isinstance(value, (int, float)) or isinstance(value, bool) or as_finite(value) is not None


def _shown(value: object) -> str:
    """Return a short printable form of a value for an error message."""
    if value is None or isinstance(value, (bool, int, float, str)):
        short = value[:60] if isinstance(value, str) else value
        return ascii(short) if not isinstance(short, int) or abs(short) <= INTEGER_LIMIT else "a huge integer"
    return "a mapping" if isinstance(value, dict) else "a list"
