"""Learning z from scores alone: a population of perturbed z answers questions in rows of one batch.

Source: Salimans et al. 2017 (arXiv 1703.03864); svf/evolution.py has the estimate. Per row: math.md 3.

Notation: N candidates in N/2 mirrored pairs, P parameters, D of them perturbed, p (P,) the trained numbers, eps (N, D).

1. No backward pass and no optimiser state: memory is that of answering. One batch serves the whole population, since
   candidates share all matrices and differ in an element-wise product.
2. Answers are greedy, so that candidates differ by their z and not by luck. A pair answers one question, whose
   difficulty cancels: the better of the two wins, equal rewards say nothing. Were all asked the same eight questions,
   as many answers would try an eighth of the directions.
3. Only the strongest `components` of each matrix are perturbed. An estimate from few pairs points uphill with a cosine
   of about sqrt(pairs / D), and the first two components of SmolLM2-135M's matrices, 420 of 97,920 numbers, hold 0.3 of
   the squared gradient of the right answers' log-likelihood. Thin products are cheaper, too.
4. The likelihood of right answers does not break ties: the policy learns to begin with what looks like an answer, and
   its own longer ones, which were right, are lost.
5. A step is p += learning_rate * sigma^2 * estimate, the natural gradient of a Gaussian's mean: the learning rate has
   no unit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from t2cli.config import SamplingConfig, TrainConfig
from t2cli.models.adapted import AdaptedModel
from t2cli.models.generate import Completion, generate
from t2cli.models.memory import Room
from t2cli.svf.evolution import estimate, perturbations
from t2cli.tasks.base import stop_of
from t2cli.training.policy import SVFPolicy
from t2cli.training.rollouts import judged
from t2cli.training.trainer import StepResult

if TYPE_CHECKING:
    from t2cli.tasks.base import Example, Task
    from t2cli.training.checkpoint import RunState

ROWS = 64  # of a batch, a candidate each
EXACT = 1e-9  # relative error of W' - W that thin products may have: only what changes nothing is left out


class EvolutionTrainer:
    """Moves p (P,) by evolution strategies."""

    def __init__(self, adapted: AdaptedModel, config: TrainConfig) -> None:
        self.adapted = adapted
        self.config = config
        self.policy = SVFPolicy(adapted, config)
        self.perturbed = strongest(adapted.ranks, config.components)  # (D,)
        self.candidates_at_once = Room(ROWS, "candidates")
        self.rooms = (self.candidates_at_once,)
        self.steps_done = 0
        self.caution = self.heat = 1.0

    def update(self, task: Task, lessons: Iterator[list[Example]], generator: torch.Generator) -> StepResult:
        """Score a population around p on a lesson, and move p once. Nothing is drawn from `generator`."""
        config, flat, examples = self.config, self.policy.flat, next(lessons)
        noise = perturbations(config.seed, self.steps_done, config.population, len(self.perturbed), config.sigma)
        candidates = self._around(flat.detach().cpu(), noise)  # (N, P)
        asked = [examples[row % (len(noise) // 2) % len(examples)] for row in range(len(noise))]
        team, started = self.adapted.team, time.monotonic()
        mine = list(team.share(range(len(noise))))  # processes share the candidates
        scored, count = self._rewards(candidates[mine], task, [asked[row] for row in mine])
        (tokens,) = team.total(count)
        sampled = time.monotonic() - started
        found = sorted(team.gathered(list(zip(mine, scored.tolist(), strict=True))))
        rewards = torch.tensor([reward for _, reward in found])  # (N,)
        won = fitness(rewards)
        rate = config.learning_rate * self.caution
        direction = estimate(noise, won, config.sigma)  # (D,)
        with torch.no_grad():
            flat[self.perturbed] += (rate * config.sigma**2 * direction).to(flat.device)
        self.steps_done += 1
        self.policy.changed()
        return StepResult(
            reward=float(rewards.mean()),
            kl=None,
            gradient_norm=float(direction.norm()),
            learning_rate=rate,
            informative=float(won.abs().mean()),
            tokens=round(tokens),
            sampling_seconds=sampled,
            rollouts=rewards.numel(),
        )

    def moments(self) -> dict[str, torch.Tensor]:
        """Return zeros: a step depends on p and its number alone."""
        zeros = torch.zeros_like(self.policy.flat.detach())
        return {"exp_avg": zeros, "exp_avg_sq": zeros.clone()}

    def restore(self, state: RunState) -> None:
        """Go on with the numbers z (P,) of a checkpoint."""
        with torch.no_grad():
            self.policy.flat.copy_(state.tensors["z"])
        self.policy.changed()
        self.steps_done, self.caution = state.step, state.caution

    def _around(self, numbers: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return z (N, P) of the numbers (P,) with `noise` (N, D) on those that are perturbed."""
        candidates = numbers.repeat(len(noise), 1)
        candidates[:, self.perturbed] += noise
        return self.policy.rows(candidates.to(self.policy.flat.device)).cpu()

    def _rewards(self, candidates: torch.Tensor, task: Task, asked: Sequence[Example]) -> tuple[torch.Tensor, int]:
        """Return the reward (N,) of each candidate's greedy answer to its question, and how many tokens all have."""
        sampling = SamplingConfig(max_new_tokens=task.max_new_tokens)
        stop = stop_of(task, self.adapted.base.decode)
        prompts = [self.adapted.base.encode(task.messages(example)) for example in asked]

        def answered(part: Sequence[tuple[torch.Tensor, list[int]]]) -> list[Completion]:
            rows = torch.stack([candidate for candidate, _ in part]).to(self.adapted.base.device)
            with self.adapted.per_row(rows, tolerance=EXACT):
                return generate(self.adapted, [prompt for _, prompt in part], sampling, stop=stop)

        with self.adapted.team.diverging_together():
            batches = self.candidates_at_once.over(list(zip(candidates, prompts, strict=True)), answered)
        completions = [completion for batch in batches for completion in batch]
        rewards = judged(self.adapted, task, list(asked), completions)
        return rewards, sum(len(completion.ids) for completion in completions)


def strongest(ranks: Mapping[str, int], components: int) -> torch.Tensor:
    """Return where (D,) in z (P,) the first `components` of each matrix are, all of them for 0."""
    found, start = [], 0
    for name in sorted(ranks):
        found.append(torch.arange(start, start + min(components or ranks[name], ranks[name])))
        start += ranks[name]
    return torch.cat(found)


def fitness(rewards: torch.Tensor) -> torch.Tensor:
    """Return 1 for each candidate whose reward (N,) is above its mirror image's, -1 for the others, 0 for equals."""
    one, other = rewards.chunk(2)
    won = (one - other).sign()
    return torch.cat([won, -won])
