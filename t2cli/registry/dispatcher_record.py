"""What a dispatcher chooses between, and how well it does: the part of a manifest that experts do not have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2cli.registry.fields import Fields

OTHER = "other"  # the category of questions that no expert is for: the base model untouched
MOST_CATEGORIES = 26
LARGEST_COUNT = 1 << 40
_LABEL = re.compile(r"\S{1,32}")


def category_key(name: str) -> str:
    """Return what makes two categories one: Math and math are."""
    return " ".join(name.split()).casefold()


@dataclass(frozen=True)
class DispatcherRecord:
    """A dispatcher reads which of the C `labels` the base, under its z, answers after `instruction` and a question.

    `categories` (C) are what the labels mean, OTHER among them. `confusion` (C, C) counts held-out questions: a row for
    each right category, a column for each answered one. A category below `threshold` is left to the base model.
    """

    instruction: str
    categories: tuple[str, ...]
    labels: tuple[str, ...]
    threshold: float
    confusion: tuple[tuple[int, ...], ...]

    @property
    def n(self) -> int:
        """Return how many held-out questions there were."""
        return sum(sum(row) for row in self.confusion)

    @property
    def accuracy(self) -> float:
        """Return the share of held-out questions whose category was right."""
        return sum(row[place] for place, row in enumerate(self.confusion)) / max(1, self.n)


def read_dispatcher(row: Fields) -> DispatcherRecord:
    """Return the dispatcher's part of a manifest; CorruptArtifactError, naming the key, if it is none."""
    for key in ("categories", "labels", "confusion"):
        row.get(key)  # of a list, an absent one would be an empty one
    categories = row.texts("categories")
    if not 2 <= len(categories) <= MOST_CATEGORIES or len(set(categories)) < len(categories):
        raise row.fail("categories", f"2 to {MOST_CATEGORIES} different categories")
    if OTHER not in categories:
        raise row.fail("categories", f"categories with {OTHER!r} among them")
    labels = row.texts("labels")
    sound = len(labels) == len(categories) == len(set(labels)) and all(map(_LABEL.fullmatch, labels))
    if not sound:
        raise row.fail("labels", "a short label without spaces for each category, all different")
    return DispatcherRecord(
        instruction=row.text("instruction"),
        categories=categories,
        labels=labels,
        threshold=row.number("threshold", 0.0, 1.0),
        confusion=_confusion(row, len(categories)),
    )


def dispatcher_of(fields: dict[str, object]) -> DispatcherRecord:
    """Return a record from the plain data that `read_dispatcher` has accepted before."""
    record = DispatcherRecord(**fields)  # type: ignore[arg-type]
    confusion = tuple(tuple(row) for row in record.confusion)
    return DispatcherRecord(
        record.instruction, tuple(record.categories), tuple(record.labels), record.threshold, confusion
    )


def _confusion(row: Fields, size: int) -> tuple[tuple[int, ...], ...]:
    counted = row.items("confusion")
    found = tuple(tuple(line) if isinstance(line, list) else () for line in counted)
    whole = all(
        isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= LARGEST_COUNT
        for line in found
        for count in line
    )
    if not whole or [len(line) for line in found] != [size] * size:
        raise row.fail("confusion", f"{size} lists of {size} counts each")
    return found
