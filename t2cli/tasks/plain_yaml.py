"""Task files as plain data: safe YAML in which no key is there twice."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

MOST = 1000  # keys of a mapping, once what it merges (<<) is written out


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice: YAML would take the last, and what the first said would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.YAMLError(f"the key {key.value!r} is there twice {_below(node)}")
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST:  # `<<: [*a, *a]` in a few lines can stand for more keys than memory holds
            raise yaml.YAMLError(f"a mapping has more than {MOST} keys {_below(node)}")


def _below(node: yaml.Node) -> str:
    return f"(below line {node.start_mark.line + 1})"


def read_plain(text: str) -> object:
    """Return what a document says. Raises yaml.YAMLError, and ValueError for a date that is none."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - extends SafeLoader
