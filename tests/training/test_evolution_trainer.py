"""Evolution strategies learn the counting task without a backward pass, and order candidates as they should."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from interruptions import Heard
from odd_task import SMALL, OddTask, start

from t2cli.evaluation.evaluate import answers_in_use
from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import LocalRegistry
from t2cli.svf.zvector import ZVectors, unflatten
from t2cli.tasks.base import Example, load_task
from t2cli.training import evolution
from t2cli.training.checkpoint import run_to_resume
from t2cli.training.evolution import EvolutionTrainer, fitness

EVOLVED = replace(SMALL, trainer="evolution", prompts_per_step=4, population=16, sigma=0.1, learning_rate=2.0, steps=15)
NOTHING = torch.Generator()


def test_rewards_rise(counting: AdaptedModel) -> None:
    trainer, task = EvolutionTrainer(counting, EVOLVED), OddTask()
    held_out = task.examples("validation", 32, 0)
    before = sum(answers_in_use(counting, task, held_out).right)
    for step in range(EVOLVED.steps):
        trainer.update(task, iter([task.examples("train", 4, step)]), NOTHING)
    assert trainer.policy.flat.grad is None
    with counting.use_z(trainer.policy.z()):
        assert sum(answers_in_use(counting, task, held_out).right) > before + 6


def test_an_update_by_hand(counting: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every candidate answers alone here: p += rate * sigma^2 * 1 / (N sigma) sum of u_i eps_i, u from -0.5 to 0.5."""
    task = OddTask()
    examples = task.examples("train", 4, 0)
    config = replace(EVOLVED, population=6)
    noise = evolution.perturbations(0, 0, 6, sum(counting.ranks.values()), 0.1)
    scores = []
    for shift in noise:
        z = ZVectors(unflatten(1 + shift, counting.ranks))
        with counting.use_z(z):
            right = 0
            logp = 0.0
            for example in examples:
                prompt = counting.base.encode(task.messages(example))
                ids = list(prompt)
                for _ in range(task.max_new_tokens):
                    token = int(counting.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
                    ids.append(token)
                    if token in counting.base.eos:
                        right += set(counting.base.decode(ids[len(prompt) :])) & set("13579") != set()
                        break
                (answer,) = counting.base.tokenizer(example.answer)["input_ids"]
                logits = counting.model(input_ids=torch.tensor([prompt])).logits[0, -1]
                logp += float(logits.log_softmax(-1)[answer]) / 4
        scores.append((right, logp))
    order = sorted(range(6), key=lambda row: scores[row])
    wanted = torch.ones_like(noise[0])
    for place, row in enumerate(order):
        u = place / 5 - 0.5
        wanted += 2.0 * 0.1**2 * u * (noise[row] / 0.1) / (6 * 0.1)
    trainer = EvolutionTrainer(counting, config)
    result = trainer.update(task, iter([examples]), NOTHING)
    assert torch.allclose(trainer.policy.flat, wanted, atol=1e-6)
    assert result.reward == pytest.approx(sum(2 * right - 4 for right, _ in scores) / 24)
    monkeypatch.setattr(evolution, "ROWS", 5)  # one candidate in a batch
    again = EvolutionTrainer(counting, config)
    again.update(task, iter([examples]), NOTHING)
    assert torch.allclose(again.policy.flat, wanted, atol=1e-6)


def test_rewards_come_first_and_likelihood_breaks_ties() -> None:
    rewards = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, 1.0]])
    logp = torch.tensor([-3.0, -9.0, -2.0, -1.0, -9.0])
    assert fitness(rewards, logp).tolist() == [1.0, 3.0, 2.0, 0.0, 3.0]


@pytest.mark.parametrize("reference", ["", "def f(x):\n    return 2"])
def test_only_right_answers_break_ties_and_unit_tests_are_none(
    reference: str, counting: AdaptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "programs.yaml").write_text(
        "name: programs\ncategory: code\ndescription: programs\nmax_new_tokens: 4\nanswer: {kind: tests}\n"
        "source: {kind: jsonl, file: programs.jsonl}\n"
    )
    task = load_task(str(tmp_path / "programs.yaml"))
    suite = json.dumps({"tests": "assert f(1) == 2", "reference": reference})
    monkeypatch.setattr(evolution, "judged", lambda *found: torch.full((len(found[-1]),), -1.0))  # all alike
    trainer = EvolutionTrainer(counting, EVOLVED)
    before = trainer.policy.flat.detach().clone()
    trainer.update(task, iter([[Example("programs-0", "f?", suite)]]), NOTHING)
    assert torch.equal(trainer.policy.flat, before) is not bool(reference)


def test_a_run_publishes_an_expert_and_ends_the_same_after_an_interruption(
    open_counting: Callable[[], AdaptedModel], registry: LocalRegistry
) -> None:
    config = replace(EVOLVED, steps=6)
    whole = start(open_counting(), config).run(registry)
    first = start(open_counting(), config, listener=Heard(after_step=3))
    with pytest.raises(KeyboardInterrupt):
        first.run(registry)
    adapted = open_counting()
    folder = run_to_resume(adapted.base.identity.folder_name, "odd")
    again = start(adapted, folder=folder).run(registry)
    assert whole.entry is not None
    assert again.entry is not None
    assert again.entry.z_bytes() == whole.entry.z_bytes()
    assert again.evaluation == whole.evaluation


def test_the_sigmoid_is_perturbed_in_its_own_numbers(counting: AdaptedModel) -> None:
    config = replace(EVOLVED, parametrisation="sigmoid", initial_mean=0.1, initial_deviation=0.01)
    trainer = EvolutionTrainer(counting, config)
    numbers = trainer.policy.flat.detach() + torch.randn(3, trainer.policy.flat.numel())
    rows = trainer.policy.rows(numbers)
    for row in range(3):
        assert torch.allclose(rows[row], trainer.policy.z_of(numbers[row]).flat(), atol=1e-6)


def test_no_update_touches_the_base(counting: AdaptedModel) -> None:
    before = {name: tensor.clone() for name, tensor in counting.model.state_dict().items()}
    EvolutionTrainer(counting, EVOLVED).update(OddTask(), iter([OddTask().examples("train", 4, 0)]), NOTHING)
    for name, tensor in counting.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(layer.z is None and layer.folded is None for layer in counting.layers.values())
