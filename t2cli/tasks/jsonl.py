"""Records from files of JSON: one object per line (JSONL), or one array of objects.

Everything that is wrong with a file is said with the number of its line or record, before anything is trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from t2cli.errors import CorruptArtifactError, NotFoundError, T2Error
from t2cli.paths import expanded

if TYPE_CHECKING:
    from t2cli.tasks.records import RecordSource
    from t2cli.tasks.spec import Row, TaskSpec

MAX_FILE_BYTES = 256 << 20
MAX_LINE_BYTES = 1 << 20
MAX_RECORDS = 1_000_000

Values = Mapping[str, object]


class Record(NamedTuple):
    """One record of a file, and where it is: "train.jsonl, line 3"."""

    where: str
    values: Values


class Located(NamedTuple):
    """The files of one row: split -> paths ("": of every split), and what else says where they are from."""

    files: Mapping[str, tuple[Path, ...]]
    origin: Mapping[str, str]


def source(spec: TaskSpec) -> RecordSource:
    """Return the source of a task whose rows name files on this machine."""
    from t2cli.tasks.records import RecordSource

    return RecordSource(spec, lambda row: Located(_files(spec, row), {}))


def _files(spec: TaskSpec, row: Row) -> dict[str, tuple[Path, ...]]:
    found: dict[str, tuple[Path, ...]] = {}
    for split, name in row.config.items():
        path = spec.folder / expanded(str(name))  # an absolute path stays what it is
        if not path.is_file():
            raise NotFoundError(
                f"task {spec.name}: there is no file {path}", hint="correct the path in the task file or after --data"
            )
        found["" if split == "file" else split] = (path,)
    return found


def read_records(path: Path) -> Iterator[Record]:
    """Yield the objects of a JSONL file, or of a file that holds one JSON array of objects.

    Blank lines are passed over. Raises CorruptArtifactError, with the number of the line or record, for what is
    no object, no valid JSON or UTF-8, holds NaN or infinity, or is over a limit of this module; T2Error if the
    file cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise CorruptArtifactError(
                f"{path} has {size} bytes, more than the {MAX_FILE_BYTES} a file may have", hint="split it"
            )
        with path.open("rb") as file:
            start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        found = _of_array(path) if start.startswith(b"[") else _of_lines(path)
        for number, record in enumerate(found, start=1):
            if number > MAX_RECORDS:
                raise CorruptArtifactError(f"{path} has more than {MAX_RECORDS} records", hint="split it")
            yield record
    except OSError as error:
        raise T2Error(f"{path} could not be read: {error.strerror or error}", hint="check the file") from error


def _of_lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path.name}, line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise _wrong(where, f"longer than {MAX_LINE_BYTES} bytes")
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if text.strip():
                yield Record(where, _object(_parsed(text, where), where))


def _of_array(path: Path) -> Iterator[Record]:
    whole = _parsed(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), path.name)
    if not isinstance(whole, list):  # a line such as [1] is an array too, but then the file is no array of objects
        raise _wrong(path.name, "is neither JSONL nor an array of objects")
    for number, value in enumerate(whole, start=1):
        where = f"{path.name}, record {number}"
        yield Record(where, _object(value, where))


def _parsed(text: bytes, where: str) -> object:
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_without_repeats)
    except UnicodeDecodeError as error:
        raise _wrong(where, "is no UTF-8 text") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise _wrong(where, f"is no valid JSON: {error.msg} ({place})") from error
    except RecursionError as error:
        raise _wrong(where, "is nested too deeply") from error
    except ValueError as error:  # NaN, or a number of thousands of digits
        raise _wrong(where, f"is no valid JSON: {error}") from error


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object; ValueError for a key that is there twice, of which one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r:.60} is there twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _object(value: object, where: str) -> Values:
    if not isinstance(value, dict):
        raise _wrong(where, f"must be an object, not {type(value).__name__}")
    return value


def _wrong(where: str, why: str) -> CorruptArtifactError:
    return CorruptArtifactError(f"{where} {why}" if why.startswith(("is ", "must ")) else f"{where}: {why}", hint=HINT)


HINT = 'every line holds one object, as in {"question": "What is 6 * 7?", "answer": "42"}'
