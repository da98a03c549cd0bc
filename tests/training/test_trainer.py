"""One update of z: the gradient is the policy gradient, and following it makes rewards rise."""

from __future__ import annotations

import gc
import itertools
import math
from dataclasses import replace

import pytest
import torch
from odd_task import SMALL, OddTask

from t2cli.errors import T2Error
from t2cli.evaluation.evaluate import answers_in_use
from t2cli.models.adapted import AdaptedModel
from t2cli.svf.zvector import ZVectors
from t2cli.training.rollouts import Rollouts, collect
from t2cli.training.trainer import Trainer

UNCLIPPED = replace(SMALL, max_gradient_norm=1e9)


def rollouts_of(adapted: AdaptedModel, z: ZVectors, *, step: int = 0, prompts: int = 8) -> Rollouts:
    task = OddTask()
    generator = torch.Generator().manual_seed(step)
    with adapted.use_z(z):
        return collect(adapted, task, task.examples("train", prompts, step), SMALL, generator)


def shifted(trainer: Trainer, seed: int = 0) -> Trainer:
    """Move z away from 1, where the KL term and its gradient vanish."""
    with torch.no_grad():
        trainer.flat.add_(0.1 * torch.randn(trainer.flat.shape, generator=torch.Generator().manual_seed(seed)))
    return trainer


def gradient(trainer: Trainer, rollouts: Rollouts) -> torch.Tensor:
    trainer.step(rollouts)
    assert trainer.flat.grad is not None
    return trainer.flat.grad.clone()


def test_rewards_rise(counting: AdaptedModel) -> None:
    trainer, task = Trainer(counting, replace(SMALL, steps=20, learning_rate=0.1)), OddTask()
    held_out = task.examples("validation", 32, 0)
    before = sum(answers_in_use(counting, task, held_out).right)
    steps, z = range(trainer.config.steps), trainer.policy.z
    rewards = [trainer.step(rollouts_of(counting, z(), step=step)).reward for step in steps]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.6, rewards
    with counting.use_z(trainer.policy.z()):
        assert sum(answers_in_use(counting, task, held_out).right) > before


@pytest.mark.parametrize("adapter", ["svf", "lora"])
def test_what_is_sampled_is_what_has_the_gradient(adapter: str, counting: AdaptedModel) -> None:
    """Also where the weights are rounded to 16 bits, of which W' would lose most of what a short step changes."""
    if adapter == "lora":
        pytest.importorskip("peft")
    counting.model.bfloat16()
    policy = Trainer(counting, replace(SMALL, adapter=adapter, max_relative_step=0.0)).policy
    with torch.no_grad():
        policy.flat.add_(0.02 * torch.randn(policy.flat.shape, generator=torch.Generator().manual_seed(1)))
    policy.changed()

    def logits() -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = counting.model(input_ids=torch.tensor([[60, 61, 62, 63]])).logits
        return found

    with policy.differentiable():
        wanted = logits()
    with policy.sampling():
        assert torch.equal(logits(), wanted)
    with policy.answering():
        assert not torch.equal(logits(), wanted)


def test_the_gradient_is_that_of_separate_rows(counting: AdaptedModel) -> None:
    counting.model.double()
    config = replace(UNCLIPPED, kl_coefficient=0.7, micro_batch=3)
    trainer = shifted(Trainer(counting, config))
    rollouts = rollouts_of(counting, trainer.policy.z(), prompts=6)
    assert 0 < int((rollouts.rewards.std(dim=1) > 0).sum()) < 6  # some prompts teach something, some do not

    z = trainer.flat.detach().clone().requires_grad_()
    start, tensors = 0, {}
    for name in sorted(counting.ranks):
        tensors[name] = z[start : start + counting.ranks[name]]
        start += counting.ranks[name]
    loss, kl, tokens = torch.zeros(()), 0.0, 0
    for prompt, group, rewards in zip(rollouts.prompts, rollouts.groups, rollouts.rewards.tolist(), strict=True):
        if len(set(rewards)) == 1:
            continue
        for index, (completion, reward) in enumerate(zip(group, rewards, strict=True)):
            ids = torch.tensor([[*prompt, *completion.ids]])
            rows, targets = torch.arange(len(prompt) - 1, ids.shape[1] - 1), torch.tensor(completion.ids)
            with counting.with_tensors(tensors):
                logp = counting.model(input_ids=ids).logits[0].log_softmax(-1)[rows, targets]
            with torch.no_grad(), counting.reference():
                reference = counting.model(input_ids=ids).logits[0].log_softmax(-1)[rows, targets]
            others = [other for place, other in enumerate(rewards) if place != index]
            ratio = reference - logp
            loss = loss - (reward - sum(others) / len(others)) * logp.sum() + 0.7 * (ratio**2 / 2).sum()
            kl, tokens = kl + float((ratio.exp() - 1 - ratio).sum()), tokens + len(completion.ids)
    (wanted,) = torch.autograd.grad(loss / rollouts.rewards.numel(), z)
    found = gradient(trainer, rollouts)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4


