"""What a manifest says of a dispatcher: what it chooses between, from when on it may, and what it confuses.

The threshold comes from validation questions, the confusion from test questions, which chose nothing.
"""

from __future__ import annotations

import torch

from t2cli.evaluation.labels import read_labels
from t2cli.models.text_model import TextModel
from t2cli.registry.dispatcher_record import OTHER, DispatcherRecord
from t2cli.tasks.base import Example, Task
from t2cli.tasks.dispatch import LabelSet

VALIDATION_EXAMPLES = 480  # more than choose a checkpoint: a threshold is about the few that go wrong
STAY = 0.97  # of general questions that are to stay with the base
STEPS = 100  # thresholds are hundredths


def measured(
    model: TextModel, task: Task, label_set: LabelSet, validation: list[Example], test: list[Example]
) -> DispatcherRecord:
    """Return the record of the dispatcher that is in use in the model."""
    other = label_set.categories.index(OTHER)
    found, right = read_labels(model, task, label_set, validation).exp(), places(label_set, validation)
    said = read_labels(model, task, label_set, test).argmax(dim=1)
    return DispatcherRecord(
        label_set.instruction,
        label_set.categories,
        label_set.labels,
        threshold_of(found, right, other),
        confusion(said, places(label_set, test), len(label_set.categories)),
    )


def places(label_set: LabelSet, examples: list[Example]) -> torch.Tensor:
    """Return the place (N,) of each example's right category."""
    return torch.tensor([label_set.categories.index(example.answer) for example in examples])


def threshold_of(probabilities: torch.Tensor, right: torch.Tensor, other: int) -> float:
    """Return from which probability on a category may answer, from probabilities (N, C) and right categories (N,).

    At least a half: it has to be likelier than all the others together. Of the hundredths from there on that keep the
    share STAY of the questions of the category `other` with the base, the one that loses the fewest questions of the
    others, and of equal ones the middle. Where none keeps so many, the one that keeps the most.
    """
    best, said = probabilities.max(dim=1)
    general, steps = right == other, range(STEPS // 2, STEPS + 1)
    kept: dict[int, float] = {}
    lost: dict[int, int] = {}
    for step in steps:
        sent = (said != other) & (best >= step / STEPS)
        kept[step] = float((~sent[general]).float().mean()) if bool(general.any()) else 1.0
        lost[step] = int((~general & (said == right) & ~sent).sum())
    enough = [step for step in steps if kept[step] >= min(STAY, max(kept.values()))]
    fewest = min(lost[step] for step in enough)
    good = [step for step in enough if lost[step] == fewest]
    return good[len(good) // 2] / STEPS


def confusion(said: torch.Tensor, right: torch.Tensor, categories: int) -> tuple[tuple[int, ...], ...]:
    """Return how many questions of each category (row) were said to be of each (column), from places (N,)."""
    counts = torch.bincount(right * categories + said, minlength=categories**2).view(categories, categories)
    return tuple(tuple(row) for row in counts.tolist())
