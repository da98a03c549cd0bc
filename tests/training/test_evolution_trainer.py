"""Evolution strategies learn the counting task without a backward pass, and order candidates as they should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from interruptions import Heard
from odd_task import SMALL, OddTask, start

from t2cli.evaluation.evaluate import answers_in_use
from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import LocalRegistry
from t2cli.svf.zvector import ZVectors, unflatten
from t2cli.training import evolution
from t2cli.training.checkpoint import run_to_resume
from t2cli.training.evolution import EvolutionTrainer, fitness, strongest

EVOLVED = replace(
    SMALL, trainer="evolution", prompts_per_step=4, population=32, sigma=0.1, components=0, learning_rate=8.0, steps=20
)
NOTHING = torch.Generator()


@pytest.mark.parametrize("components", [8, 0])
def test_rewards_rise(counting: AdaptedModel, components: int) -> None:
    trainer, task = EvolutionTrainer(counting, replace(EVOLVED, components=components)), OddTask()
    held_out = task.examples("validation", 32, 0)
    before = sum(answers_in_use(counting, task, held_out).right)
    for step in range(EVOLVED.steps):
        trainer.update(task, iter([task.examples("train", 4, step)]), NOTHING)
    assert trainer.policy.flat.grad is None
    with counting.use_z(trainer.policy.z()):
        assert sum(answers_in_use(counting, task, held_out).right) > before + 6


@pytest.mark.parametrize(("components", "sigma"), [(3, 0.5), (0, 0.1)])
def test_an_update_by_hand(
    counting: AdaptedModel, monkeypatch: pytest.MonkeyPatch, components: int, sigma: float
) -> None:
    """Every candidate answers alone here: p += rate * sigma^2 * 1 / (N sigma) sum of u_i eps_i, u the rank."""
    task, ranks = OddTask(), counting.ranks
    examples = task.examples("train", 4, 0)
    config = replace(EVOLVED, population=10, components=components, sigma=sigma)  # five pairs and four questions
    names = sorted(ranks)
    kept = torch.cat([torch.arange(ranks[name]) < (components or ranks[name]) for name in names])  # (P,)
    noise = torch.zeros(10, len(kept))
    noise[:, kept] = evolution.perturbations(0, 0, 10, int(kept.sum()), sigma)
    right = []
    for row, shift in enumerate(noise):
        with counting.use_z(ZVectors(unflatten(1 + shift, ranks))):
            ids = prompt = counting.base.encode(task.messages(examples[row % 5 % 4]))
            for _ in range(task.max_new_tokens):
                ids = [*ids, int(counting.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
                if ids[-1] in counting.base.eos:
                    break
            odd = set(counting.base.decode(ids[len(prompt) :])) & set("13579")
            right.append(bool(odd) and ids[-1] in counting.base.eos)
    won = [right[row] - right[(row + 5) % 10] for row in range(10)]
    assert any(won), "the test needs a pair whose answers differ"
    wanted = torch.ones(len(kept))
    for row, shift in enumerate(noise):
        below, above = (sum(sign * other < sign * won[row] for other in won) for sign in (1, -1))
        wanted += 8.0 * sigma**2 * (below - above) / (2 * 9) * (shift / sigma) / (10 * sigma)
    trainer = EvolutionTrainer(counting, config)
    result = trainer.update(task, iter([examples]), NOTHING)
    assert torch.allclose(trainer.policy.flat, wanted, atol=1e-6)
    assert torch.equal(trainer.policy.flat[~kept], torch.ones(int((~kept).sum())))
    assert result.reward == pytest.approx(sum(2 * each - 1 for each in right) / 10)
    assert result.informative == pytest.approx(sum(map(abs, won)) / 10)
    monkeypatch.setattr(evolution, "ROWS", 3)
    again = EvolutionTrainer(counting, config)
    again.update(task, iter([examples]), NOTHING)
    assert torch.allclose(again.policy.flat, wanted, atol=1e-6)


def test_the_better_of_a_pair_wins_and_equals_say_nothing() -> None:
    rewards = torch.tensor([1.0, -1.0, 0.5, -1.0, -1.0, -1.0, -0.5, 1.0])
    assert fitness(rewards).tolist() == [1.0, 0.0, 1.0, -1.0, -1.0, 0.0, -1.0, 1.0]


def test_the_strongest_components_of_each_matrix() -> None:
    assert strongest({"b": 2, "a": 4}, 3).tolist() == [0, 1, 2, 4, 5]
    assert strongest({"b": 2, "a": 4}, 0).tolist() == [0, 1, 2, 3, 4, 5]


def test_nothing_moves_where_all_answers_are_alike(counting: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evolution, "judged", lambda *found: torch.full((len(found[-1]),), -1.0))
    trainer, task = EvolutionTrainer(counting, EVOLVED), OddTask()
    before = trainer.policy.flat.detach().clone()
    result = trainer.update(task, iter([task.examples("train", 4, 0)]), NOTHING)
    assert torch.equal(trainer.policy.flat, before)
    assert result.informative == 0


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
