"""Tasks that no expert that ships was trained on: their answers, found another way, and what they are asked beside."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from t2cli.paths import shipped_registry
from t2cli.registry.local import LocalRegistry
from t2cli.tasks.base import Example, SpecTask, load_task

pytest.importorskip("reasoning_gym", reason="the extra [tasks] is not installed")

UNSEEN = ("largest", "letters", "terms")


def asked(task: SpecTask, example: Example) -> str:
    return task.messages(example)[-1]["content"]


def found(name: str, question: str) -> int:
    """Return the right answer to what the model is asked."""
    if name == "letters":
        letter, text = re.findall(r'"([^"]*)"', question)
        return sum(character == letter for character in text.lower())
    numbers = [int(number) for number in re.findall(r"\d+", question)]
    if name == "largest":
        return max(numbers) if "largest" in question else min(numbers)
    first, second, third = numbers
    signs = [1 if sign == "+" else -1 for sign in re.findall(r"([+-]) \d", question)]
    return first + signs[0] * second + signs[1] * third


@pytest.mark.parametrize("name", UNSEEN)
def test_answers_are_right_and_told_apart_by_knowing(name: str) -> None:
    task = load_task(name)
    assert isinstance(task, SpecTask)
    examples = task.examples("train", 300, 0)
    answers = [found(name, asked(task, example)) for example in examples]
    for example, answer in zip(examples, answers, strict=True):
        assert task.reward(example, f"It is {answer}.") == 1.0
        assert task.reward(example, f"It is {answer + 1}.") == -1.0
    assert Counter(answers).most_common(1)[0][1] <= 0.6 * len(answers)


def test_no_expert_that_ships_was_trained_on_them() -> None:
    trained = {
        entry.manifest.training.task for entry in LocalRegistry([shipped_registry()]).list() if entry.manifest.training
    }
    assert trained
    assert not trained & set(UNSEEN)
    categories = {entry.manifest.category for entry in LocalRegistry([shipped_registry()]).list()}
    assert not categories & {load_task(name).category for name in UNSEEN}
