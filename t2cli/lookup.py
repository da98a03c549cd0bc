"""Tables of names: each maps a name to a "module:attribute" that is imported only when asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping

from t2cli.errors import NotFoundError


def near_matches(name: str, known: Iterable[str]) -> str:
    """Return a hint naming the known names most like `name`, or all of them when none is alike."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(names)}" if names else ""


def require(name: str, table: Iterable[str], what: str) -> None:
    """Raise NotFoundError with near matches unless `name` is in `table`; `what` says what it names."""
    names = list(table)
    if name not in names:
        raise NotFoundError(f"there is no {what} named {name!r}", hint=near_matches(name, names))


def load(name: str, table: Mapping[str, str], what: str) -> object:
    """Import and return the object that `table[name]` ("module:attribute") points to."""
    require(name, table, what)
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
