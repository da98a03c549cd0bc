"""Strategies that choose by rule, and a task of files, to see what becomes of a choice."""

from __future__ import annotations

import json
from pathlib import Path

from t2cli.config import DispatchConfig
from t2cli.dispatch.decision import Decision, Messages, Strategy
from t2cli.dispatch.two_pass import TwoPass
from t2cli.tasks.base import SpecTask, load_task

CATEGORIES = ("math", "other", "story")

TASK = """
name: digits
category: math
description: questions that a digit answers
system: Say a digit.
max_new_tokens: 3
answer: {{kind: {kind}}}
{more}
source:
  kind: jsonl
  file: questions.jsonl
"""


def task_in(
    folder: Path, *, kind: str = "number", more: str = "", name: str = "digits", questions: int = 150
) -> SpecTask:
    """Return a task whose questions differ in length and have odd digits for answers."""
    folder.mkdir(exist_ok=True)
    records = [{"question": f"{'no ' * (i % 5)}{i}?", "answer": "13579"[i % 5]} for i in range(questions)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / f"{name}.yaml").write_text(TASK.format(kind=kind, more=more).replace("name: digits", f"name: {name}"))
    task = load_task(str(folder / f"{name}.yaml"))
    assert isinstance(task, SpecTask)
    return task


class Always:
    """Chooses math, whatever is asked."""

    def decide(self, messages: Messages) -> Decision:
        return Decision("always", "math", dict.fromkeys(CATEGORIES, 0.0) | {"math": 1.0}, {"math@1": 1.0}, 0.25)


class Shared:
    """Leaves two in ten questions to the base, gives one to a mix and one to story, and the others to math."""

    def decide(self, messages: Messages) -> Decision:
        number = int(messages[-1]["content"].split()[-1].removesuffix("?"))
        few: dict[int, tuple[str, dict[str, float]]] = {
            0: ("other", {}),
            1: ("other", {}),
            2: ("story", {"story@1": 1.0}),
            3: ("math", {"math@1": 0.75, "story@1": 0.5}),
        }
        category, weights = few.get(number % 10, ("math", {"math@1": 1.0}))
        return Decision("shared", category, dict.fromkeys(CATEGORIES, 0.1) | {category: 0.8}, weights)


def always(two_pass: TwoPass, config: DispatchConfig) -> Strategy:
    return Always()


def shared(two_pass: TwoPass, config: DispatchConfig) -> Strategy:
    return Shared()
