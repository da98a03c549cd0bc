"""An evaluation says what the answers are: compared with plain transformers and weights from a plain SVD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch

from t2cli.evaluation.evaluate import (
    ROOM,
    Advance,
    Answerer,
    Answers,
    an_expert,
    compare,
    evaluate,
    the_base,
)
from t2cli.evaluation.report import adjusted, record, verdict
from t2cli.evaluation.statistics import holm, paired_gain, wilson
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import load_base
from t2cli.svf.zvector import ZVectors, identity
from t2cli.tasks.base import Example, Task

N = 40


@dataclass(frozen=True)
class DigitTask:
    """An answer is right if it holds a digit of the question's own choice."""

    name: str = "digits"
    category: str = "digits"
    description: str = ""
    max_new_tokens: int = 2

    def examples(self, split: str, n: int, seed: int) -> list[Example]:
        return [
            Example(f"{split}-{i}", f"{split} {seed} {'no ' * (i % 5)}{i}?", "13579"[: 1 + i % 5]) for i in range(n)
        ]

    def messages(self, example: Example) -> list[dict[str, str]]:
        return [{"role": "user", "content": example.question}]

    def reward(self, example: Example, completion: str) -> float:
        return 1.0 if set(completion) & set(example.answer) else -1.0


@pytest.fixture
def adapted(counting_folder: Path) -> AdaptedModel:
    return AdaptedModel(load_base(str(counting_folder), device="cpu", quiet=True))


def asked(adapted: AdaptedModel, task: Task, examples: Sequence[Example], z: ZVectors | None) -> Answers:
    """Return what an expert, or the base (None), answers."""
    who = the_base(adapted) if z is None else an_expert(adapted, z, "e")
    return who.answer(task, examples, None)


