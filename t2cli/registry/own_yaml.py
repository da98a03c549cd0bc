"""The YAML that t2 writes itself, read several times as fast as libyaml through PyYAML does: None for any other.

What is read here means the same to the full parser (strict_yaml.py), which reads all that is declined: comments, tags,
anchors, double quotes, characters beyond ASCII, numbers in rare forms, duplicate keys, deep nesting, and every error.
Known are, one key a line, nested by two spaces:

    key: plain words                    key: 'quoted'             key: 1.5
    key: [1.5, words, {inner: 2}]       key: {inner: [], other: null}
    key:                                key:
      inner: ...                        - inner: ...

A value may go on in deeper lines, which are joined by a space, as YAML folds them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Resolvers = Mapping[Any, Sequence[tuple[str, re.Pattern[str]]]]  # first character -> what plain text may mean

MAX_FLOW_DEPTH = 8

_NUMBER = r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]+(?:e[+-][0-9]+)?)?"  # JSON reads it to the same value
_KEY = r"[A-Za-z_][A-Za-z0-9_.+-]{0,199}"
_WORDS = r"[A-Za-z0-9_/.(](?:[A-Za-z0-9_/.()=+@-]| (?! ))*"  # in flow collections most other characters mean something

_TEXT = re.compile(r"(?:[ -~]*[!-~]\n)+")  # no empty line, no space at the end of one
_LINE = re.compile(rf"( *)(- )?({_KEY}):(?: (.*))?")
_ITEM = re.compile(r"( *)- ([\[{].*)")
_ONE_NUMBER = re.compile(_NUMBER)
_NUMBERS = re.compile(rf"\[{_NUMBER}(?:, {_NUMBER})*\]")
_PLAIN = re.compile(r"[A-Za-z0-9_/.(][ -~]*")
_QUOTED = re.compile(r"'((?:[^']|'')*)'")
_FLOW = re.compile(rf"(?P<mark>[\[\]{{}},])|(?P<key>{_KEY}): |'(?P<quoted>(?:[^']|'')*)'|(?P<words>-?{_WORDS})")
_WORD_VALUES = {"null": None, "true": True, "false": False}


class _Declined(Exception):  # noqa: N818 - no failure: another reader's turn
    """The text is not in the form that is known here."""


class _Line(NamedTuple):
    """A key with its value, or an item of a list with its first key; `indent` is that of the key."""

    indent: int
    item: bool
    key: str | None  # None: an item that is a flow collection
    value: str | None  # None: what follows is nested


def read_own(text: str, resolvers: Resolvers) -> dict[str, object] | None:
    """Return the mapping in `text`, None unless it is of the form that t2 writes.

    `resolvers` are the full parser's: plain text that they take for something else than text is declined.
    """
    if not _TEXT.fullmatch(text) or " #" in text:
        return None
    try:
        lines = _lines(text)
        mapping, end = _mapping(lines, 0, 0, resolvers)
    except _Declined:
        return None
    return mapping if end == len(lines) else None


def _lines(text: str) -> list[_Line]:
    """Return the lines, those that go on with the value of an earlier one joined to it."""
    lines: list[_Line] = []
    for raw in text[:-1].split("\n"):
        last = lines[-1] if lines else None
        if last is not None and last.value is not None:
            inner = raw.lstrip(" ")
            if len(raw) - len(inner) > last.indent:
                lines[-1] = last._replace(value=f"{last.value} {inner}")
                continue
        if match := _LINE.fullmatch(raw):
            spaces, dash, key, value = match.groups()
            lines.append(_Line(len(spaces) + len(dash or ""), bool(dash), key, value))
        elif match := _ITEM.fullmatch(raw):
            lines.append(_Line(len(match[1]) + 2, True, None, match[2]))
        else:
            raise _Declined
    return lines


def _mapping(lines: list[_Line], start: int, indent: int, known: Resolvers) -> tuple[dict[str, object], int]:
    """Return the mapping whose keys stand at `indent`, and the place after it; its first line may be an item's."""
    mapping: dict[str, object] = {}
    place = start
    while place < len(lines):
        line = lines[place]
        if line.indent != indent or (line.item and place > start):
            break
        if line.key is None or line.key in mapping:
            raise _Declined
        place += 1
        if line.value is not None:
            mapping[line.key] = _value(line.value, known)
        else:
            mapping[line.key], place = _nested(lines, place, indent, known)
    if not mapping:
        raise _Declined
    return mapping, place


def _nested(lines: list[_Line], start: int, indent: int, known: Resolvers) -> tuple[object, int]:
    """Return what belongs to a key at `indent` and begins in the next line: a mapping, or a list of collections."""
    if start == len(lines) or lines[start].indent != indent + 2:
        raise _Declined
    if not lines[start].item:
        return _mapping(lines, start, indent + 2, known)
    items: list[object] = []
    place = start
    while place < len(lines) and lines[place].item and lines[place].indent == indent + 2:
        line = lines[place]
        if line.key is None:
            items.append(_value(line.value or "", known))
            place += 1
        else:
            item, place = _mapping(lines, place, indent + 2, known)
            items.append(item)
    return items, place


def _value(text: str, known: Resolvers) -> object:
    """Return what stands after a key: a flow collection, a quoted or a plain scalar."""
    if _NUMBERS.fullmatch(text):
        return json.loads(text)
    if text[:1] in ("[", "{"):
        value, end = _flow(text, 0, known, 0)
        if end != len(text):
            raise _Declined
        return value
    if match := _QUOTED.fullmatch(text):
        return match[1].replace("''", "'")
    if ": " in text or text[-1] == ":":
        raise _Declined
    return _scalar(text, known)


def _scalar(text: str, known: Resolvers) -> object:
    """Return what a plain scalar means."""
    if _ONE_NUMBER.fullmatch(text):
        return float(text) if "." in text else int(text)
    if not _PLAIN.fullmatch(text):
        raise _Declined
    if any(pattern.match(text) for _, pattern in known.get(text[0], ())):
        if text not in _WORD_VALUES:
            raise _Declined
        return _WORD_VALUES[text]
    return text


def _flow(text: str, start: int, known: Resolvers, depth: int) -> tuple[Any, int]:
    """Return the value that begins at `start` inside a flow collection, or the collection, and the place after it."""
    token = _FLOW.match(text, start)
    if token is None or depth > MAX_FLOW_DEPTH:
        raise _Declined
    if token["quoted"] is not None:
        return token["quoted"].replace("''", "'"), token.end()
    if token["words"] is not None:
        return _scalar(token["words"].rstrip(" "), known), token.end()
    if token["mark"] not in ("[", "{"):
        raise _Declined
    closing = "]" if token["mark"] == "[" else "}"
    items: list[object] = []
    mapping: dict[str, object] = {}
    place = token.end()
    if text[place : place + 1] == closing:
        return (items if closing == "]" else mapping), place + 1
    while True:
        if closing == "}":
            key = _FLOW.match(text, place)
            if key is None or key["key"] is None or key["key"] in mapping:
                raise _Declined
            mapping[key["key"]], place = _flow(text, key.end(), known, depth + 1)
        else:
            item, place = _flow(text, place, known, depth + 1)
            items.append(item)
        if text[place : place + 1] == closing:
            return (items if closing == "]" else mapping), place + 1
        if text[place : place + 2] != ", ":
            raise _Declined
        place += 2
