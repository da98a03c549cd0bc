"""Questions from records: each field is a variable of the templates that make a question and its right answer.

Where the files are split for real (train and test), test questions come from the test files alone, validation
is the share of the training questions whose hash says so (t2cli.tasks.sampling.split_of) unless it has a file of
its own, and a question that
the test files hold too, in any order of its words and in any row, is dropped from training and validation. A
file without splits is divided by the hash as made questions are.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from t2cli.errors import CorruptArtifactError, UsageError
from t2cli.files import sha256_of
from t2cli.tasks.jsonl import Located, Record, read_records
from t2cli.tasks.math_reward import check_installed
from t2cli.tasks.prompts import fill
from t2cli.tasks.sampling import SPLITS, Item, digest, split_of, words_digest
from t2cli.tasks.unit_tests import suite_problem
from t2cli.tasks.verify import extract_number, plain_text

if TYPE_CHECKING:
    from pathlib import Path

    from t2cli.tasks.spec import AnswerSpec, Row, TaskSpec

MAX_TEXT = 100_000  # characters of a question or an answer
# Numbers of which the last digits alone would be read: 12 000, 12'000, 12_000, 1.234,56 and 2\u00bd.
_HALF_READ = re.compile(
    r"(?<![\d.,])\d{1,3}(?:[ '\u2019_]\d{3})+(?![\d/]|\s/)|\d\.\d{3},\d|[\u00bc-\u00be\u2150-\u215f]"
)

Locate = Callable[["Row"], Located]


@dataclass(frozen=True)
class RecordSpec:
    """How a record becomes a question, its answer, and (None: by file or hash) its split: field names or templates."""

    question: str = "question"
    answer: str = "answer"
    split: str | None = None


@dataclass
class _Table:
    """All questions of one row: split -> items, in the order of the files; and which files those were."""

    items: dict[str, list[Item]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    origin: list[dict[str, str]] = field(default_factory=list)


class RecordSource:
    """The questions of files that `locate` finds for each row; read once, when the first is asked for."""

    finite = True

    def __init__(self, spec: TaskSpec, locate: Locate) -> None:
        self._spec, self._locate = spec, locate
        self._read: dict[str, _Table] | None = None

    def stream(self, row: Row, split: str, seed: int) -> Iterator[Item]:
        """Yield all questions of a row and split once, in an order that `seed` chooses.

        Raises CorruptArtifactError naming file and line for a record that makes no question, and UsageError where the
        files are those of other splits.
        """
        table = self._tables[row.name]
        items = list(table.items[split])
        if not items and not {file["split"] for file in table.origin} & {"all", "train", split}:
            names = " and ".join(file["file"] for file in table.origin)
            raise UsageError(
                f"the task {self._spec.name} has no {split} questions: all there is, {names}, is held out",
                hint="give --data train=FILE and --data test=FILE, or one file of all questions as --data FILE",
            )
        if split != "test" and all(each.record.split == "test" for each in self._spec.mixture):
            raise UsageError(
                f"the task {self._spec.name} is for evaluation only: all its questions are held out",
                hint=f"measure with it: t2 eval --task {self._spec.name}; train on another task",
            )
        random.Random(seed).shuffle(items)  # noqa: S311
        return iter(items)

    def first(self) -> tuple[Row, Item] | None:
        """Return the first question of the first file, without reading the others; None if it holds none."""
        row = self._spec.mixture[0]
        for split, paths in self._locate(row).files.items():
            for record in _records(paths[0]):
                if (item := _item(row, record, split, carve=False)) is not None:
                    return row, item
        return None

    def origin(self) -> list[dict[str, str]]:
        """Return for each file its split, name and SHA-256, of several rows the row, of a Hub data set its commit."""
        several = len(self._tables) > 1
        return [
            {**({"row": name} if several else {}), **file}
            for name, table in self._tables.items()
            for file in table.origin
        ]

    @property
    def _tables(self) -> dict[str, _Table]:
        if self._read is None:
            located = {row.name: self._locate(row) for row in self._spec.mixture}
            tables = {row.name: _table(row, located[row.name]) for row in self._spec.mixture}
            _drop_tested(list(tables.values()))
            self._read = tables
        return self._read


def _table(row: Row, located: Located) -> _Table:
    """Read the files of one row."""
    table, seen = _Table(), dict[int, tuple[str, str]]()
    for split, paths in located.files.items():
        for path in paths:
            table.origin.append(
                {**located.origin, "split": split or "all", "file": path.name} | {"sha256": sha256_of(path)}
            )
            for record in _records(path):
                item = _item(row, record, split, carve="validation" not in located.files)
                if item is not None and _is_new(item, record.where, split, seen):
                    table.items[item.split or split_of(item.question)].append(item)
    if not any(table.items.values()):
        raise CorruptArtifactError(f"the files of {row.name} hold no questions", hint="check the files")
    if row.record.split is not None and not table.items["validation"]:  # the template names none for validation
        carved = [item for item in table.items["train"] if split_of(item.question) == "validation"]
        table.items["validation"] = [item._replace(split="validation") for item in carved]
        table.items["train"] = [item for item in table.items["train"] if split_of(item.question) != "validation"]
    return table


def _records(path: Path) -> Iterator[Record]:
    if path.suffix.lower() == ".parquet":
        from t2cli.tasks.parquet import read_parquet

        return read_parquet(path)
    return read_records(path)


def _is_new(item: Item, where: str, split: str, seen: dict[int, tuple[str, str]]) -> bool:
    """Tell whether a question is there for the first time in its split; an answer that contradicts it is an error."""
    key = digest(f"{split}\n{item.question}")
    if key not in seen:
        seen[key] = (item.answer, where)
        return True
    answer, first = seen[key]
    if answer != item.answer:
        raise CorruptArtifactError(
            f"{where}: the question of {first} again, with the answer {item.answer!r:.60} instead of {answer!r:.60}",
            hint="keep the right one of the two; where they differ in another field, name that in `record.question`",
        )
    return False


def _item(row: Row, record: Record, split: str, *, carve: bool) -> Item | None:
    """Return the question that a record makes, None if its `split` template leaves it out.

    `carve` says that validation is a part of the train file.
    """
    spec = row.record
    question = _text(spec.question, "question", record)
    answer = _text(spec.answer, "answer", record, structured=row.answer.kind == "tests")
    if problem := answer_problem(row.answer.kind, answer) or _not_offered(row.answer, question, answer):
        raise CorruptArtifactError(f"{record.where}: {problem}", hint="correct the record, or the task's `record`")
    if spec.split is not None:
        named = fill(spec.split, record.values, record.where).strip()
        if not named:
            return None
        if named not in SPLITS:
            raise CorruptArtifactError(
                f"{record.where}: `split` makes {named!r:.60}", hint=f"it must make {', '.join(SPLITS)} or nothing"
            )
        if split not in ("", named) and (split, named) != ("train", "validation"):
            # without a word, a question of the test file would be trained on
            raise CorruptArtifactError(
                f"{record.where}: this is the {split} file, and the task's `split` makes {named!r} of it",
                hint="give one file of all questions as --data FILE, which `split` divides, or correct the record",
            )
        return Item(question, answer, named, record.values)
    if split == "train" and carve and split_of(question) == "validation":
        split = "validation"
    return Item(question, answer, split or split_of(question), record.values)


def _not_offered(spec: AnswerSpec, question: str, answer: str) -> str:
    """Return what keeps an answer from being one of those that its question offers, where a task says which."""
    if spec.kind not in ("word", "term"):
        return ""
    offered = spec.offered(question)
    known = {each.lower() for each in offered} if spec.kind == "term" else set(offered)
    if (answer.lower() if spec.kind == "term" else answer) in known:
        return ""
    where = "`terms`" if spec.terms else "what `candidates` finds in the question"
    return f"the answer {answer!r:.60} is none of {where}: {', '.join(map(repr, offered[:8])) or 'nothing'}"


def _text(template: str, key: str, record: Record, *, structured: bool = False) -> str:
    """Return what a field's name or a template makes of a record: text that is not empty.

    `structured`: an object is text, too, as JSON.
    """
    if "{" in template:
        text = fill(template, record.values, record.where)
    elif template not in record.values:
        raise CorruptArtifactError(
            f"{record.where}: there is no field {template!r} for the {key}",
            hint=f"it has {', '.join(map(repr, record.values))}; name the right one in the task's `record`",
        )
    else:
        value = record.values[template]
        if structured and isinstance(value, dict):
            value = json.dumps(value)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise CorruptArtifactError(
                f"{record.where}: {template!r} must be text or a number to be the {key}, not {type(value).__name__}",
                hint="a template such as '{{ choices[0] }}' reaches what is inside",
            )
        text = str(value)
    text = text.strip()
    problem = f"longer than {MAX_TEXT} characters" if len(text) > MAX_TEXT else "" if text else "empty"
    if any("\ud800" <= character <= "\udfff" for character in text):
        problem = "no text: it holds half of a surrogate pair"
    if problem:
        raise CorruptArtifactError(f"{record.where}: the {key} is {problem}", hint="correct the record")
    return text


def answer_problem(kind: str, answer: str) -> str:
    """Return what keeps `answer` from being right under a kind of reward; "" for nothing."""
    if kind == "number" and extract_number(answer) is None:
        return f"the answer {answer!r:.60} holds no number"
    if kind == "number" and (found := _HALF_READ.search(answer)):
        return f"the answer {answer!r:.60} holds {found[0]!r}: write it as 12000, 12,000, 1234.56 or 2 1/2"
    if kind == "choice" and not re.fullmatch(r"\(?[A-Ea-e1-5][).]?", answer):
        return f"the answer {answer!r:.60} is no letter from A to E and no number from 1 to 5"
    if kind == "exact" and not plain_text(answer):
        return f"the answer {answer!r:.60} is punctuation only, which counts for nothing"
    if kind == "math":
        check_installed()  # now, and not at the first answer
    if kind == "yesno" and answer.casefold() not in ("yes", "no"):
        return f"the answer {answer!r:.60} is neither yes nor no"
    return suite_problem(answer) if kind == "tests" else ""


def _drop_tested(tables: list[_Table]) -> None:
    """Take questions of the test split out of the others, in every row."""
    tested = {words_digest(item.question) for table in tables for item in table.items["test"]}
    validated = {words_digest(item.question) for table in tables for item in table.items["validation"]}
    for table in tables:
        for split, others in (("validation", tested), ("train", tested | validated)):
            table.items[split] = [each for each in table.items[split] if words_digest(each.question) not in others]
