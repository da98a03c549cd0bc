"""The presets `t2`, `paper` and `reference` (math.md 5): gradients and updates by hand, from the formulas alone."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from odd_task import SMALL, OddTask, open_base, start
from torch.func import functional_call

from t2cli.config import PRESETS, TrainConfig, preset
from t2cli.errors import NotFoundError
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import load_base
from t2cli.registry.local import LocalRegistry
from t2cli.registry.vectors import read_z
from t2cli.training.rollouts import Rollouts, collect
from t2cli.training.trainer import Trainer

FEW = {"prompts_per_step": 8, "steps": 10}

# The table of math.md 5, a column each.
TABLE: dict[str, dict[str, object]] = {
    "t2": {
        "parametrisation": "linear",
        "initial_mean": 1.0,
        "initial_deviation": 0.0,
        "group": 4,
        "temperature": 1.0,
        "baseline": "leave-one-out",
        "optimizer": "adamw",
        "learning_rate": 6e-3,
        "schedule": "cosine",
        "warmup_steps": 3,
        "max_gradient_norm": 1.0,
        "max_relative_step": 2.5e-3,
        "kl_coefficient": 0.02,
    },
    "paper": {
        "parametrisation": "linear",
        "initial_mean": 1.0,
        "initial_deviation": math.sqrt(1e-3),
        "group": 1,
        "temperature": 1.0,
        "baseline": "none",
        "optimizer": "adamw",
        "learning_rate": 2e-3,
        "schedule": "cosine",
        "warmup_steps": 0,
        "max_gradient_norm": 1e-3,
        "kl_coefficient": 0.1,
    },
    "reference": {
        "parametrisation": "sigmoid",
        "initial_mean": 0.1,
        "initial_deviation": 0.01,
        "group": 1,
        "temperature": 0.0,
        "baseline": "none",
        "optimizer": "adam",
        "learning_rate": 2e-3,
        "schedule": "constant",
        "warmup_steps": 0,
        "max_gradient_norm": 1e-3,
        "kl_coefficient": 0.0,
    },
}


@pytest.mark.parametrize("name", TABLE)
def test_a_preset_is_a_column_of_the_table(name: str) -> None:
    found = asdict(preset(name))
    assert {key: found[key] for key in TABLE[name]} == TABLE[name]
    assert (found["preset"], found["trainer"], found["adapter"]) == (name, "policy-gradient", "svf")
    assert found["group"] * found["prompts_per_step"] == 48  # as many rollouts a step for each


def test_every_preset_is_in_the_table() -> None:
    assert set(PRESETS) == set(TABLE)


class ByHand:
    """The tiny base with weights U diag(S z(p)) Vh from a plain SVD; knows nothing of t2's own mathematics."""

    def __init__(self, folder: Path, adapted: AdaptedModel) -> None:
        self.model = load_base(str(folder), device="cpu", quiet=True).model.double()
        self.names = sorted(adapted.ranks)
        self.factors = [torch.linalg.svd(self.model.get_parameter(n).detach(), full_matrices=False) for n in self.names]

    def logp(self, weights: dict[str, torch.Tensor], prompt: list[int], answer: tuple[int, ...]) -> torch.Tensor:
        ids = torch.tensor([[*prompt, *answer]])
        logits = functional_call(self.model, weights, kwargs={"input_ids": ids}).logits[0]
        rows = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
        return logits.log_softmax(-1)[rows, torch.tensor(answer)]

    def gradient(self, p: torch.Tensor, rollouts: Rollouts, name: str) -> torch.Tensor:
        """Return dL/dp of equation 2's loss, -1/B sum of advantage * log pi(y) + lambda k2, with autograd."""
        p = p.detach().double().requires_grad_()
        weights, start = {}, 0
        for weight, (U, S, Vh) in zip(self.names, self.factors, strict=True):
            part = p[start : start + len(S)]
            start += len(S)
            if name == "reference":
                s = 1 / (1 + torch.exp(-part))
                part = s * S.sum() / (S * s).sum()
            weights[weight] = U @ torch.diag(S * part) @ Vh
        loss = torch.zeros((), dtype=torch.float64)
        for prompt, group, rewards in zip(rollouts.prompts, rollouts.groups, rollouts.rewards.tolist(), strict=True):
            for place, (completion, reward) in enumerate(zip(group, rewards, strict=True)):
                others = rewards[:place] + rewards[place + 1 :]
                advantage = reward - sum(others) / len(others) if name == "t2" else reward
                if len(set(rewards)) == 1 and name == "t2":
                    continue  # no advantage in the whole group: left out, KL included
                logp = self.logp(weights, prompt, completion.ids)
                ratio = self.logp({}, prompt, completion.ids).detach() - logp
                k2 = (ratio**2 / 2).sum()
                loss = loss - advantage * logp.sum() + {"t2": 0.02, "paper": 0.1, "reference": 0.0}[name] * k2
        (found,) = torch.autograd.grad(loss / rollouts.rewards.numel(), p)
        return found