def test_micro_batches_change_nothing_but_rounding(counting: AdaptedModel) -> None:
    rollouts = rollouts_of(counting, shifted(Trainer(counting, SMALL)).policy.z())
    steps = []
    for micro_batch in (1, 3, 100):
        trainer = shifted(Trainer(counting, replace(SMALL, micro_batch=micro_batch)))
        steps.append((gradient(trainer, rollouts), trainer.step(rollouts).kl))
    for found, kl in steps[1:]:
        assert torch.allclose(found, steps[0][0], rtol=1e-3, atol=1e-6)
        assert math.isfinite(kl)


def test_a_step_is_a_step_of_adam_on_the_clipped_gradient(counting: AdaptedModel) -> None:
    trainer = Trainer(counting, SMALL)
    rollouts = rollouts_of(counting, trainer.policy.z())
    result = trainer.step(rollouts)
    assert trainer.flat.grad is not None
    assert result.gradient_norm > SMALL.max_gradient_norm  # else this tests no clipping
    assert float(trainer.flat.grad.norm()) == pytest.approx(SMALL.max_gradient_norm, rel=1e-4)
    moved = trainer.flat.detach() - 1
    assert result.learning_rate == SMALL.learning_rate
    assert float(moved.abs().max()) == pytest.approx(SMALL.learning_rate, rel=1e-3)  # Adam's first step has this size
    large = trainer.flat.grad.abs() > 1e-6
    assert torch.equal(moved[large].sign(), -trainer.flat.grad[large].sign())


def test_learning_rate_rises_to_its_full_value_and_falls_to_its_share(counting: AdaptedModel) -> None:
    config = replace(SMALL, steps=50, warmup_steps=4, learning_rate=0.08, final_learning_rate=0.25)
    trainer = Trainer(counting, config)
    rates = [trainer.learning_rate(step) for step in range(51)]
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.08])
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[4:]))
    assert rates[27] == pytest.approx((0.08 + 0.02) / 2)
    assert rates[50] == pytest.approx(0.02)
    assert trainer.learning_rate(500) == pytest.approx(0.02)


def test_prompts_that_teach_nothing_are_left_out(counting: AdaptedModel) -> None:
    trainer = shifted(Trainer(counting, UNCLIPPED))
    both = rollouts_of(counting, trainer.policy.z(), prompts=2)
    mixed = torch.tensor([[1.0, -1.0, -1.0, 1.0], [-1.0, -1.0, -1.0, -1.0]])
    one = Rollouts(both.prompts[:1], both.groups[:1], mixed[:1])
    alone = gradient(shifted(Trainer(counting, UNCLIPPED)), one)
    result = trainer.step(Rollouts(both.prompts, both.groups, mixed))
    assert trainer.flat.grad is not None
    assert torch.allclose(trainer.flat.grad, alone / 2, rtol=1e-4, atol=1e-7)  # the mean is over all rollouts
    assert result.informative == 0.5
    assert result.reward == -0.5


def test_equal_rewards_cost_no_pass_through_the_model(counting: AdaptedModel) -> None:
    trainer = Trainer(counting, SMALL)
    rollouts = rollouts_of(counting, trainer.policy.z(), prompts=3)
    read: list[int] = []
    counting.model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: read.append(inputs[0].numel()))
    equal, mixed = [1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0]
    trainer.step(Rollouts(rollouts.prompts, rollouts.groups, torch.tensor([equal, [-1.0] * 4, equal])))
    assert read == []
    trainer.step(Rollouts(rollouts.prompts, rollouts.groups, torch.tensor([equal, mixed, equal])))
    answers = sum(len(completion.ids) for completion in rollouts.groups[1])
    assert read == [len(rollouts.prompts[1]) + answers] * 2  # the base's pass and the policy's; nothing is padded


