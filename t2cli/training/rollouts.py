"""Sample answers to a task's examples under the policy in use, and have them judged.

The token ids are kept as sampled: text decoded and tokenised again may be other tokens, with other log-probabilities.
A completion that did not end within the task's limit counts as wrong: otherwise the model learns to give the answer
and to go on for ever (seen: after 20 steps none of 48 completions ended).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from t2cli.config import SamplingConfig, TrainConfig
from t2cli.models.generate import Completion, generate
from t2cli.models.text_model import TextModel

if TYPE_CHECKING:
    from t2cli.tasks.base import Example, Task


@dataclass(frozen=True)
class Rollouts:
    """P prompts with G judged completions each; `rewards` (P, G) in {-1, +1}."""

    prompts: list[list[int]]
    groups: list[list[Completion]]
    rewards: torch.Tensor

    @property
    def tokens(self) -> int:
        """Return how many tokens were generated."""
        return sum(len(completion.ids) for group in self.groups for completion in group)


def collect(
    text_model: TextModel,
    task: Task,
    examples: Sequence[Example],
    config: TrainConfig,
    generator: torch.Generator,
) -> Rollouts:
    """Answer each example `config.group` times at `config.temperature` as what is in use; judge the answers."""
    prompts = [text_model.base.encode(task.messages(example)) for example in examples]
    sampling = SamplingConfig(max_new_tokens=task.max_new_tokens, temperature=config.temperature)
    flat = generate(text_model, prompts, sampling, copies=config.group, generator=generator)
    groups = [flat[start : start + config.group] for start in range(0, len(flat), config.group)]
    rewards = [
        [judged(text_model, task, example, completion) for completion in group]
        for example, group in zip(examples, groups, strict=True)
    ]
    return Rollouts(prompts, groups, torch.tensor(rewards))


def judged(text_model: TextModel, task: Task, example: Example, completion: Completion) -> float:
    """Return the reward of a rollout, -1 or +1."""
    if not completion.ended:
        return -1.0
    return task.reward(example, text_model.base.decode(list(completion.ids)))
