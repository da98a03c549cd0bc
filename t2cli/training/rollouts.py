"""Sample answers to a task's examples under the current z, and have them judged.

The token ids are kept as sampled: text decoded and tokenised again may be other tokens, with other log-probabilities.
A completion that did not end within the task's limit counts as wrong: otherwise the model learns to give the answer
and to go on for ever (seen: after 20 steps none of 48 completions ended).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from t2cli.config import SamplingConfig, TrainConfig
from t2cli.models.adapted import AdaptedModel
from t2cli.models.generate import Completion, generate
from t2cli.svf.zvector import ZVectors
from t2cli.tasks.base import Example, Task, rewards, stop_of


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
    adapted: AdaptedModel,
    task: Task,
    examples: Sequence[Example],
    z: ZVectors,
    config: TrainConfig,
    generator: torch.Generator,
) -> Rollouts:
    """Answer each example `config.group` times at `config.temperature` with folded weights; judge the answers."""
    prompts = [adapted.base.encode(task.messages(example)) for example in examples]
    sampling = SamplingConfig(max_new_tokens=task.max_new_tokens, temperature=config.temperature)
    with adapted.use_z(z):
        stop = stop_of(task, adapted.base.decode)
        flat = generate(adapted, prompts, sampling, copies=config.group, generator=generator, stop=stop)
    groups = [flat[start : start + config.group] for start in range(0, len(flat), config.group)]
    asked = [example for example in examples for _ in range(config.group)]
    return Rollouts(prompts, groups, judged(adapted, task, asked, flat).view(len(examples), config.group))


def judged(
    adapted: AdaptedModel, task: Task, examples: Sequence[Example], completions: Sequence[Completion]
) -> torch.Tensor:
    """Return the reward of each rollout, -1 or +1; those that did not end are not even looked at."""
    ended = [i for i, completion in enumerate(completions) if completion.ended]
    texts = [adapted.base.decode(list(completions[i].ids)) for i in ended]
    result = torch.full((len(completions),), -1.0)
    if ended:
        result[ended] = torch.tensor(rewards(task, [examples[i] for i in ended], texts))
    return result
