"""Learning z from scores alone: a population of perturbed z answers the same questions in rows of one batch.

Source: Salimans et al. 2017 (arXiv 1703.03864); svf/evolution.py has the estimate. Per row: math.md 3.

Notation: N candidates in mirrored pairs, P parameters, M questions, p (P,) the trained numbers, eps (N, P).

1. No backward pass and no optimiser state: memory is that of answering. One batch serves the whole population, since
   candidates share all matrices and differ in an element-wise product.
2. Answers are greedy, so that candidates differ by their z and not by luck. Rewards of right or wrong tie often: among
   equal rewards the mean log-likelihood of the right answers' tokens decides the rank. Where only unit tests are known
   and no right answer is, equal rewards stay equal: what a candidate thinks of the tests' source says nothing.
3. A step is p += learning_rate * sigma^2 * estimate, the natural gradient of a Gaussian's mean: the learning rate has
   no unit, and a step is small beside the perturbations however many parameters there are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

from t2cli.config import SamplingConfig, TrainConfig
from t2cli.evaluation.solutions import written
from t2cli.models.adapted import AdaptedModel
from t2cli.models.generate import Completion, generate
from t2cli.models.memory import Room
from t2cli.models.reading import left_padded, positions_of
from t2cli.svf.evolution import estimate, perturbations
from t2cli.svf.policy_gradient import token_logp
from t2cli.tasks.base import stop_of
from t2cli.training.policy import SVFPolicy
from t2cli.training.rollouts import judged
from t2cli.training.trainer import StepResult

if TYPE_CHECKING:
    from t2cli.tasks.base import Example, Task
    from t2cli.training.checkpoint import RunState

ROWS = 64  # of a batch: candidates times questions


class EvolutionTrainer:
    """Moves p (P,) by evolution strategies."""

    def __init__(self, adapted: AdaptedModel, config: TrainConfig) -> None:
        self.adapted = adapted
        self.config = config
        self.policy = SVFPolicy(adapted, config)
        self.candidates_at_once = Room(max(1, ROWS // config.prompts_per_step), "candidates")
        self.rooms = (self.candidates_at_once,)
        self.steps_done = 0
        self.caution = self.heat = 1.0

    def update(self, task: Task, lessons: Iterator[list[Example]], generator: torch.Generator) -> StepResult:
        """Score a population around p on a lesson, and move p once. Nothing is drawn from `generator`."""
        config, flat, examples = self.config, self.policy.flat, next(lessons)
        noise = perturbations(config.seed, self.steps_done, config.population, flat.numel(), config.sigma)
        candidates = self.policy.rows(flat.detach().cpu() + noise)  # (N, P)
        team, started = self.adapted.team, time.monotonic()
        mine = list(team.share(range(len(candidates))))  # processes share the candidates
        scored, count = self._rewards(candidates[mine], task, examples)  # (N, M)
        (tokens,) = team.total(count)
        sampled = time.monotonic() - started
        likely = self._logp(candidates[mine], task, examples)  # (N,)
        found = sorted(team.gathered(list(zip(mine, scored.tolist(), likely.tolist(), strict=True))))
        rewards, logp = torch.tensor([row for _, row, _ in found]), torch.tensor([value for *_, value in found])
        rate = config.learning_rate * self.caution
        direction = estimate(noise, fitness(rewards, logp), config.sigma)  # (P,)
        with torch.no_grad():
            flat.add_((rate * config.sigma**2 * direction).to(flat.device))
        self.steps_done += 1
        self.policy.changed()
        return StepResult(
            reward=float(rewards.mean()),
            kl=None,
            gradient_norm=float(direction.norm()),
            learning_rate=rate,
            informative=float((rewards != rewards[0]).any(dim=0).float().mean()),
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

    def _rewards(self, candidates: torch.Tensor, task: Task, examples: Sequence[Example]) -> tuple[torch.Tensor, int]:
        """Return the reward (N, M) of every candidate's greedy answers, and how many tokens they have."""
        prompts = [self.adapted.base.encode(task.messages(example)) for example in examples]
        sampling = SamplingConfig(max_new_tokens=task.max_new_tokens)
        stop = stop_of(task, self.adapted.base.decode)

        def answered(part: Sequence[torch.Tensor]) -> list[Completion]:
            with self._as(part, len(prompts)):
                return generate(self.adapted, prompts * len(part), sampling, stop=stop)

        with self.adapted.team.diverging_together():
            batches = self.candidates_at_once.over(list(candidates), answered)
        completions = [completion for batch in batches for completion in batch]
        tokens = sum(len(completion.ids) for completion in completions)
        rewards = judged(self.adapted, task, list(examples) * len(candidates), completions)
        return rewards.view(len(candidates), len(prompts)), tokens

    def _as(self, candidates: Sequence[torch.Tensor], questions: int) -> AbstractContextManager[None]:
        """Answer a row per candidate (P,) and question."""
        rows = torch.stack(list(candidates)).to(self.adapted.base.device)
        return self.adapted.per_row(rows.repeat_interleave(questions, dim=0))

    def _logp(self, candidates: torch.Tensor, task: Task, examples: Sequence[Example]) -> torch.Tensor:
        """Return each candidate's mean log-likelihood (N,) of the right answers' tokens, the first of long ones.

        Zeros where no right answer is known.
        """
        base = self.adapted.base
        prompts = [base.encode(task.messages(example)) for example in examples]
        texts = [written(task, example) or "" for example in examples]
        answers = [base.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        answers = [list(answer)[: task.max_new_tokens] for answer in answers]
        span = max(map(len, answers))  # T
        if not span:
            return torch.zeros(len(candidates))
        ids, mask = left_padded([[*p, *a] for p, a in zip(prompts, answers, strict=True)], base.device)
        right = torch.tensor([[0] * (span - len(answer)) + [1] * len(answer) for answer in answers])  # (M, T)

        def likelihoods(part: Sequence[torch.Tensor]) -> torch.Tensor:
            rows, all_ids = len(part), ids.repeat(len(part), 1)
            with torch.inference_mode(), self._as(part, len(prompts)):
                output = self.adapted.model(
                    input_ids=all_ids,
                    attention_mask=mask.repeat(rows, 1),
                    position_ids=positions_of(mask).repeat(rows, 1),
                    use_cache=False,
                    logits_to_keep=span + 1,
                )
            logp = token_logp(output.logits[:, :-1], all_ids[:, -span:]).cpu().view(rows, -1, span)
            return (logp * right).sum(dim=(1, 2)) / right.sum()

        parts = self.candidates_at_once.over(list(candidates), likelihoods)
        return torch.cat(parts) if parts else torch.zeros(0)


def fitness(rewards: torch.Tensor, logp: torch.Tensor) -> torch.Tensor:
    """Return a number per candidate (N,) that orders them by their rewards (N, M), and equal ones by logp (N,)."""
    scores = list(zip(rewards.sum(dim=1).tolist(), logp.tolist(), strict=True))
    places = {score: place for place, score in enumerate(sorted(set(scores)))}
    return torch.tensor([float(places[score]) for score in scores])
