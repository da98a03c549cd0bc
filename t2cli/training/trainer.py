"""One step of reinforcement learning of z.

Source: Transformer-Squared (arXiv 2501.06252), equation 2; math.md 5, preset `t2`.

Deviations from the paper:
1. Rollouts are sampled, G per prompt, with a leave-one-out baseline (see svf/policy_gradient.py).
2. W' is the one that the rollouts were sampled with; the gradient of z follows from it in closed form
   (svf/gradient.py). Where W' would be rounded to less than float32, autograd goes through the factored form instead.
3. Prompts and their rollouts share one row (see packing.py); micro-batches only bound the memory, and are halved
   where it runs out. Processes that train together share the prompts and add their gradients.
4. Prompts whose rollouts are all right or all wrong have no advantage; they are left out of the gradient, KL term
   included, which saves most of its cost while a task is mostly failed or mostly solved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from t2cli.config import TrainConfig
from t2cli.errors import T2Error
from t2cli.models.adapted import AdaptedModel
from t2cli.models.memory import Room
from t2cli.svf.policy_gradient import leave_one_out, policy_gradient_loss
from t2cli.svf.zvector import ZVectors, unflatten
from t2cli.training.packing import pack, rollout_logp
from t2cli.training.rollouts import Rollouts, collect

if TYPE_CHECKING:
    from t2cli.tasks.base import Example, Task


@dataclass(frozen=True)
class StepResult:
    """What one update did. `kl` is the mean k3 estimate per token, `gradient_norm` is before clipping."""

    reward: float
    kl: float
    gradient_norm: float
    learning_rate: float
    informative: float  # share of prompts whose rollouts were not all right or all wrong
    tokens: int = 0  # generated
    sampling_seconds: float = 0.0


class Trainer:
    """Owns z as one flat parameter (parameters,), its optimiser and the learning-rate schedule."""

    def __init__(self, adapted: AdaptedModel, config: TrainConfig) -> None:
        self.adapted = adapted
        self.config = config
        self.ranks = adapted.ranks
        self.flat = nn.Parameter(torch.ones(sum(self.ranks.values()), device=adapted.base.device))
        self.optimizer = torch.optim.AdamW([self.flat], lr=config.learning_rate, weight_decay=0.0, betas=(0.9, 0.99))
        self.steps_done = 0
        self.sampled_at_once = Room(config.prompts_per_step * config.group, "rollouts")
        self.trained_at_once = Room(config.micro_batch, "prompts in the gradient")
        self._z: ZVectors | None = None

    def z(self) -> ZVectors:
        """Return a copy of the current z; the same object until the next update, so that it is folded once."""
        if self._z is None:
            self._z = ZVectors({name: z.detach().cpu() for name, z in unflatten(self.flat, self.ranks).items()})
        return self._z

    def restore(self, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on after `step` with the z, exp_avg and exp_avg_sq (parameters,) of a checkpoint."""
        with torch.no_grad():
            self.flat.copy_(tensors["z"])
        self._z, self.steps_done = None, step
        if step:
            moments = {name: tensors[name].to(self.flat.device) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[self.flat] = {"step": torch.tensor(float(step)), **moments}

    def learning_rate(self, step: int) -> float:
        """Return the rate of update `step` (from 0): linear warm-up, then a cosine down to the final share."""
        config = self.config
        if step < config.warmup_steps:
            return config.learning_rate * (step + 1) / config.warmup_steps
        progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        low = config.final_learning_rate
        return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))

    def update(self, task: Task, examples: Sequence[Example], generator: torch.Generator) -> StepResult:
        """Answer the examples with the current z, and update it once from the rewards."""
        started = time.monotonic()
        rollouts = collect(self.adapted, task, examples, self.z(), self.config, generator, self.sampled_at_once)
        sampled = time.monotonic() - started
        (tokens,) = self.adapted.team.total(rollouts.tokens)
        return replace(self.step(rollouts), tokens=round(tokens), sampling_seconds=sampled)

    def moments(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint keeps of the optimiser: exp_avg and exp_avg_sq (parameters,)."""
        state = self.optimizer.state[self.flat]
        return {name: state[name] for name in ("exp_avg", "exp_avg_sq")}

    def step(self, rollouts: Rollouts) -> StepResult:
        """Update z once from the rollouts. Raises T2Error if the gradient is not finite, leaving z as it was."""
        team, advantages = self.adapted.team, leave_one_out(rollouts.rewards)
        informative = (advantages != 0).any(dim=1).nonzero().flatten().tolist()  # the prompts that teach something
        reward, count, prompts, teaching = team.total(
            float(rollouts.rewards.sum()), rollouts.rewards.numel(), len(rollouts.prompts), len(informative)
        )
        self.flat.grad = torch.zeros_like(self.flat)
        found = self.trained_at_once.over(
            informative, lambda part: self._accumulate(rollouts, advantages, list(part), round(count))
        )
        kl, tokens = team.total(sum(kl for kl, _ in found), sum(tokens for _, tokens in found))
        team.add(self.flat.grad)
        norm = float(nn.utils.clip_grad_norm_([self.flat], self.config.max_gradient_norm))
        if not math.isfinite(norm):
            raise T2Error(
                f"the gradient of step {self.steps_done + 1} is not finite",
                hint="start again with a smaller --learning-rate, or with another --seed",
            )
        rate = self.learning_rate(self.steps_done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if self.config.weight_decay:  # towards the base, z = 1, not towards 0
            with torch.no_grad():
                self.flat.sub_((self.flat - 1) * (rate * self.config.weight_decay))
        self.steps_done += 1
        self._z = None
        self.adapted.release()  # W' of the z before
        return StepResult(
            reward=reward / count,
            kl=kl / max(1, tokens),
            gradient_norm=norm,
            learning_rate=rate,
            informative=teaching / prompts,
        )

    def _accumulate(
        self, rollouts: Rollouts, advantages: torch.Tensor, part: list[int], count: int
    ) -> tuple[float, float]:
        """Add the gradient of some prompts' rollouts, out of `count`; return the sum of their KL and of their tokens.

        Nothing is added where memory runs out on the way.
        """
        model, device = self.adapted.model, self.adapted.base.device
        groups = [[completion.ids for completion in rollouts.groups[row]] for row in part]
        packed = pack([rollouts.prompts[row] for row in part], groups, device)
        with torch.no_grad(), self.adapted.reference():
            reference_logp = rollout_logp(model, packed)
        with torch.enable_grad(), self._policy():
            logp = rollout_logp(model, packed)
            loss = policy_gradient_loss(
                logp.flatten(0, 1),
                reference_logp.flatten(0, 1),
                packed.mask.flatten(0, 1),
                advantages[part].flatten().to(device),
                kl_coefficient=self.config.kl_coefficient,
                rollouts=count,
            )
            (gradient,) = torch.autograd.grad(loss.total, [self.flat])
        assert self.flat.grad is not None
        self.flat.grad += gradient
        tokens = float(packed.mask.sum())
        return float(loss.kl) * tokens, tokens

    def _policy(self) -> AbstractContextManager[None]:
        """Answer as the current z, with gradients that reach it."""
        vectors = unflatten(self.flat, self.ranks)
        exact = all(layer.weight.dtype in (torch.float32, torch.float64) for layer in self.adapted.layers.values())
        return self.adapted.trained(self.z(), vectors) if exact else self.adapted.with_tensors(vectors)
