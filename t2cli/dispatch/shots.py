"""A few examples of a task, from which a strategy learns before it answers: never those that it is measured on."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from t2cli.dispatch.decision import Messages
from t2cli.dispatch.examples import FEWEST
from t2cli.errors import T2Error, UsageError
from t2cli.evaluation.solutions import fenced, written
from t2cli.tasks.base import Example, SpecTask, Task, up_to


@dataclass(frozen=True)
class Shots:
    """Examples of one task, and the split that they are from."""

    split: str
    examples: tuple[Example, ...]


def draw_shots(
    task: Task, splits: Sequence[str], n: int, seed: int, *, measured: str, strict: bool, fewest: int = FEWEST
) -> Shots:
    """Return `n` examples of the first of `splits` that has any; with `strict` no fewer, else at least `fewest`.

    Raises UsageError where there are too few, and where that split is the one that is `measured`; else as `examples`.
    """
    if isinstance(task, SpecTask):
        task.origin()  # reads the files: a T2Error here is about them and not about a split that is empty
    for split in splits:
        with contextlib.suppress(T2Error):  # a task for evaluation has questions of the split test alone
            up_to(task, split, 1, seed)
            break
    else:
        raise UsageError(
            f"{task.name} has questions for evaluation only: none of the split {' or '.join(splits)}",
            hint="leave out what learns from examples, such as --adapt few-shot",
        )
    if split == measured:
        raise UsageError(
            f"what learns from examples of {task.name} takes those of the split {split}, which is to be measured",
            hint="measure the split test",
        )
    found = tuple(up_to(task, split, n, seed))
    if len(found) < (n if strict else fewest):
        raise UsageError(
            f"{task.name} has {len(found)} questions of the split {split}, and {n if strict else fewest} are needed",
            hint="ask for fewer --shots, or give the task more questions",
        )
    return Shots(split, found)


@dataclass(frozen=True)
class TaskShot:
    """An example of a task as a search reads it, asked and judged as the task does."""

    task: Task
    example: Example
    line: int  # which of the examples, from 1
    _judged: dict[str, bool] = field(default_factory=dict, repr=False, compare=False)

    @property
    def messages(self) -> Messages:
        """Return the chat that asks it."""
        return self.task.messages(self.example)

    @property
    def answer(self) -> str:
        """Return a right answer as the model would write it; of a function that is tested, a right one or the tests."""
        if (right := written(self.task, self.example)) is not None:
            return right
        from t2cli.tasks.unit_tests import Suite

        return fenced(Suite.parse(self.example.answer).tests)

    def is_right(self, completion: str) -> bool:
        """Tell whether a completion is right; many mixes say the same, which is judged once."""
        if completion not in self._judged:
            self._judged[completion] = self.task.reward(self.example, completion) > 0
        return self._judged[completion]
