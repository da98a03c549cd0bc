"""The questions of a task of categories: those of other tasks as these ask them, general ones, and phrases.

A question of a file keeps its split. Where two splits of the files hold the same words, they are those of the later of
train, validation and test. What is made, questions and phrases, is without number: in a split are those whose words, as
they are asked, no file holds in another split, and whose hash says so. Such a question has its split twice, by its own
task and by the wording: "10 - 48 = ?" is a test question here only where "Calculate 10 - 48." is one there.

People do not write as templates do, and collections of general questions have habits of their own (CLINC150 has neither
capitals nor question marks). Neither may give a category away, so that half of the questions are changed: those that
begin with a capital lose it, and the mark at their end, and the others get both.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from t2cli.errors import NotFoundError
from t2cli.registry.dispatcher_record import OTHER
from t2cli.tasks.base import SpecTask, example_of, load_spec, up_to
from t2cli.tasks.data_files import pinned
from t2cli.tasks.general import general_questions
from t2cli.tasks.glimpse import offline as without_network
from t2cli.tasks.phrases import phrases
from t2cli.tasks.records import RecordSource
from t2cli.tasks.sampling import SPLITS, Item, digest, draw, kept, split_of, words_digest
from t2cli.tasks.spec import Row, TaskSpec

if TYPE_CHECKING:
    from t2cli.tasks.base import Example

BLOCK = 64  # questions of a task that are made at a time
TYPED = 0.4  # the share of phrases among the questions of a category that has any
_QUESTION = re.compile(r"(what|who|where|when|why|how|which|is|are|do|does|did|can|could|would|will|should)\b")


def source(spec: TaskSpec) -> DispatchSource:
    """Return the source of a task whose answers are categories."""
    return DispatchSource(spec)


class DispatchSource:
    """Questions of several tasks, and general ones, each with its category as the answer."""

    finite = True  # where all the tasks read files: then there may be fewer questions than are asked for

    def __init__(self, spec: TaskSpec, *, offline: bool = False) -> None:
        self._offline = offline
        self._rows = {row.name: row for row in spec.mixture}
        specs = {row.name: pinned(load_spec(row.dataset), spec.revisions) for row in spec.mixture if row.name != OTHER}
        self._tasks = {name: without_network(each) if offline else SpecTask(each) for name, each in specs.items()}
        self._general: list[Item] | None = None
        self._records = self._hub(self._rows[OTHER])

    def stream(self, row: Row, split: str, seed: int) -> Iterator[Item]:
        """Yield questions of a task, or general ones, changed as people would write them."""
        category = str(row.config["category"])
        found = self._others(split, seed) if row.name == OTHER else self._asked(self._tasks[row.name], split, seed)
        found = (question for question in found if self._split_of(question) == split)
        if isinstance(templates := row.config.get("phrases"), tuple):
            rng = random.Random(seed)  # noqa: S311
            found = _interleaved(found, phrases([str(each) for each in templates], split, rng, self._split_of), rng)
        return (Item(varied(question), category, split) for question in found)

    def origin(self) -> list[dict[str, str]]:
        """Return the files of the general questions and of tasks that read files."""
        row = self._rows[OTHER]
        if self._records is not None:
            general = self._records.origin()
        else:
            from t2cli.files import sha256_of

            path = Path(str(row.config["path"]))
            general = [{"split": "all", "file": path.name, "sha256": sha256_of(path)}]
        found = [{"row": name, **file} for name, task in self._tasks.items() for file in task.origin()]
        return [*found, *({"row": OTHER, **file} for file in general)]

    def _asked(self, task: SpecTask, split: str, seed: int) -> Iterator[str]:
        """Yield the questions of a task as it asks them; where it makes them, until nothing new comes."""
        if task.source.finite:
            yield from (_question(task, example) for example in up_to(task, split, 10**9, seed))
            return
        seen: set[str] = set()
        for number in itertools.count(seed):
            made = [example_of(*each) for each in draw(task.spec, split, BLOCK, number, task.source, fewer=True)]
            new = [example for example in made if example.id not in seen]
            if not new:
                return
            seen.update(example.id for example in new)
            yield from (_question(task, example) for example in new)

    def _split_of(self, question: str) -> str:
        """Return the only split that may hold a question as it is asked."""
        return self._splits_in_files.get(words_digest(question)) or split_of(question)

    @functools.cached_property
    def _splits_in_files(self) -> dict[int, str]:
        """The digest of the words of each question that files hold -> its split."""
        found: dict[int, str] = {}
        missing = (NotFoundError,) if self._offline else ()  # what is not here cannot be looked at
        for split, name in itertools.product(SPLITS, self._rows):
            with contextlib.suppress(*missing):
                found.update((words_digest(question), split) for question in self._of_files(name, split))
        return found

    def _of_files(self, name: str, split: str) -> Iterator[str]:
        """Yield what a row asks of files."""
        if name == OTHER:
            yield from self._others(split, 0)
        elif (task := self._tasks[name]).source.finite:
            for row in task.spec.mixture:
                for item in kept(row, task.source.stream(row, split, 0)):
                    yield _question(task, example_of(row, item.question, item.answer, item.fields))

    def _others(self, split: str, seed: int) -> Iterator[str]:
        row = self._rows[OTHER]
        if self._records is not None:
            skip = re.compile(row.skip) if row.skip else None
            for item in self._records.stream(row, split, seed):
                if skip is None or not skip.fullmatch(item.answer):
                    yield item.question
            return
        if self._general is None:
            self._general = general_questions(Path(str(row.config["path"])), OTHER, row.skip)
        questions = [item.question for item in self._general if item.split == split]
        random.Random(seed).shuffle(questions)  # noqa: S311
        yield from questions

    def _hub(self, row: Row) -> RecordSource | None:
        """Return the source of a row that names a data set on the Hub, None for one of a file."""
        if "path" in row.config:
            if not Path(str(row.config["path"])).is_file():
                raise NotFoundError(f"there is no file {row.config['path']}", hint="--data other=FILE")
            return None
        from t2cli.tasks.hub_data import cached, fetched

        own = ("category", "phrases")
        places = MappingProxyType({key: value for key, value in row.config.items() if key not in own})
        located = replace(row, config=places)
        alone = TaskSpec(OTHER, OTHER, "", "hub", (located,), None, 1)
        return RecordSource(alone, cached if self._offline else fetched)


def _interleaved(questions: Iterator[str], typed: Iterator[str], rng: random.Random) -> Iterator[str]:
    """Yield questions, and the share TYPED of phrases among them."""
    while True:
        question = next(typed, None) if rng.random() < TYPED else None
        if question is None and (question := next(questions, None)) is None:
            return
        yield question


def _question(task: SpecTask, example: Example) -> str:
    return task.messages(example)[-1]["content"]


def varied(question: str) -> str:
    """Return a question as somebody else might have typed it; half of them, by their hash, stay as they are."""
    if digest(f"{question}/varied") % 2:
        return question
    if question[:1].isupper():
        return question[:1].lower() + question[1:].rstrip(" ?.!")
    ended = question + ("?" if _QUESTION.match(question) else ".") if question[-1:].isalnum() else question
    return ended[:1].upper() + ended[1:]
