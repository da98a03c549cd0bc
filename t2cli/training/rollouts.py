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
from t2cli.models.generate import Completion, draw, generate
from t2cli.models.memory import Room
from t2cli.svf.zvector import ZVectors
from t2cli.tasks.base import Example, Task, rewards, stop_of


@dataclass(frozen=True)
class Rollouts:
    """P prompts with G judged completions each; `rewards` (P, G) in {-1, +1}.

    Where several processes train together, those of one of them; P may be 0.
    """

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
    room: Room | None = None,
) -> Rollouts:
    """Answer each example `config.group` times at `config.temperature` with folded weights; judge the answers.

    Of the examples, a process answers the share that it has in the model's team, in batches of the `room` there is.
    """
    group = config.group
    sampling = SamplingConfig(max_new_tokens=task.max_new_tokens, temperature=config.temperature)
    draws = draw(len(examples) * group, sampling, generator).view(len(examples), group, -1)
    mine = list(adapted.team.share(range(len(examples))))
    draws = draws[mine].flatten(0, 1)  # (rows, max_new_tokens)
    prompts = [adapted.base.encode(task.messages(examples[index])) for index in mine]

    stop = stop_of(task, adapted.base.decode)

    def sampled(rows: Sequence[int]) -> list[Completion]:
        which = [row // group for row in rows]
        whole = rows[0] % group == 0 and len(rows) % group == 0  # then each prompt is read once for its group
        asked = [prompts[index] for index in (which[::group] if whole else which)]
        return generate(adapted, asked, sampling, copies=group if whole else 1, draws=draws[list(rows)], stop=stop)

    room = room or Room(max(1, len(draws)), "rollouts")
    with adapted.use_z(z):
        flat = [completion for part in room.over(range(len(draws)), sampled) for completion in part]
    groups = [flat[start : start + group] for start in range(0, len(flat), group)]
    asked = [examples[index] for index in mine for _ in range(group)]
    return Rollouts(prompts, groups, judged(adapted, task, asked, flat).view(len(mine), group))


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
