"""One step of reinforcement learning of a policy: z, or a LoRA to compare it with.

Source: Transformer-Squared (arXiv 2501.06252), equation 2; math.md 5. `config.PRESETS` has the settings.

Deviations from the paper:
1. Rollouts are sampled, G per prompt, with a leave-one-out baseline (see svf/policy_gradient.py); the presets `paper`
   and `reference` have one rollout per prompt and its reward as advantage.
2. W' is the one that the rollouts were sampled with; the gradient of z follows from it in closed form
   (svf/gradient.py). Where W' would be rounded to less than float32, autograd goes through the factored form instead.
3. Prompts and their rollouts share one row (see packing.py); micro-batches only bound the memory, and are halved
   where it runs out. Processes that train together share the prompts and add their gradients.
4. Prompts whose rollouts are all right or all wrong have no advantage; they are left out of the gradient, KL term
   included, which saves most of its cost while a task is mostly failed or mostly solved.
5. Without a KL coefficient the base is not asked, and no KL is given.
6. A step is bounded by how much it changes the weights (see safety.py), in the preset `t2`.
7. Where too few prompts have an advantage, more are asked for the same step, as DAPO's dynamic sampling does (arXiv
   2503.14476): the optimiser makes a step as long from one prompt as from eight, and where the base has one answer in
   fifty right, one is what twelve prompts give.
8. Rollouts are sampled hotter the more of a prompt's are equal and wrong, in the preset `t2`: a policy that is sure of
   what is wrong says it four times, and learns nothing from that. What is trained is the policy at that temperature:
   its log-probabilities and the base's are taken at it. Greedy answers are the same at all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from t2cli.config import TrainConfig
from t2cli.errors import DivergedError
from t2cli.models.adapted import AdaptedModel
from t2cli.models.cache import attention_window
from t2cli.models.memory import Room
from t2cli.svf.policy_gradient import BASELINES, policy_gradient_loss
from t2cli.training.packing import pack, rollout_logp
from t2cli.training.policy import SVFPolicy, policy_of
from t2cli.training.rollouts import Rollouts, collect
from t2cli.training.safety import bounded

if TYPE_CHECKING:
    from t2cli.tasks.base import Example, Task
    from t2cli.training.checkpoint import RunState


@dataclass(frozen=True)
class StepResult:
    """What one update did. `kl` is the mean k3 estimate per token, `gradient_norm` is before clipping."""

    reward: float
    kl: float | None  # None where no prompt had an advantage, or no KL coefficient asks for it
    gradient_norm: float
    learning_rate: float
    informative: float  # share of prompts that had an advantage: rollouts not all right or all wrong, with a baseline
    tokens: int = 0  # generated
    sampling_seconds: float = 0.0
    rollouts: int = 0
    temperature: float | None = None  # of the rollouts; None: nothing was sampled

    @classmethod
    def lost(cls) -> StepResult:
        """Return what is told of an update that could not be made, because numbers were no longer finite."""
        return cls(reward=-1.0, kl=None, gradient_norm=0.0, learning_rate=0.0, informative=0.0)


MOMENTS = ("exp_avg", "exp_avg_sq")  # what Adam keeps
WARMING = 0.5  # by how much the logarithm of the temperature follows the share of stuck pairs, per step

# Equal as long as their own weight decay is 0; what decays the numbers is in `step`.
OPTIMIZERS: dict[str, type[torch.optim.Adam]] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}


class Trainer:
    """Moves the policy's flat parameter (parameters,); owns its optimiser and the learning-rate schedule."""

    def __init__(self, adapted: AdaptedModel, config: TrainConfig) -> None:
        self.adapted = adapted
        self.config = config
        self.policy = policy_of(adapted, config)
        self.flat = self.policy.flat
        kind = OPTIMIZERS[config.optimizer]
        self.optimizer = kind([self.flat], lr=config.learning_rate, weight_decay=0.0, betas=(0.9, config.beta2))
        self.steps_done = 0
        self.caution = 1.0
        self.heat = 1.0
        self.sampled_at_once = Room(config.prompts_per_step * config.group, "rollouts")
        self.trained_at_once = Room(config.micro_batch, "prompts in the gradient")
        self.rooms: tuple[Room, ...] = (self.sampled_at_once, self.trained_at_once)

    def restore(self, state: RunState) -> None:
        """Go on from a checkpoint; the optimiser has been at work since the step `restarted`."""
        with torch.no_grad():
            self.flat.copy_(state.tensors["z"])
        self.policy.changed()
        self.steps_done, self.caution, self.heat = state.step, state.caution, state.heat
        self.optimizer.state.clear()
        if (steps := state.step - state.restarted) > 0:
            moments = {name: state.tensors[name].to(self.flat.device) for name in MOMENTS}
            self.optimizer.state[self.flat] = {"step": torch.tensor(float(steps)), **moments}

    def learning_rate(self, step: int) -> float:
        """Return the rate of update `step` (from 0): linear warm-up, then constant or a cosine to the final share."""
        return self.config.learning_rate * self.caution * self._share(step)

    def _share(self, step: int) -> float:
        config = self.config
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.schedule == "constant":
            return 1.0
        progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        low = config.final_learning_rate
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def update(self, task: Task, lessons: Iterator[list[Example]], generator: torch.Generator) -> StepResult:
        """Answer a lesson as the policy, or more until enough of it teaches something; update once from the rewards."""
        started = time.monotonic()
        config = replace(self.config, temperature=self.config.temperature * self.heat)
        text_model, room = self.policy.text_model, self.sampled_at_once
        answered = (collect(text_model, task, examples, config, generator, room) for examples in lessons)
        with self.policy.sampling():
            rollouts = next(answered)
            for _ in range(config.rounds - 1):
                (teaching,) = self.adapted.team.total(len(self._teaching(rollouts, self._advantages(rollouts))))
                if teaching >= config.enough * config.prompts_per_step:
                    break
                rollouts += next(answered)
        sampled = time.monotonic() - started
        (tokens,) = self.adapted.team.total(rollouts.tokens)
        result = self.step(rollouts)
        self._warm(rollouts)
        return replace(result, tokens=round(tokens), sampling_seconds=sampled, temperature=round(config.temperature, 4))

    def _warm(self, rollouts: Rollouts) -> None:
        """Set the temperature of the next step's rollouts, by how many of these are equal and wrong."""
        if not self.config.stuck:
            return
        equal, pairs = self.adapted.team.total(*rollouts.pairs)
        if pairs:
            warmer = self.heat * math.exp(WARMING * (equal / pairs - self.config.stuck))
            self.heat = min(self.config.hottest, max(1.0, warmer))

    def moments(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint keeps of the optimiser: exp_avg and exp_avg_sq (parameters,)."""
        state = self.optimizer.state[self.flat]
        return {name: state.get(name, torch.zeros_like(self.flat.detach())) for name in MOMENTS}

    def _advantages(self, rollouts: Rollouts) -> torch.Tensor:
        return BASELINES[self.config.baseline](rollouts.rewards)

    def step(self, rollouts: Rollouts) -> StepResult:
        """Update once from the rollouts. Raises DivergedError if the gradient is not finite, leaving all as it was."""
        team, advantages = self.adapted.team, self._advantages(rollouts)
        informative = self._teaching(rollouts, advantages)
        reward, count, prompts, teaching = team.total(
            float(rollouts.rewards.sum()), rollouts.rewards.numel(), len(rollouts.prompts), len(informative)
        )
        self.flat.grad = torch.zeros_like(self.flat)
        found = self.trained_at_once.over(
            informative, lambda part: self._accumulate(rollouts, advantages, list(part), round(count))
        )
        kl, tokens = team.total(sum(kl for kl, _ in found), sum(tokens for _, tokens in found))
        norm, rate = self.follow()
        return StepResult(
            reward=reward / count,
            kl=kl / tokens if tokens and self.config.kl_coefficient else None,
            gradient_norm=norm,
            learning_rate=rate,
            informative=teaching / prompts,
            rollouts=round(count),
        )

    def follow(self) -> tuple[float, float]:
        """Update once along the gradient that all processes have added up; return its norm and the learning rate.

        Raises DivergedError if the gradient is not finite, leaving all as it was.
        """
        assert self.flat.grad is not None
        self.adapted.team.add(self.flat.grad)
        norm = float(nn.utils.clip_grad_norm_([self.flat], self.config.max_gradient_norm))
        if not math.isfinite(norm):
            raise DivergedError(
                f"the gradient of step {self.steps_done + 1} is not finite",
                hint="start again with a smaller --learning-rate, or with another --seed",
            )
        rate = self.learning_rate(self.steps_done)
        self._move(rate)
        self.steps_done += 1
        self.policy.changed()
        return norm, rate

    def _move(self, rate: float) -> None:
        """Let the optimiser make a step at `rate`, no longer than the bound allows."""
        config, before = self.config, self.flat.detach().clone()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            if config.weight_decay:  # towards the base, where z is 1, not towards 0
                self.flat.sub_((self.flat - self.policy.origin) * (rate * config.weight_decay))
            if config.max_relative_step and rate:
                assert isinstance(self.policy, SVFPolicy)
                bound = config.max_relative_step * rate / config.learning_rate
                S = self.policy.spectrum
                moved = before.to(S.device) + bounded((self.flat - before).to(S.device), S, bound)
                self.flat.copy_(moved.to(self.flat.dtype))

    def _accumulate(
        self, rollouts: Rollouts, advantages: torch.Tensor, part: list[int], count: int
    ) -> tuple[float, float]:
        """Add the gradient of some prompts' rollouts, out of `count`; return the sum of their KL and of their tokens.

        Nothing is added where memory runs out on the way.
        """
        model, device, coefficient = self.adapted.model, self.adapted.base.device, self.config.kl_coefficient
        temperature = rollouts.temperature or 1.0  # greedy answers are those of any temperature
        groups = [[completion.ids for completion in rollouts.groups[row]] for row in part]
        packed = pack([rollouts.prompts[row] for row in part], groups, device)
        reference_logp = None
        if coefficient:
            with torch.no_grad(), self.policy.reference():
                reference_logp = rollout_logp(model, packed, temperature)
        with torch.enable_grad(), self.policy.differentiable():
            logp = rollout_logp(model, packed, temperature)
            if reference_logp is None:
                reference_logp = logp.detach()  # the penalty and its gradient are 0
            loss = policy_gradient_loss(
                logp.flatten(0, 1),
                reference_logp.flatten(0, 1),
                packed.mask.flatten(0, 1),
                advantages[part].flatten().to(device),
                kl_coefficient=coefficient,
                rollouts=count,
            )
            gradient = self.policy.gradient_of(loss.total)
        assert self.flat.grad is not None
        self.flat.grad += gradient
        tokens = float(packed.mask.sum())
        return float(loss.kl) * tokens, tokens

    def _teaching(self, rollouts: Rollouts, advantages: torch.Tensor) -> list[int]:
        """Return which prompts teach something: those with an advantage (P, G) that is not 0.

        Not those whose answers go beyond a sliding window of the base, which a packed row has none of.
        """
        window = attention_window(self.adapted.model.config)
        rows: list[int] = (advantages != 0).any(dim=1).nonzero().flatten().tolist()
        return [row for row in rows if window is None or rollouts.longest(row) <= window]
