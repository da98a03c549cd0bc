"""What the tests with generated bad inputs share: junk, where to put it, and what must not change."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["../../x", "/etc/passwd", "a" * 3000, "\x00", "\x1b[2J", "1e999", "2026-01-01", "~", "*a", "!!x"]
    )
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def generate(count: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Run `check` on `count` generated values."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    settings(max_examples=count, deadline=None, database=None, suppress_health_check=quiet)(given(strategy)(check))()


def tree(folder: Path, *without: Path) -> dict[str, bytes | None]:
    """Return every path below `folder` but those below `without` and t2's cache, with what it holds."""
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if not any(path.is_relative_to(other) for other in without) and path.parent.name != "listings"
    }


def paths_of(document: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a document."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield (*path, key)
        yield from paths_of(value, (*path, key))


def changed_at(document: Any, path: tuple[Any, ...], junk: object) -> Any:
    """Return a copy of a document with another value at one path."""
    changed = copy.deepcopy(document)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = junk
    return changed


def edited(raw: bytes, begin: int, length: int, inserted: bytes) -> bytes:
    """Return bytes with `length` of them from `begin` on (modulo their number) replaced."""
    begin %= max(1, len(raw))
    return raw[:begin] + inserted + raw[begin + length :]
