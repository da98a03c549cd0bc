"""Typed reads from the mappings of a task file, each failure naming the exact key."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from t2cli.errors import CorruptArtifactError, NotFoundError
from t2cli.lookup import near_matches, require

Scalar = str | int | float | bool
ConfigValue = Scalar | tuple[Scalar, ...]


_SHOWN = reprlib.Repr()  # a few lines of YAML can stand for millions of items
_SHOWN.maxlevel, _SHOWN.maxlist, _SHOWN.maxdict, _SHOWN.maxstring = 2, 4, 4, 80


class Fields:
    """Reads one mapping of the file key by key; every error names the file and the key."""

    def __init__(self, mapping: object, where: str) -> None:
        if not isinstance(mapping, dict) or not all(isinstance(key, str) for key in mapping):
            raise CorruptArtifactError(f"{where} must be a mapping of keys to values", hint="fix the file")
        self.where = where
        self._values: dict[str, object] = mapping
        self._read: set[str] = set()

    def wrong(self, key: str, why: str, hint: str) -> CorruptArtifactError:
        """Return the error that a key has a wrong value."""
        return CorruptArtifactError(f"{self.where}: {key}: {why}", hint=hint)

    def has(self, key: str) -> bool:
        """Tell whether a key has a value; from now on it is a known one."""
        self._read.add(key)
        return self._values.get(key) is not None

    def done(self) -> None:
        """Raise CorruptArtifactError if there is a key that was never asked for."""
        if unknown := sorted(set(self._values) - self._read):
            raise self.wrong(unknown[0], "unknown key", near_matches(unknown[0], self._read))

    def _get(self, key: str) -> object:
        if not self.has(key):
            raise self.wrong(key, "missing", f"add `{key}:`")
        return self._values[key]

    def text(self, key: str) -> str:
        """Return text that is not blank, without white space at its ends."""
        value = self._get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(key, f"must be text, not {_SHOWN.repr(value)}", "put it in quotes")
        return value.strip()

    def line(self, key: str) -> str:
        """Return one line of text."""
        value = self.text(key)
        if len(value.splitlines()) > 1:
            raise self.wrong(key, "must be one line", "shorten it")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts; a single one may stand for itself."""
        value = self._get(key)
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(each, str) and each.strip() for each in values):
            raise self.wrong(key, "must be text or a list of texts", "put each in quotes")
        return tuple(values)

    def one_of(self, key: str, table: Mapping[str, object]) -> str:
        """Return a name of `table`."""
        value = self.text(key)
        try:
            require(value, table, key)
        except NotFoundError as error:
            raise self.wrong(key, error.message, error.hint) from error
        return value

    def count(self, key: str) -> int:
        """Return a whole number above 0."""
        value = self._get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(key, f"must be a whole number above 0, not {_SHOWN.repr(value)}", "for example 64")
        return value

    def weight(self, key: str) -> float:
        """Return a finite number above 0."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.wrong(key, f"must be a number above 0, not {_SHOWN.repr(value)}", "for example 1")
        return float(value)

    def regex(self, key: str) -> re.Pattern[str]:
        """Return a compiled regular expression."""
        try:
            return re.compile(self.text(key))
        except re.error as error:
            raise self.wrong(key, f"no valid regular expression: {error}", "put it in 'quotes'") from error

    def config(self, key: str) -> Mapping[str, ConfigValue]:
        """Return a mapping of plain values and lists of them; an empty one where there is none."""
        values: dict[str, ConfigValue] = {}
        if not self.has(key):
            return MappingProxyType(values)
        for name, value in self.inner(key)._values.items():
            if name in ("seed", "size"):
                raise self.wrong(f"{key}.{name}", "is set by t2", "leave it out")
            items = value if isinstance(value, list) else [value]
            scalars = tuple(item for item in items if isinstance(item, str | int | float))
            if len(scalars) < len(items) or not items:
                raise self.wrong(f"{key}.{name}", "must be a value or a list of values", "simplify it")
            values[name] = scalars if isinstance(value, list) else scalars[0]
        return MappingProxyType(values)

    def locations(self, keys: Sequence[str]) -> Mapping[str, ConfigValue]:
        """Return those of `keys` that are there: one `file`, or `train` and `test` and perhaps others."""
        found = {key: self.text(key) for key in keys if self.has(key)}
        splits = {"train", "test"} & set(found)
        if ("file" in found) == bool(splits) or len(splits) == 1:
            raise self.wrong(keys[0], "give one `file`, or `train` and `test`", "paths start at the task file")
        return MappingProxyType(dict(found))

    def inner(self, key: str) -> Fields:
        """Return the mapping of a key."""
        return Fields(self._get(key), f"{self.where}: {key}")

    def inner_list(self, key: str) -> list[Fields]:
        """Return the mappings of a list."""
        value = self._get(key)
        if not isinstance(value, list) or not value:
            raise self.wrong(key, "must be a list with at least one row", "add `- dataset: ...`")
        return [Fields(each, f"{self.where}: {key}[{i}]") for i, each in enumerate(value)]
