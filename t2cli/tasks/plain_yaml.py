"""Task files as plain data: safe YAML in which no key is there twice."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice: YAML would take the last, and what the first said would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"the key {twice[0]!r} is there twice (below line {node.start_mark.line + 1})")
        return super().construct_mapping(node, deep=deep)


def read_plain(text: str) -> object:
    """Return what a document says. Raises yaml.YAMLError, and ValueError for a date that is none."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - extends SafeLoader
