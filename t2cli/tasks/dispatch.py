"""A task whose answers are the categories of other tasks: what a dispatcher is trained on.

    name: dispatch
    category: dispatch
    description: one line
    max_new_tokens: 1
    answer: {kind: exact}
    source:
      kind: dispatch
      tasks: [math, ./mine.yaml]    # whose questions it tells apart, by their categories
      other:                        # general questions, which no expert is for
        file: general.json          # see t2cli.tasks.general; or a data set on the Hub, as in a task of its own:
        dataset: org/name
        ...
        skip: weather               # leaves out questions with such an intent, or such an answer of their `record`
      phrases:                      # optional: category -> templates of what people type (t2cli.tasks.phrases)
        math: ["add {number} to {number}"]

Every category gets the same share, whatever the number of its tasks. A question keeps the split it has in its own task.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from t2cli.errors import NotFoundError
from t2cli.registry.dispatcher_record import MOST_CATEGORIES, OTHER, category_key
from t2cli.tasks.base import SpecTask, load_spec
from t2cli.tasks.phrases import SLOTS, unknown_slot
from t2cli.tasks.records import RecordSpec
from t2cli.tasks.spec import SOURCE_OF_CATEGORIES, AnswerSpec, Row, TaskSpec, read_row

if TYPE_CHECKING:
    from t2cli.tasks.base import Task
    from t2cli.tasks.fields import Fields

AS_IT_IS = ("{{ question }}",)  # how a question is worded here: its own task worded it
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ASKED = "Which kind of question is this? Answer with one letter."
ABOUT_OTHER = "any other question or request"


@dataclass(frozen=True)
class LabelSet:
    """What a dispatcher chooses between: an instruction, and a label for each category."""

    instruction: str
    categories: tuple[str, ...]
    labels: tuple[str, ...]

    def category(self, label: int) -> str:
        """Return the category of the label at a place."""
        return self.categories[label]


def label_set_of(task: Task) -> LabelSet | None:
    """Return what a task has its questions told apart by; None for a task of another kind."""
    if not isinstance(task, SpecTask) or task.spec.source != SOURCE_OF_CATEGORIES:
        return None
    categories = tuple(dict.fromkeys(str(row.config["category"]) for row in task.spec.mixture))
    assert task.spec.system is not None
    return LabelSet(task.spec.system, categories, tuple(LETTERS[: len(categories)]))


def rows_of(source: Fields, answer: AnswerSpec, folder: Path) -> tuple[tuple[Row, ...], str]:
    """Return the rows of the source of a task file in `folder`, and the instruction that they make.

    Raises CorruptArtifactError naming the key that is wrong.
    """
    named: list[tuple[str, TaskSpec]] = []
    for name in source.texts("tasks"):
        is_file = name.endswith((".yaml", ".yml"))
        place = str(folder / Path(name).expanduser()) if is_file else name
        try:
            spec = load_spec(place)
        except NotFoundError as error:
            raise source.wrong("tasks", error.message, error.hint) from error
        if spec.source == SOURCE_OF_CATEGORIES or category_key(spec.category) == OTHER:
            raise source.wrong("tasks", f"{name} has no questions of a category of its own", "leave it out")
        named.append((place, spec))
    _check(source, [spec for _, spec in named])
    typed = _phrases(source, {OTHER, *(spec.category for _, spec in named)})
    categories = [spec.category for _, spec in named]
    rows = [_row(spec.name, place, spec.category, 1 / categories.count(spec.category), answer) for place, spec in named]
    rows.append(_other(source.inner("other"), answer, folder))
    described: dict[str, str] = {}
    for _, spec in named:
        described.setdefault(spec.category, spec.description)
    return tuple(_with(row, typed) for row in rows), instruction(described)


def _check(source: Fields, specs: list[TaskSpec]) -> None:
    """Raise CorruptArtifactError for tasks that cannot be told apart."""
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise source.wrong("tasks", "two tasks have one name", "name each once")
    categories = {spec.category for spec in specs}
    if len(set(map(category_key, categories))) < len(categories):
        raise source.wrong("tasks", "two tasks write one category differently", "write it the same in both")
    if len(categories) >= MOST_CATEGORIES:
        raise source.wrong("tasks", f"there are more than {MOST_CATEGORIES - 1} categories", "leave some out")


def _phrases(source: Fields, categories: set[str]) -> dict[str, tuple[str, ...]]:
    """Return the templates of each category that has any."""
    if not source.has("phrases"):
        return {}
    fields = source.inner("phrases")
    found = {name: fields.texts(name) for name in sorted(categories) if fields.has(name)}
    for name, templates in found.items():
        if unknown := next(filter(None, map(unknown_slot, templates)), None):
            raise fields.wrong(name, f"there are no words for {unknown}", f"there are some for {', '.join(SLOTS)}")
    fields.done()
    return found


def _with(row: Row, typed: dict[str, tuple[str, ...]]) -> Row:
    """Return a row with the phrases of its category."""
    templates = typed.get(str(row.config["category"]))
    return replace(row, config=MappingProxyType({**row.config, "phrases": templates})) if templates else row


def instruction(described: dict[str, str]) -> str:
    """Return the one line that asks for the category of a question: category -> what it is about."""
    every = {**described, OTHER: ABOUT_OTHER}
    lines = (f"{letter}: {name} ({about})." for letter, (name, about) in zip(LETTERS, every.items(), strict=False))
    return " ".join((ASKED, *lines))


def _row(name: str, dataset: str, category: str, weight: float, answer: AnswerSpec) -> Row:
    config = MappingProxyType({"category": category})
    return Row(name, dataset, weight, config, None, AS_IT_IS, answer, RecordSpec())


def _other(fields: Fields, answer: AnswerSpec, folder: Path) -> Row:
    """Return the row of general questions."""
    if fields.has("file") and not fields.has("dataset"):
        file, skip = fields.text("file"), fields.regex("skip").pattern if fields.has("skip") else None
        fields.done()
        return from_file(replace(_row(OTHER, "", OTHER, 1.0, answer), skip=skip), str(folder / Path(file).expanduser()))
    row = read_row("hub", fields, answer, AS_IT_IS)
    return replace(row, name=OTHER, config=MappingProxyType({**row.config, "category": OTHER}))


def from_file(row: Row, path: str) -> Row:
    """Return the row of general questions with those of a file in place of its own."""
    kept = {key: value for key, value in row.config.items() if key in ("category", "phrases")}
    return replace(row, dataset=Path(path).name, config=MappingProxyType({**kept, "path": path}))
