"""What a manifest says of a dispatcher: what it chooses between, from when on it may, and what it confuses.

The threshold comes from validation questions, the confusion from test questions, which chose nothing.
"""

from __future__ import annotations

import torch

from t2cli.evaluation.labels import read_labels
from t2cli.models.text_model import TextModel
from t2cli.registry.dispatcher_record import OTHER, DispatcherRecord
from t2cli.tasks.base import Example, Task
from t2cli.tasks.dispatch import Choices

VALIDATION_EXAMPLES = 480  # more than choose a checkpoint: a threshold is about the few that go wrong
STAY = 0.97  # of general questions that are to stay with the base
STEPS = 100  # thresholds are hundredths


def measured(
    model: TextModel, task: Task, choices: Choices, validation: list[Example], test: list[Example]
) -> DispatcherRecord:
    """Return the record of the dispatcher that is in use in the model."""
    other = choices.categories.index(OTHER)
    found, right = read_labels(model, task, choices, validation).exp(), places(choices, validation)
    said = read_labels(model, task, choices, test).argmax(dim=1)
    return DispatcherRecord(
        choices.instruction,
        choices.categories,
        choices.labels,
        threshold_of(found, right, other),
        confusion(said, places(choices, test), len(choices.categories)),
    )


def places(choices: Choices, examples: list[Example]) -> torch.Tensor:
    """Return the place (N,) of each example's right category."""
    return torch.tensor([choices.categories.index(example.answer) for example in examples])


def threshold_of(probabilities: torch.Tensor, right: torch.Tensor, other: int) -> float:
    """Return from which probability on a category may answer, from probabilities (N, C) and right categories (N,).

    Of the hundredths that keep the share STAY of the questions of the category `other` with the base, the one that
    loses the fewest questions of the others, and of equal ones the middle: it is as far as can be from losing any.
    Where none keeps so many, the one that keeps the most.
    """
    best, said = probabilities.max(dim=1)
    general = right == other
    kept, lost = [], []
    for step in range(STEPS + 1):
        sent = (said != other) & (best >= step / STEPS)
        kept.append(float((~sent[general]).float().mean()) if bool(general.any()) else 1.0)
        lost.append(int((~general & (said == right) & ~sent).sum()))
    enough = [step for step in range(STEPS + 1) if kept[step] >= min(STAY, max(kept))]
    fewest = min(lost[step] for step in enough)
    good = [step for step in enough if lost[step] == fewest]
    return good[len(good) // 2] / STEPS


def confusion(said: torch.Tensor, right: torch.Tensor, categories: int) -> tuple[tuple[int, ...], ...]:
    """Return how many questions of each category (row) were said to be of each (column), from places (N,)."""
    counts = torch.bincount(right * categories + said, minlength=categories**2).view(categories, categories)
    return tuple(tuple(row) for row in counts.tolist())
