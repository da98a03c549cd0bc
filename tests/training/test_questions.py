"""What a run asks: enough of it, known by a digest, and in training nothing twice while there is something new."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import pytest
from odd_task import SMALL, OddTask

from t2cli.config import TrainConfig
from t2cli.errors import T2Error, UsageError
from t2cli.models.team import Item, Team
from t2cli.svf.evolution import seed_of_step
from t2cli.tasks.base import Example, SpecTask, load_task
from t2cli.tasks.spec import TaskSpec
from t2cli.training.questions import Lessons, questions_of

CONFIG = TrainConfig(seed=3)
FEW = """
name: sums
category: sums
description: sums of two digits
max_new_tokens: 4
answer: {kind: number}
source:
  kind: reasoning-gym
  mixture:
    - dataset: basic_arithmetic
      config: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1, operators: ["+"], allow_parentheses: false}
"""


def test_a_task_with_too_few_questions_is_refused_before_training() -> None:
    class Few(OddTask):
        def examples(self, split: str, n: int, seed: int) -> list[Example]:
            if split == "test" and n > 30:
                raise T2Error("too few")
            return super().examples(split, n, seed)

    questions = questions_of(OddTask(), SMALL)
    assert (questions.validation, questions.test, questions.warnings) == (24, 40, [])
    with pytest.raises(T2Error, match="too few"):
        questions_of(Few(), SMALL)


def test_what_a_run_asks_is_known_by_a_digest() -> None:
    class Other(OddTask):
        def messages(self, example: Example) -> list[dict[str, str]]:
            return [{"role": "user", "content": f"Say: {example.question}"}]

    known = questions_of(OddTask(), SMALL).digest
    assert questions_of(OddTask(), replace(SMALL, steps=9, learning_rate=1.0)).digest == known
    changed = [questions_of(task, SMALL).digest for task in (Other(), OddTask(max_new_tokens=9), OddTask(name="even"))]
    assert len({known, *changed, questions_of(OddTask(), replace(SMALL, seed=1)).digest}) == 5


def test_processes_that_ask_different_questions_are_told() -> None:
    class Two(Team):
        def gathered(self, mine: Sequence[Item]) -> list[Item]:
            return [*mine, *theirs]

    questions = questions_of(OddTask(), SMALL)
    theirs = [questions.digest]
    questions.check_together(Two())
    theirs = ["another"]
    with pytest.raises(UsageError, match="ask different questions"):
        questions.check_together(Two())


def test_training_asks_all_questions_before_it_asks_one_again() -> None:
    pytest.importorskip("reasoning_gym")
    task = SpecTask(TaskSpec.from_yaml(FEW, "sums.yaml"))
    lessons = Lessons(task, CONFIG).after(0)
    asked = [example.question for lesson in islice(lessons, 20) for example in lesson]
    first = next(n for n in range(1, len(asked)) if asked[n] in asked[:n])
    counts = Counter(asked)
    assert len(counts) - CONFIG.prompts_per_step < first <= len(counts)  # a lesson may hold the end of one pass
    assert max(counts.values()) - min(counts.values()) <= 2
    anew = [example.question for step in range(5) for example in task.examples("train", 12, seed_of_step(3, step))]
    assert len(set(anew)) < len(anew) == len(set(asked[: len(anew)]))


def test_a_resumed_run_asks_what_it_would_have_asked() -> None:
    pytest.importorskip("reasoning_gym")
    task = SpecTask(TaskSpec.from_yaml(FEW, "sums.yaml"))
    lessons = list(islice(Lessons(task, CONFIG).after(0), 12))
    for taken in (0, 1, 7, 11):
        resumed = Lessons(task, CONFIG)
        assert list(islice(resumed.after(taken), 12 - taken)) == lessons[taken:]
        assert resumed.taken == 12


def test_where_questions_never_run_out_each_lesson_has_its_own() -> None:
    task, n = load_task("code"), CONFIG.prompts_per_step
    for taken, lesson in enumerate(islice(Lessons(load_task("code"), CONFIG).after(0), 10)):
        assert lesson == task.examples("train", n, seed_of_step(CONFIG.seed, taken))
    third = next(Lessons(OddTask(), SMALL).after(2))
    assert third == OddTask().examples("train", 8, seed_of_step(SMALL.seed, 2))