def rollouts_of(trainer: Trainer, adapted: AdaptedModel) -> Rollouts:
    task, config = OddTask(), trainer.config
    with trainer.policy.answering():
        examples = task.examples("train", config.prompts_per_step, 0)
        return collect(adapted, task, examples, config, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", TABLE)
def test_two_updates_by_hand(name: str, counting: AdaptedModel, counting_folder: Path) -> None:
    counting.model.double()
    config = preset(name, **FEW)
    trainer, by_hand = Trainer(counting, config), ByHand(counting_folder, counting)
    with torch.no_grad():  # away from the base, where the KL term and its gradient vanish
        trainer.flat.add_(0.05 * torch.randn(trainer.flat.shape, generator=torch.Generator().manual_seed(7)))
    trainer.policy.changed()
    p = trainer.flat.detach().double().clone()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    beta2 = 0.99 if name == "t2" else 0.999
    for step in range(2):
        rollouts = rollouts_of(trainer, counting)
        result = trainer.step(rollouts)
        g = by_hand.gradient(p, rollouts, name)
        assert result.gradient_norm == pytest.approx(float(g.norm()), rel=1e-3)
        clip = 1.0 if name == "t2" else 1e-3
        assert result.gradient_norm > clip  # else this tests no clipping
        g = g * clip / g.norm()
        m, v = 0.9 * m + 0.1 * g, beta2 * v + (1 - beta2) * g * g
        warm_up = (step + 1) / 3
        cosine = 0.5 * (1 + math.cos(math.pi * step / 10))
        rate = {"t2": 6e-3 * warm_up, "paper": 2e-3 * cosine, "reference": 2e-3}[name]
        assert result.learning_rate == pytest.approx(rate)
        move = -rate * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - beta2 ** (step + 1))).sqrt() + 1e-8)
        if name == "t2":  # no longer than 2.5e-3 of the weights, times the schedule's share
            S = torch.cat([spectrum for _, spectrum, _ in by_hand.factors])
            longest = 2.5e-3 * warm_up * float(S.norm()) / float((S * move).norm())
            assert longest < 1  # else this tests no bound
            move = move * longest
        p = p + move
        before = trainer.flat.detach().double()
        assert float((before - p).norm()) < 2e-3 * rate * math.sqrt(p.numel()) + 1e-6 * float(p.norm())
        p = before.clone()  # rounding must not add up


def test_greedy_rollouts_draw_nothing(counting: AdaptedModel) -> None:
    trainer = Trainer(counting, preset("reference", **FEW))
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    task = OddTask()
    with trainer.policy.answering():
        rollouts = collect(counting, task, task.examples("train", 8, 0), trainer.config, generator)
    assert torch.equal(generator.get_state(), before)
    assert rollouts.rewards.shape == (8, 1)