@pytest.mark.parametrize("reward", [1.0, -1.0])
def test_a_step_that_teaches_nothing_leaves_z(reward: float, counting: AdaptedModel) -> None:
    trainer = shifted(Trainer(counting, SMALL))
    before = trainer.flat.detach().clone()
    rollouts = rollouts_of(counting, trainer.policy.z(), prompts=2)
    result = trainer.step(Rollouts(rollouts.prompts, rollouts.groups, torch.full((2, 4), reward)))
    assert torch.equal(trainer.flat, before)
    assert (result.informative, result.gradient_norm, result.kl, result.reward) == (0.0, 0.0, None, reward)


def test_a_gradient_that_is_not_finite_leaves_everything(counting: AdaptedModel) -> None:
    trainer = Trainer(counting, SMALL)
    rollouts = rollouts_of(counting, trainer.policy.z())
    trainer.step(rollouts)
    z = trainer.flat.detach().clone()
    moments = {name: tensor.clone() for name, tensor in trainer.optimizer.state[trainer.flat].items()}
    broken = rollouts.rewards.clone()
    broken[0, 0] = math.inf
    with pytest.raises(T2Error, match="gradient of step 2 is not finite") as caught:
        trainer.step(Rollouts(rollouts.prompts, rollouts.groups, broken))
    assert "--learning-rate" in caught.value.hint
    assert torch.equal(trainer.flat, z)
    assert trainer.steps_done == 1
    for name, tensor in trainer.optimizer.state[trainer.flat].items():
        assert torch.equal(tensor, moments[name]), name


def test_weight_decay_pulls_towards_the_base(counting: AdaptedModel) -> None:
    trainer = shifted(Trainer(counting, replace(SMALL, weight_decay=0.5)))
    before = trainer.flat.detach().clone()
    rollouts = rollouts_of(counting, trainer.policy.z(), prompts=2)
    rate = trainer.step(Rollouts(rollouts.prompts, rollouts.groups, torch.ones(2, 4))).learning_rate
    assert torch.allclose(trainer.flat - 1, (before - 1) * (1 - 0.5 * rate), atol=1e-6)


def test_no_step_touches_the_base(counting: AdaptedModel) -> None:
    before = {name: tensor.clone() for name, tensor in counting.model.state_dict().items()}
    trainer = Trainer(counting, SMALL)
    for step in range(2):
        trainer.step(rollouts_of(counting, trainer.policy.z(), step=step))
    for name, tensor in counting.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(layer.z is None and layer.folded is None for layer in counting.layers.values())


def test_one_set_of_folded_weights_serves_a_step_and_none_outlives_it(counting: AdaptedModel) -> None:
    counting.prepare()
    shape = counting.layers["model.layers.0.mlp.up_proj.weight"].weight.shape

    def live() -> int:
        gc.collect()
        return sum(type(thing) is torch.Tensor and thing.shape == shape for thing in gc.get_objects())

    trainer = Trainer(counting, SMALL)
    before = live()
    with counting.use_z(trainer.policy.z()):
        assert live() > before  # this way of counting sees folded weights
    counting.release()
    assert live() == before
    rollouts = rollouts_of(counting, trainer.policy.z())
    held = {name: layer.folded for name, layer in counting.layers.items()}
    assert set(held.values()) == {None}
    with counting.use_z(trainer.policy.z()):
        sampled_with = {name: layer.folded for name, layer in counting.layers.items()}
    with trainer.policy.differentiable():
        assert {name: layer.folded for name, layer in counting.layers.items()} == sampled_with
    del sampled_with
    assert live() > before
    trainer.step(rollouts)
    assert live() == before


def test_z_is_a_copy(counting: AdaptedModel) -> None:
    trainer = Trainer(counting, SMALL)
    z = trainer.policy.z()
    trainer.step(rollouts_of(counting, z))
    assert torch.equal(z.flat(), torch.ones(z.parameters))
    assert not torch.equal(trainer.policy.z().flat(), z.flat())


def test_an_answer_that_does_not_end_is_wrong(counting: AdaptedModel) -> None:
    rollouts = rollouts_of(counting, Trainer(counting, SMALL).policy.z(), prompts=16)
    task = OddTask()
    ended = [completion.ended for group in rollouts.groups for completion in group]
    assert {True, False} <= set(ended)
    for group, rewards in zip(rollouts.groups, rollouts.rewards.tolist(), strict=True):
        for completion, reward in zip(group, rewards, strict=True):
            text = counting.base.decode(list(completion.ids))
            assert reward == (task.reward(task.examples("train", 1, 0)[0], text) if completion.ended else -1.0)
