"""An evaluation says what the answers are: compared with plain transformers and weights from a plain SVD."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch

from t2cli.evaluation.evaluate import ROOM, compare, right_answers
from t2cli.evaluation.statistics import wilson
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import load_base
from t2cli.svf.zvector import ZVectors, identity
from t2cli.tasks.base import Example

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


def plain_answers(folder: Path, z: ZVectors, prompts: list[list[int]], limit: int) -> list[str]:
    """Answer with transformers' own generation, one prompt at a time, after U diag(S z) Vh from a float64 SVD."""
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
        answers.append(tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True))
    return answers


def test_the_numbers_are_those_of_the_answers(
    adapted: AdaptedModel, counting_folder: Path, random_z: Callable[..., ZVectors]
) -> None:
    task, z = DigitTask(), random_z(adapted.ranks, sigma=0.5)
    found = compare(adapted, task, z, n=N, seed=3)

    examples = task.examples("test", N, 3)
    prompts = [adapted.base.encode(task.messages(example)) for example in examples]
    right = {}
    for name, vectors in (("base", ZVectors({})), ("expert", z)):
        answers = plain_answers(counting_folder, vectors, prompts, ROOM * task.max_new_tokens)
        right[name] = [task.reward(example, text) > 0 for example, text in zip(examples, answers, strict=True)]
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


def test_the_identity_gains_exactly_nothing(adapted: AdaptedModel) -> None:
    found = compare(adapted, DigitTask(), identity(adapted.ranks), n=N, seed=0)
    assert found.base_accuracy == found.expert_accuracy
    assert (found.gain, found.mcnemar_p) == (0.0, 1.0)


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
    answers = right_answers(adapted, task, examples, None)
    assert right_answers(adapted, task, examples, z) != answers
    assert right_answers(adapted, task, examples, None) == answers
    with adapted.use_z(z):  # the base is the base also inside of an expert
        assert right_answers(adapted, task, examples, None) == answers
    for name, tensor in adapted.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