def test_without_a_coefficient_no_kl_is_known(counting: AdaptedModel) -> None:
    trainer = Trainer(counting, replace(SMALL, kl_coefficient=0.0, initial_deviation=0.1))
    result = trainer.step(rollouts_of(trainer, counting))
    assert result.informative > 0
    assert result.kl is None


def test_every_prompt_has_an_advantage_without_a_baseline(counting: AdaptedModel) -> None:
    trainer = Trainer(counting, preset("paper", **FEW))
    rollouts = rollouts_of(trainer, counting)
    right = replace(rollouts, rewards=torch.ones(8, 1))
    assert trainer.step(right).informative == 1.0


def test_a_start_comes_from_the_seed(counting: AdaptedModel) -> None:
    def begin(seed: int) -> torch.Tensor:
        return Trainer(counting, preset("paper", seed=seed)).flat.detach()

    assert torch.equal(begin(0), begin(0))
    assert not torch.equal(begin(0), begin(1))
    assert float(begin(0).mean()) == pytest.approx(1.0, abs=0.01)
    assert float(begin(0).std()) == pytest.approx(math.sqrt(1e-3), rel=0.2)


def test_what_the_sigmoid_trained_is_published_as_factors(
    counting: AdaptedModel, counting_folder: Path, registry: LocalRegistry
) -> None:
    reward_like = {"baseline": "leave-one-out", "group": 4, "temperature": 1.0, "max_gradient_norm": 1.0}
    config = replace(SMALL, parametrisation="sigmoid", initial_mean=0.1, initial_deviation=0.01, **reward_like)
    run = start(counting, replace(config, learning_rate=0.5, steps=12))
    trained = run.run(registry)
    assert trained.entry is not None
    state = run.folder.load()
    assert state is not None
    z, offset = read_z(trained.entry), 0
    model = open_base(counting_folder).base.model
    weights = {name.replace(".linear.", "."): tensor for name, tensor in model.state_dict().items()}
    for name in z:
        S = torch.linalg.svdvals(weights[name].double())
        s = torch.sigmoid(state.tensors["best"][offset : offset + len(S)].double())
        offset += len(S)
        assert torch.allclose(z[name].double(), s * S.sum() / (S * s).sum(), rtol=1e-5, atol=1e-6), name
    manifest = trained.entry.manifest
    assert manifest.z.parametrisation == "linear"  # the numbers in the file are factors of S
    assert manifest.training is not None
    assert manifest.training.config["parametrisation"] == "sigmoid"


def test_the_base_is_validated_and_not_the_start(counting: AdaptedModel, registry: LocalRegistry) -> None:
    wild = replace(SMALL, initial_deviation=3.0, learning_rate=0.0, steps=2)
    run = start(counting, wild)
    state = run._start()
    plain = start(counting, SMALL)._start()
    assert state.base_accuracy == plain.base_accuracy
    assert state.best_step == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer": "x"},
        {"adapter": "x"},
        {"parametrisation": "x"},
        {"baseline": "x"},
        {"optimizer": "x"},
        {"schedule": "x"},
        {"selection": "x"},
        {"group": 1},
        {"rank": 0},
        {"trainer": "evolution", "adapter": "lora"},
        {"trainer": "evolution", "population": 15},
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|needs"):
        replace(TrainConfig(), **changes)  # type: ignore[arg-type]


def test_another_adapter_or_trainer_has_its_own_defaults_unless_given() -> None:
    assert preset("t2", adapter="lora").learning_rate == 2e-4
    assert preset("t2", adapter="lora", learning_rate=1e-3).learning_rate == 1e-3
    assert preset("t2", trainer="evolution").prompts_per_step == 4
    evolution = preset("t2", trainer="evolution")  # what is recorded is what it does
    assert (evolution.schedule, evolution.max_relative_step, evolution.warmup_steps) == ("constant", 0.0, 0)
    with pytest.raises(NotFoundError, match="no trainer named 'evolutoin'"):
        preset("t2", trainer="evolutoin")
