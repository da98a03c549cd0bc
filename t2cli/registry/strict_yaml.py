"""YAML from strangers: a mapping of plain data, or a CorruptArtifactError.

Refused: aliases (a few bytes can expand to gigabytes), deep nesting (it overflows libyaml's stack and kills
the process), tags, duplicate keys, documents over MAX_BYTES. Dates stay text.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from t2cli.errors import CorruptArtifactError
from t2cli.registry.own_yaml import read_own

try:
    from yaml import CSafeDumper as SafeDumper
    from yaml import CSafeLoader as SafeLoader
except ImportError:  # PyYAML built without libyaml: the same results, slower
    from yaml import SafeDumper, SafeLoader  # type: ignore[assignment]

MAX_BYTES = 1 << 20
MAX_DEPTH = 32

_PLAIN = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map"))


class _StrictLoader(SafeLoader):
    """Builds None, bool, int, float, str, list and dict with text keys, nothing else."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the name and type PyYAML looks for
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _PLAIN]
        for first, resolvers in SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012
        tag: function for tag, function in SafeLoader.yaml_constructors.items() if tag is None or tag in _PLAIN
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping: dict[Hashable, Any] = {}
        if not isinstance(node, yaml.MappingNode):
            raise yaml.YAMLError("a mapping is tagged as something else")
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"a key is not plain text (line {key.start_mark.line + 1})")
            if key.value in mapping:
                raise yaml.YAMLError(f"the key {key.value!r} is there twice (line {key.start_mark.line + 1})")
            mapping[key.value] = self.construct_object(value, deep=deep)
        return mapping


class _PlainDumper(SafeDumper):
    """Writes no aliases, which `load_mapping` would refuse."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def load_mapping(text: str, where: str) -> dict[str, object]:
    """Return the one mapping in `text` as plain data; `where` names the document in errors.

    Raises CorruptArtifactError for everything else, whatever the text.
    """
    if len(text) > MAX_BYTES or len(text.encode(errors="replace")) > MAX_BYTES:
        raise CorruptArtifactError(f"{where} is larger than {MAX_BYTES} bytes, so it is no manifest")
    if (own := read_own(text, _StrictLoader.yaml_implicit_resolvers)) is not None:
        return own
    return _load_any(text, where)


def _load_any(text: str, where: str) -> dict[str, object]:
    try:
        _check_events(text)
        document = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a restricted SafeLoader
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        # PyYAML's own constructors raise all of these on values such as `!!int ""` or `!!bool maybe`.
        reason = " ".join(str(error).split())
        raise CorruptArtifactError(f"{where} cannot be read as YAML: {reason[:300]}") from error
    if not isinstance(document, dict):
        raise CorruptArtifactError(f"{where} does not hold a mapping of keys to values")
    return document


def dump_mapping(document: dict[str, object]) -> str:
    """Return `document` as YAML that `load_mapping` reads back, innermost collections on one line."""
    text: str = yaml.dump(
        document, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110
    )
    return text


def _check_events(text: str) -> None:
    """Refuse aliases and deep nesting in the parser, which does not recurse; the composer does."""
    depth = 0
    for event in yaml.parse(text, Loader=SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases are not allowed, but there is *{event.anchor}")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} levels deep")
