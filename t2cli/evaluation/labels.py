"""Evaluate a task whose answers are categories: read off the labels' probabilities, instead of generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from t2cli.models.labels import LabelPrompt, LabelReader
from t2cli.models.text_model import TextModel
from t2cli.tasks.base import Example, Task
from t2cli.tasks.dispatch import LabelSet


def read_labels(
    model: TextModel,
    task: Task,
    label_set: LabelSet,
    examples: Sequence[Example],
    *,
    on_done: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """Return log P(category | question) (N, C) of each example under what is in use in the model.

    Questions of like length are read side by side; a model's team shares them, and every process returns all.
    """
    prompt = LabelPrompt(model.base, label_set.instruction, label_set.labels)
    reader = LabelReader(model, prompt)
    questions = [question_of(task, example) for example in examples]
    mine = model.team.share(sorted(range(len(questions)), key=lambda index: len(questions[index])))

    def read(batch: Sequence[int]) -> list[tuple[int, list[float]]]:
        found = reader.read_each([questions[index] for index in batch])
        if on_done is not None:
            on_done(len(batch))
        return list(zip(batch, found.tolist(), strict=True))

    results = dict(model.team.gathered([pair for part in model.answers_at_once.over(mine, read) for pair in part]))
    if on_done is not None and len(mine) < len(questions):
        on_done(len(questions) - len(mine))
    return torch.tensor([results[index] for index in range(len(questions))])


def question_of(task: Task, example: Example) -> str:
    """Return what a person asks in an example."""
    return task.messages(example)[-1]["content"]
