"""The rows of t2 chat --jsonl: lines read ahead, what each may hold, and which were answered before."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from t2cli.dispatch.conversation import chat_of
from t2cli.errors import NotFoundError, T2Error, UsageError
from t2cli.files import disk_error
from t2cli.lookup import near_matches

LONGEST_LINE = 4 << 20  # bytes; a longer line is no row, and is not kept in memory
WINDOW = 4  # batches that are read ahead: so many rows are sorted by length and expert
SOON = 0.02  # seconds to wait for one more line before what is there is answered

FIELDS = ("prompt", "messages", "id", "expert", "mix")
NOBODY = "none"  # in place of an expert's reference: the base model

LARGEST = sys.float_info.max

Line = tuple[int, bytes | None]  # number from 1, and content; None: longer than LONGEST_LINE
Id = str | int


@dataclass(frozen=True)
class Row:
    """One question of a script. `weights` are its own experts, none of them the base; None: as the command says."""

    number: int
    id: Id
    messages: list[dict[str, str]]
    weights: Mapping[str, float] | None


def lines_of(stream: IO[bytes]) -> Iterator[Line]:
    """Yield the lines of a stream."""
    number = 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        whole = line.endswith(b"\n") or len(line) < LONGEST_LINE
        yield number, line if whole else None
        while not whole:
            rest = stream.readline(LONGEST_LINE)
            whole = rest.endswith(b"\n") or len(rest) < LONGEST_LINE


def standard_input() -> IO[bytes]:
    """Return standard input for a thread of its own: the interpreter's object may not be in use when it ends."""
    if sys.stdin is None:
        return Path(os.devnull).open("rb")
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except OSError:  # not a real file: a test's buffer
        return sys.stdin.buffer


class ReadAhead:
    """Lines that a thread reads while others are answered; `size` of them at most wait."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self.size = size
        self._waiting: queue.Queue[Line | Exception | None] = queue.Queue(size)
        self._first: list[Line] = []
        self._ended = False
        self._error: Exception | None = None
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: IO[bytes]) -> None:
        try:
            for line in lines_of(stream):
                self._waiting.put(line)
        except Exception as error:  # goes to whoever takes the lines
            self._waiting.put(error)
        self._waiting.put(None)

    def any(self) -> bool:
        """Tell whether there is a line that is not blank among the first; waits for one."""
        while not self._ended and len(self._first) < self.size:
            self._first += self._taken(1)
            if any(line is None or line.strip() for _, line in self._first[-1:]):
                return True
        self._check()
        return bool(self._first) and not self._ended

    def windows(self) -> Iterator[list[Line]]:
        """Yield what has been read, `size` lines at most: as soon as there is one, or more where they come at once."""
        while True:
            lines = self._first or self._taken(1)
            self._first = []
            if not lines:
                self._check()
                return
            yield lines + self._taken(self.size - len(lines), SOON)

    def _taken(self, number: int, timeout: float | None = None) -> list[Line]:
        """Return up to `number` lines: fewer at the end, or where `timeout` seconds bring none."""
        found: list[Line] = []
        with contextlib.suppress(queue.Empty):
            while len(found) < number and not self._ended:
                line = self._waiting.get(timeout=timeout)
                if line is None or isinstance(line, Exception):
                    self._ended, self._error = True, line
                else:
                    found.append(line)
        return found

    def _check(self) -> None:
        """Raise T2Error if the stream ended by an error: what came before it was taken by then."""
        if self._error is not None:
            raise T2Error(f"standard input could not be read: {self._error}") from self._error


def parsed(number: int, line: bytes | None) -> Row | None:
    """Return the row that a line holds, None for a blank line. Raises UsageError, which says what is wrong."""
    if line is None:
        raise UsageError(f"it is longer than {LONGEST_LINE >> 20} MB")
    if not line.strip():
        return None
    fields = _object(line)
    for name in fields:
        if name not in FIELDS:
            raise UsageError(f"it has an unknown field {name!r}", hint=near_matches(name, FIELDS))
    row = fields.get("id")
    if row is not None and (isinstance(row, bool) or not isinstance(row, str | int)):
        raise UsageError("its id is neither a text nor a whole number")
    return Row(number, number if row is None else row, chat_of(fields), _weights(fields))


def _object(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"it is not UTF-8: byte {error.start + 1} cannot be read") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"it is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UsageError('it is no JSON object such as {"prompt": "What is 6 * 7?"}')
    return fields


def _weights(fields: Mapping[str, Any]) -> Mapping[str, float] | None:
    expert, mix = fields.get("expert"), fields.get("mix")
    if expert is not None and mix is not None:
        raise UsageError("expert and mix exclude each other")
    if expert is not None:
        if not isinstance(expert, str) or not expert.strip():
            raise UsageError("its expert is no reference such as math@1")
        return {} if expert == NOBODY else {expert: 1.0}
    if isinstance(mix, dict) and mix:
        for name, alpha in mix.items():
            if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= LARGEST:
                raise UsageError(f"the weight of {name} is not a finite number")
        return {name: float(alpha) for name, alpha in mix.items()}
    if mix is None:
        return None
    if not isinstance(mix, str) or not (members := [part.strip() for part in mix.split(",") if part.strip()]):
        raise UsageError('its mix is neither a text such as "math:0.6,reasoning:0.4" nor such an object')
    from t2cli.cli.mix import parse_weights

    return parse_weights(members)


def done_ids(path: Path, warn: Callable[[str], None]) -> set[Id]:
    """Return the ids that an earlier run answered into `path`; rows that it could not answer are to be tried again.

    What is no answer is warned of, but for a last line that a run was writing when it ended. Raises NotFoundError.
    """
    found: set[Id] = set()
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                answer = _answer(line)
                if answer is None and line.endswith(b"\n"):
                    warn(f"{path}, line {number} is no answer of t2 chat")
                elif answer is not None and answer["answer"] is not None:
                    found.add(answer["id"])
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}", hint="--done names the output of an earlier run") from error
    except OSError as error:
        raise T2Error(f"{path} could not be read: {error.strerror or error}") from error
    return found


def _answer(line: bytes) -> Mapping[str, Any] | None:
    """Return the object of an answer, None if the line is none."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        answer: Mapping[str, Any] = json.loads(line)
        if isinstance(answer["id"], str | int) and isinstance(answer["answer"], str | None):
            return answer
    return None


def end_last_line(path: Path) -> None:
    """Take off half a line at the end, or end a whole one, where standard output goes on writing into that very file.

    Raises T2Error where the file cannot be changed.
    """
    try:
        if not os.path.samestat(os.fstat(sys.stdout.fileno()), path.stat()):
            return
    except (OSError, AttributeError, ValueError):  # standard output is no file
        return
    try:
        with path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LONGEST_LINE))
            last = file.read().rpartition(b"\n")[2]
            if last and _answer(last) is not None:
                file.write(b"\n")
            elif last:
                file.truncate(size - len(last))
    except OSError as error:
        raise disk_error(path, error) from error
