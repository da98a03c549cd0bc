"""Where a dispatcher sent the questions of several tasks: the category of each against the category chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from t2cli.evaluation.evaluate import Evaluation
from t2cli.evaluation.statistics import Interval, wilson
from t2cli.registry.dispatcher_record import category_key


@dataclass(frozen=True)
class Asked:
    """The questions of one task: how many of them were given which category."""

    task: str
    category: str
    counts: Mapping[str, int]

    @property
    def key(self) -> str:
        """Return what makes a category that of the questions, however it is written."""
        return category_key(self.category)

    @property
    def label(self) -> str:
        """Return the task's name, with its category where that is another word."""
        return self.task if self.task == self.category else f"{self.task} ({self.category})"


@dataclass(frozen=True)
class Confusion:
    """A dispatcher's choices: a row per task, a column per category that it knows.

    A task whose category it does not know has a row too, but no right column.
    """

    strategy: str
    rows: tuple[Asked, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the categories that were chosen from, in the order of the alphabet."""
        return tuple(sorted({name for row in self.rows for name in row.counts}))

    @property
    def right(self) -> int:
        """Return how many questions were given the category of their task."""
        return sum(count for row in self._known for name, count in row.counts.items() if category_key(name) == row.key)

    @property
    def n(self) -> int:
        """Return how many questions have a right category."""
        return sum(sum(row.counts.values()) for row in self._known)

    @property
    def ci95(self) -> Interval:
        """Return the interval of the share of right categories."""
        return wilson(self.right, self.n)

    @property
    def _known(self) -> list[Asked]:
        return [row for row in self.rows if row.key in map(category_key, row.counts)]


def confusions(evaluations: Sequence[Evaluation]) -> Iterator[Confusion]:
    """Yield the matrix of every strategy that chooses categories."""
    rows: dict[str, list[Asked]] = {}
    for evaluation in evaluations:
        task = evaluation.task
        for row in evaluation.rows:
            choices = row.answers.choices
            if choices is not None and choices.known:
                rows.setdefault(row.who.name, []).append(Asked(task.name, task.category, choices.of_categories))
    return (Confusion(strategy, tuple(asked)) for strategy, asked in rows.items())