def plain_answers(folder: Path, z: ZVectors, prompts: list[list[int]], limit: int) -> list[tuple[str, list[int]]]:
    """Return text and token ids of answers by transformers' own generation, one prompt at a time.

    After U diag(S z) Vh from a float64 SVD.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, vector in z.items():
            U, S, Vh = torch.linalg.svd(weights[name].double(), full_matrices=False)
            weights[name].copy_((U * (S * vector)) @ Vh)
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False)
        answers.append(
            (tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True), out[0, len(prompt) :].tolist())
        )
    return answers


def test_the_numbers_are_those_of_the_answers(
    adapted: AdaptedModel, counting_folder: Path, random_z: Callable[..., ZVectors]
) -> None:
    task, z = DigitTask(), random_z(adapted.ranks, sigma=0.5)
    found = compare(adapted, task, z, n=N, seed=3)

    examples = task.examples("test", N, 3)
    prompts = [adapted.base.encode(task.messages(example)) for example in examples]
    right, tokens, cut = {}, {}, {}
    for name, vectors in (("base", ZVectors({})), ("expert", z)):
        answers = plain_answers(counting_folder, vectors, prompts, ROOM * task.max_new_tokens)
        right[name] = [task.reward(example, text) > 0 for example, (text, _) in zip(examples, answers, strict=True)]
        tokens[name] = [len(ids) for _, ids in answers]
        cut[name] = sum(ids[-1] not in adapted.base.eos for _, ids in answers)
    pairs = list(zip(right["base"], right["expert"], strict=True))
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    assert lost > 0  # an expert at random both breaks and mends: else the pairing is not tested
    assert won > 0
    assert found.base_accuracy == sum(right["base"]) / N
    assert found.expert_accuracy == sum(right["expert"]) / N
    assert found.gain == pytest.approx((won - lost) / N)
    tail = sum(comb(won + lost, k) for k in range(min(won, lost) + 1)) / 2 ** (won + lost)
    assert found.mcnemar_p == pytest.approx(min(1.0, 2 * tail))
    assert found.ci95 == wilson(sum(right["expert"]), N)
    assert found.gain_ci95 is not None
    assert found.gain_ci95[0] < found.gain < found.gain_ci95[1]
    assert (found.task, found.split, found.n, found.seed) == ("digits", "test", N, 3)
    assert tokens["base"] != tokens["expert"]
    assert found.base_answer_tokens == sum(tokens["base"]) / N
    assert found.expert_answer_tokens == sum(tokens["expert"]) / N
    assert (found.base_cut, found.expert_cut) == (cut["base"], cut["expert"])
    assert 0 < cut["expert"] < N


def test_the_identity_gains_exactly_nothing(adapted: AdaptedModel) -> None:
    found = compare(adapted, DigitTask(), identity(adapted.ranks), n=N, seed=0)
    assert found.base_accuracy == found.expert_accuracy
    assert (found.gain, found.mcnemar_p) == (0.0, 1.0)


def test_several_are_compared_with_one_base_on_the_same_examples(
    adapted: AdaptedModel, random_z: Callable[..., ZVectors]
) -> None:
    task, z = DigitTask(), [random_z(adapted.ranks, seed=seed, sigma=0.5) for seed in (1, 2)]
    examples = task.examples("test", N, 0)
    order: list[str] = []

    def recorded(who: Answerer) -> Answerer:
        def answer(task: Task, examples: Sequence[Example], on_done: Advance | None) -> Answers:
            order.append(who.name)
            return who.answer(task, examples, on_done)

        return replace(who, answer=answer)

    others = [an_expert(adapted, vectors, f"e@{index}", "d" * 64) for index, vectors in enumerate(z)]
    # whoever answers: here a strategy that leaves every second question to the base
    halves = Answerer("halves", lambda task, examples, on_done: alternating(adapted, task, examples, z[0]))
    everybody = [recorded(who) for who in (*others, halves)]
    found = evaluate(task, examples, recorded(the_base(adapted)), everybody, split="test", seed=0)
    assert order == ["base", "e@0", "e@1", "halves"]
    assert [row.who.name for row in found.rows] == order
    base = list(asked(adapted, task, examples, None).right)
    assert list(found.rows[0].answers.right) == base
    assert found.rows[0].paired is None
    for row, vectors in zip(found.rows[1:3], z, strict=True):
        right = list(asked(adapted, task, examples, vectors).right)
        assert list(row.answers.right) == right
        assert row.paired == paired_gain(base, right)
        assert row.ci95 == wilson(sum(right), N)
    first = asked(adapted, task, examples, z[0]).right
    assert list(found.rows[3].answers.right) == [pair[i % 2] for i, pair in enumerate(zip(base, first, strict=True))]


def alternating(adapted: AdaptedModel, task: Task, examples: Sequence[Example], z: ZVectors) -> Answers:
    """Answer the examples as the base and as an expert in turn."""
    both = [asked(adapted, task, examples, vectors) for vectors in (None, z)]
    fields = ("texts", "right", "tokens", "cut")
    columns = ([getattr(both[i % 2], field)[i] for i in range(len(examples))] for field in fields)
    return Answers(*(tuple(column) for column in columns))


def test_p_values_of_all_tasks_and_experts_are_adjusted_together(
    adapted: AdaptedModel, random_z: Callable[..., ZVectors]
) -> None:
    task = DigitTask()
    others = [an_expert(adapted, random_z(adapted.ranks, seed=seed, sigma=0.5), f"e@{seed}") for seed in (1, 2)]
    found = [
        evaluate(task, task.examples("test", N, seed), the_base(adapted), others, split="test", seed=seed)
        for seed in (0, 1)
    ]
    holm_p = adjusted(found)
    rows = [row for evaluation in found for row in evaluation.rows]
    p_values = [row.paired.mcnemar_p for row in rows if row.paired is not None]
    assert [p for each in holm_p for p in each if p is not None] == holm(p_values)
    assert [each[0] for each in holm_p] == [None, None]
    first = record(found[0], holm_p[0], len(p_values))
    assert (first["comparisons"], first["held_out"], first["max_answer_tokens"]) == (4, True, ROOM * 2)


@pytest.mark.parametrize(
    ("gain", "p", "said"),
    [
        (0.2, 0.049, "better than the base"),
        (-0.2, 0.049, "worse than the base"),
        (0.2, 0.05, "not distinguishable from the base"),
        (0.0, 1.0, "not distinguishable from the base"),
    ],
)
def test_the_verdict_in_words(gain: float, p: float, said: str) -> None:
    assert verdict(gain, p) == said


def test_the_split_and_the_seed_choose_the_questions(adapted: AdaptedModel) -> None:
    asked: list[tuple[str, int, int]] = []

    class Recording(DigitTask):
        def examples(self, split: str, n: int, seed: int) -> list[Example]:
            asked.append((split, n, seed))
            return super().examples(split, n, seed)

    z = identity(adapted.ranks)
    compare(adapted, Recording(), z, n=4, seed=5)
    compare(adapted, Recording(), z, n=6, seed=7, split="validation")
    assert asked == [("test", 4, 5), ("validation", 6, 7)]


def test_progress_counts_every_answer(adapted: AdaptedModel, random_z: Callable[..., ZVectors]) -> None:
    counts: list[int] = []
    compare(adapted, DigitTask(), random_z(adapted.ranks), n=N, seed=0, on_done=counts.append)
    assert sum(counts) == 2 * N


def test_an_evaluation_leaves_the_base_as_it_was(adapted: AdaptedModel, random_z: Callable[..., ZVectors]) -> None:
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    z, task = random_z(adapted.ranks, sigma=0.5), DigitTask()
    examples = task.examples("test", N, 0)
    answers = asked(adapted, task, examples, None)
    assert asked(adapted, task, examples, z) != answers
    assert asked(adapted, task, examples, None) == answers
    with adapted.use_z(z):  # the base is the base also inside of an expert
        assert asked(adapted, task, examples, None) == answers
    for name, tensor in adapted.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
