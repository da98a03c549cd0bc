"""Where questions went: counts by hand, and what is said of choices."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from t2cli.evaluation.choices import Choices, Learned, record
from t2cli.evaluation.confusion import Asked, Confusion, confusions
from t2cli.evaluation.evaluate import Answerer, Answers, Evaluation, Row
from t2cli.evaluation.statistics import wilson
from t2cli.tasks.base import Example

CHOICES = Choices(
    categories=("math", "math", "other", "code"),
    known=("code", "math", "other"),
    weights=({"math@1": 1.0}, {"math@1": 0.5, "code@1": 0.0}, {}, {}),
    pass1_seconds=1.0,
    answer_seconds=3.0,
)


@dataclass(frozen=True)
class NamedTask:
    name: str
    category: str
    description: str = ""
    max_new_tokens: int = 2

    def examples(self, split: str, n: int, seed: int) -> list[Example]:
        return []

    def messages(self, example: Example) -> list[dict[str, str]]:
        return []

    def reward(self, example: Example, completion: str) -> float:
        return 1.0


def evaluation(name: str, category: str, **choices: Choices | None) -> Evaluation:
    """Return an evaluation of four answers by each strategy, with its choices."""
    rows = []
    for strategy, each in choices.items():
        who = Answerer(strategy, lambda task, examples, on_done: None)  # type: ignore[arg-type, return-value]
        rows.append(Row(who, Answers(("",) * 4, (True,) * 4, (1,) * 4, (False,) * 4, each), (0.0, 1.0), None))
    return Evaluation(NamedTask(name, category), "test", 0, 8, (), tuple(rows), held_out=True)


def test_counts() -> None:
    assert CHOICES.of_categories == {"code": 1, "math": 2, "other": 1}
    assert CHOICES.of_experts == {"math@1": 2}
    assert CHOICES.left_to_base == 2
    assert CHOICES.share == 0.25
    assert replace(CHOICES, pass1_seconds=0.0, answer_seconds=0.0).share == 0.0


def test_a_matrix_for_each_strategy_that_chooses_categories() -> None:
    fixed = replace(CHOICES, categories=(None,) * 4, known=())
    all_math = replace(CHOICES, categories=("math",) * 4)
    found = list(
        confusions(
            [
                evaluation("math", "math", none=None, prompt=all_math, best=fixed),
                evaluation("mbpp", "code", none=None, prompt=CHOICES, best=fixed),
                evaluation("gsm8k", "word problems", none=None, prompt=CHOICES, best=fixed),
            ]
        )
    )
    assert [confusion.strategy for confusion in found] == ["prompt"]
    (matrix,) = found
    assert matrix.columns == ("code", "math", "other")
    assert [row.label for row in matrix.rows] == ["math", "mbpp (code)", "gsm8k (word problems)"]
    assert [[row.counts[name] for name in matrix.columns] for row in matrix.rows] == [[0, 4, 0], [1, 2, 1], [1, 2, 1]]
    assert (matrix.right, matrix.n) == (5, 8)  # word problems are no category that it knows
    assert matrix.ci95 == wilson(5, 8)


def test_tasks_of_unknown_categories_alone_have_nothing_right() -> None:
    matrix = Confusion("prompt", (Asked("a", "b", {"other": 3, "math": 1}),))
    assert (matrix.right, matrix.n, matrix.columns) == (0, 0, ("math", "other"))


def test_the_record_of_choices() -> None:
    learned = Learned("train", 16, "mix", {"base": 0.25, "mix": 0.5}, {"math@1": 0.75}, {"math@1": 0.1})
    plain = record(CHOICES)
    assert plain == {
        "categories": {"code": 1, "math": 2, "other": 1},
        "experts": {"math@1": 2},
        "left_to_base": 2,
        "pass1_seconds": 1.0,
        "answer_seconds": 3.0,
        "pass1_share": 0.25,
        "learned": None,
    }
    assert record(replace(CHOICES, learned=learned))["learned"] == {
        "split": "train",
        "shots": 16,
        "chosen": "mix",
        "scores": {"base": 0.25, "mix": 0.5},
        "alphas": {"math@1": {"alpha": 0.75, "spread": pytest.approx(0.1)}},
    }
