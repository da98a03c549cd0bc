"""The surer a policy is of what is wrong, the hotter its rollouts are sampled, and it is trained as it was sampled."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from interruptions import Heard
from odd_task import SMALL, OddTask, start
from resumed_runs import Open, assert_same, resumed

from t2cli.config import TrainConfig, preset
from t2cli.models.adapted import AdaptedModel
from t2cli.models.generate import Completion
from t2cli.registry.local import LocalRegistry
from t2cli.training.packing import pack, rollout_logp
from t2cli.training.rollouts import Rollouts, collect
from t2cli.training.trainer import WARMING, Trainer

CPU = torch.device("cpu")
SURE = replace(SMALL, steps=8, validate_every=4, temperature=0.7, stuck=0.01)  # answers are often equal


def said(*answers: str) -> Rollouts:
    """Return rollouts that are equal where their letters are, a text of them for each prompt; capitals are right."""
    groups = [[Completion((ord(letter),), True) for letter in group] for group in answers]
    rewards = torch.tensor([[1.0 if letter.isupper() else -1.0 for letter in group] for group in answers])
    return Rollouts([[1]] * len(answers), groups, rewards)


@pytest.mark.parametrize(
    ("answers", "equal", "pairs"),
    [
        (["aaaa"], 6, 6),
        (["AAAA"], 0, 6),
        (["abcd"], 0, 6),
        (["aabb"], 2, 6),
        (["AAbb"], 1, 6),
        (["aaab", "abcd"], 3, 12),
        (["a", "a"], 0, 0),
    ],
)
def test_equal_and_wrong_pairs_of_a_prompt_are_counted(answers: list[str], equal: int, pairs: int) -> None:
    assert said(*answers).pairs == (equal, pairs)


def test_equal_and_wrong_rollouts_make_the_next_ones_hotter_and_different_ones_cooler(counting: AdaptedModel) -> None:
    trainer = Trainer(counting, replace(SMALL, stuck=0.3, hottest=2.0))
    trainer._warm(said("abcd"))
    assert trainer.heat == 1.0  # never below the temperature at first
    trainer._warm(said("aaaa"))
    assert trainer.heat == pytest.approx(math.exp(WARMING * 0.7))
    trainer._warm(said("aaab"))
    assert trainer.heat == pytest.approx(math.exp(WARMING * (0.7 + 0.2)))
    trainer._warm(said("aabc"))
    assert trainer.heat == pytest.approx(math.exp(WARMING * (0.7 + 0.2 + 1 / 6 - 0.3)))
    for _ in range(5):
        trainer._warm(said("aaaa"))
    assert trainer.heat == 2.0


def test_without_pairs_or_where_that_is_said_it_stays(counting: AdaptedModel) -> None:
    for stuck, rollouts in ((0.3, said("a", "a")), (0.0, said("aaaa"))):
        trainer = Trainer(counting, replace(SMALL, stuck=stuck))
        trainer._warm(rollouts)
        assert trainer.heat == 1.0


def test_logp_at_a_temperature_is_that_of_divided_logits(counting: AdaptedModel) -> None:
    packed = pack([[5, 6, 7]], [[[8, 9], [9, 8]]], CPU)
    with torch.no_grad():
        found = rollout_logp(counting.model, packed, 1.7)
        logits = counting.model(torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])).logits[:, 2:].float()
    wanted = torch.log_softmax(logits / 1.7, dim=-1).gather(-1, torch.tensor([[[8], [9]], [[9], [8]]])).squeeze(-1)
    torch.testing.assert_close(found, wanted[None], rtol=1e-4, atol=1e-4)


def test_the_gradient_is_that_of_the_policy_at_the_temperature(counting: AdaptedModel) -> None:
    """By finite differences of the surrogate at z in a random direction, its log-probabilities at the temperature."""
    counting.model.double()
    trainer = Trainer(counting, replace(SMALL, max_gradient_norm=1e9, kl_coefficient=0.0))
    task, generator = OddTask(), torch.Generator().manual_seed(0)
    with trainer.policy.answering():
        hot = replace(SMALL, temperature=2.0)
        rollouts = collect(counting, task, task.examples("train", 8, 0), hot, generator)
    assert rollouts.temperature == 2.0
    others = (rollouts.rewards.sum(dim=1, keepdim=True) - rollouts.rewards) / 3
    advantages = rollouts.rewards - others
    packed = pack(rollouts.prompts, [[each.ids for each in group] for group in rollouts.groups], CPU)
    z = trainer.flat.detach().clone()
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))

    def surrogate(step: float) -> float:
        with torch.no_grad(), trainer.policy.answering(z + step * direction):
            logp = rollout_logp(counting.model, packed, 2.0)
        return float(-(advantages[..., None] * logp).sum() / advantages.numel())

    trainer.step(rollouts)
    assert trainer.flat.grad is not None
    slope = float((trainer.flat.grad * direction).sum())
    assert slope == pytest.approx((surrogate(1e-3) - surrogate(-1e-3)) / 2e-3, rel=2e-2)
    assert abs(slope) > 1e-3


def test_a_run_gets_hotter_and_says_so(counting: AdaptedModel) -> None:
    run = start(counting, SURE)
    state = run.train()
    temperatures = [record.temperature for record in run.folder.metrics.read()]
    assert temperatures[0] == 0.7
    assert max(each or 0 for each in temperatures) > 0.8
    assert 1.0 <= state.heat == run.trainer.heat <= SURE.hottest


@pytest.mark.parametrize("step", [3, 5, 7])
def test_an_interrupted_run_goes_on_as_hot(step: int, open_counting: Open, registry: LocalRegistry) -> None:
    whole = start(open_counting(), SURE)
    wanted = whole.run(registry)
    first = start(open_counting(), SURE, listener=Heard(after_step=step))
    assert_same(*resumed(first, open_counting, registry), wanted, whole)


@pytest.mark.parametrize("wrong", [{"stuck": -0.1}, {"stuck": 1.1}, {"hottest": 0.9}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"stuck must be from 0 to 1, and hottest at least 1"):
        TrainConfig(**wrong)  # type: ignore[arg-type]


def test_the_papers_presets_sample_as_they_say() -> None:
    assert preset("paper").stuck == preset("reference").stuck == 0
    assert preset("t2").stuck == preset("t2", adapter="lora").stuck == 0.12
