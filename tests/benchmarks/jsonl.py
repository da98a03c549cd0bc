"""Answering a batch of questions that need different experts, as t2 chat --jsonl does, beside the base and one by one.

    python tests/benchmarks/jsonl.py [--questions 64] [--tokens 32] [--rounds 3] [--batch 32] [--json FILE]

Four experts take turns: the three that ship, and a mix of two. All three ways use the default base, the same
questions and the same code; every answer has exactly `tokens` tokens, so that none has less to do. Pass 1 is left out:
it is the same for all. Folded weights and W Q are made before the clock starts, as in any longer run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from table import print_table, write_json

if TYPE_CHECKING:
    from t2cli.dispatch.batch import Question
    from t2cli.dispatch.decision import Strategy
    from t2cli.dispatch.two_pass import TwoPass

EXPERTS = ({"math": 1.0}, {"reasoning": 1.0}, {"code": 1.0}, {"math": 0.7, "reasoning": 0.3})
BASE, TOGETHER, ALONE = "base model, in batches", "four experts, in batches", "four experts, one by one"


def questions_of(strategies: list[Strategy], number: int) -> list[Question]:
    """Return questions of different lengths; the strategies take turns."""
    from t2cli.dispatch.batch import Question

    texts = (
        "What is {0} + {1}?",
        "Anna has {0} apples and buys {1} more. How many apples does she have now?",
        "Everybody who likes cats likes dogs. Person {0} likes cats. Does person {0} like dogs? Answer yes or no.",
    )
    return [
        Question(
            [{"role": "user", "content": texts[index % len(texts)].format(index + 11, index * 7 % 90)}],
            strategies[index % len(strategies)],
        )
        for index in range(number)
    ]


def ways(two_pass: TwoPass, number: int, tokens: int, batch: int) -> dict[str, Callable[[], float]]:
    """Return by name what answers all questions and gives the seconds it took."""
    from t2cli.config import SamplingConfig
    from t2cli.dispatch.batch import answer_each
    from t2cli.dispatch.two_pass import Answer

    sampling = SamplingConfig(max_new_tokens=tokens)
    mine = questions_of([two_pass.by_hand(weights) for weights in EXPERTS], number)
    plain = questions_of([two_pass.strategy("none")], number)

    def timed(questions: list[Question]) -> float:
        started = time.perf_counter()
        found = [answer for _, answer in answer_each(two_pass, questions, sampling, batch)]
        seconds = time.perf_counter() - started
        assert all(isinstance(answer, Answer) and answer.answer_tokens == tokens for answer in found)
        return seconds

    def one_by_one() -> float:
        started = time.perf_counter()
        for question in mine:
            two_pass.answer(question.messages, question.strategy.decide(question.messages), sampling)
        return time.perf_counter() - started

    return {BASE: lambda: timed(plain), TOGETHER: lambda: timed(mine), ALONE: one_by_one}


def main() -> None:
    """Measure in turns and print medians and ratios."""
    from t2cli.cli.session import open_model
    from t2cli.dispatch.two_pass import TwoPass
    from t2cli.paths import shipped_registry
    from t2cli.registry.local import LocalRegistry

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    adapted = open_model("smollm2-135m", device="cpu", quiet=True)
    adapted.base = replace(adapted.base, eos=frozenset())
    two_pass = TwoPass(adapted, LocalRegistry([shipped_registry()]), quiet=True)
    for warm_up in ways(two_pass, len(EXPERTS), 2, options.batch).values():
        warm_up()
    measured = ways(two_pass, options.questions, options.tokens, options.batch)
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(options.rounds):
        for name, way in measured.items():
            seconds[name].append(way())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    total = options.questions * options.tokens
    rows = [
        (
            name,
            *(f"{value:.1f}" for value in (min(values), medians[name], max(values))),
            f"{total / medians[name]:.0f}",
        )
        for name, values in seconds.items()
    ]
    print_table((f"{options.questions} questions", "min s", "median s", "max s", "tokens/s"), rows)
    print(f"of the base model's throughput: {medians[BASE] / medians[TOGETHER]:.2f}")
    print(f"times as fast as one by one: {medians[ALONE] / medians[TOGETHER]:.2f}")
    write_json(options.json, {**vars(options), "json": str(options.json), "seconds": seconds})


if __name__ == "__main__":
    main()
