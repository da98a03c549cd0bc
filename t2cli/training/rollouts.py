"""Sample answers to a task's examples under the policy in use, and have them judged.

The token ids are kept as sampled: text decoded and tokenised again may be other tokens, with other log-probabilities.
A completion that did not end within the task's limit counts as wrong: otherwise the model learns to give the answer
and to go on for ever (seen: after 20 steps none of 48 completions ended).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from t2cli.config import SamplingConfig, TrainConfig
from t2cli.models.generate import Completion, draw, generate
from t2cli.models.memory import Room
from t2cli.models.text_model import TextModel
from t2cli.tasks.base import Example, Task, rewards, stop_of


@dataclass(frozen=True)
class Rollouts:
    """P prompts with G judged completions each, sampled at `temperature`; `rewards` (P, G) in {-1, +1}.

    Where several processes train together, those of one of them; P may be 0.
    """

    prompts: list[list[int]]
    groups: list[list[Completion]]
    rewards: torch.Tensor
    temperature: float = 1.0  # 0: greedy

    def __add__(self, other: Rollouts) -> Rollouts:
        """Return these and more that were sampled at the same temperature."""
        rewards = torch.cat([self.rewards, other.rewards])
        return Rollouts(self.prompts + other.prompts, self.groups + other.groups, rewards, self.temperature)

    @property
    def pairs(self) -> tuple[int, int]:
        """Return how many pairs of completions of a prompt are equal and wrong, and how many there are."""
        judged = zip(self.groups, self.rewards.tolist(), strict=True)
        pairs = [
            a.ids == b.ids and reward < 0
            for group, rewards in judged
            for (a, reward), (b, _) in combinations(zip(group, rewards, strict=True), 2)
        ]
        return sum(pairs), len(pairs)

    def longest(self, row: int) -> int:
        """Return how many tokens a prompt has with the longest of its completions."""
        return len(self.prompts[row]) + max(len(completion.ids) for completion in self.groups[row])

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
    room: Room | None = None,
) -> Rollouts:
    """Answer each example `config.group` times at `config.temperature` as what is in use; judge the answers.

    Of the examples, a process answers the share that it has in the model's team, in batches of the `room` there is.
    """
    group = config.group
    sampling = SamplingConfig(max_new_tokens=task.max_new_tokens, temperature=config.temperature)
    mine = list(text_model.team.share(range(len(examples))))
    draws = None
    if sampling.temperature > 0:
        all_draws = draw(len(examples) * group, sampling, generator).view(len(examples), group, -1)
        draws = all_draws[mine].flatten(0, 1)  # (rows, max_new_tokens)
    prompts = [text_model.base.encode(task.messages(examples[index])) for index in mine]
    stop = stop_of(task, text_model.base.decode)

    def sampled(rows: Sequence[int]) -> list[Completion]:
        which = [row // group for row in rows]
        whole = rows[0] % group == 0 and len(rows) % group == 0  # then each prompt is read once for its group
        asked = [prompts[index] for index in (which[::group] if whole else which)]
        own = None if draws is None else draws[list(rows)]
        return generate(text_model, asked, sampling, copies=group if whole else 1, draws=own, stop=stop)

    total = len(mine) * group
    room = room or Room(max(1, total), "rollouts")
    with text_model.team.diverging_together():
        flat = [completion for part in room.over(range(total), sampled) for completion in part]
    groups = [flat[start : start + group] for start in range(0, len(flat), group)]
    asked = [examples[index] for index in mine for _ in range(group)]
    verdicts = judged(text_model, task, asked, flat).view(len(mine), group)
    return Rollouts(prompts, groups, verdicts, sampling.temperature)


def judged(
    text_model: TextModel, task: Task, examples: Sequence[Example], completions: Sequence[Completion]
) -> torch.Tensor:
    """Return the reward of each rollout, -1 or +1; those that did not end are not even looked at."""
    ended = [i for i, completion in enumerate(completions) if completion.ended]
    texts = [text_model.base.decode(completions[i].ids) for i in ended]
    result = torch.full((len(completions),), -1.0)
    if ended:
        result[ended] = torch.tensor(rewards(task, [examples[i] for i in ended], texts))
    return result
