"""The ways to make an update, by name: what the loop asks of a trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from t2cli.config import TrainConfig
from t2cli.lookup import load

if TYPE_CHECKING:
    import torch

    from t2cli.models.adapted import AdaptedModel
    from t2cli.models.memory import Room
    from t2cli.tasks.base import Example, Task
    from t2cli.training.checkpoint import RunState
    from t2cli.training.policy import Policy
    from t2cli.training.trainer import StepResult


class Algorithm(Protocol):
    """Moves `policy.flat` (parameters,)."""

    policy: Policy
    rooms: Sequence[Room]  # how much goes through the model at once
    heat: float  # of the rollouts: their temperature, over the one at first

    def update(self, task: Task, lessons: Iterator[list[Example]], generator: torch.Generator) -> StepResult:
        """Answer the next lesson's examples, drawing from `generator`, and update the policy once from the rewards.

        More lessons are taken where the first one teaches too little.
        """

    def moments(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint keeps besides the numbers: exp_avg and exp_avg_sq (parameters,)."""

    def restore(self, state: RunState) -> None:
        """Go on from a checkpoint; the optimiser has been at work since the step `restarted`."""


TRAINERS = {
    "policy-gradient": "t2cli.training.trainer:Trainer",
    "evolution": "t2cli.training.evolution:EvolutionTrainer",
    "labels": "t2cli.training.labels:LabelTrainer",
}


def algorithm_of(adapted: AdaptedModel, config: TrainConfig) -> Algorithm:
    """Return the trainer that `config` names, with a policy at its start."""
    algorithm: Algorithm = load(config.trainer, TRAINERS, "trainer")(adapted, config)  # type: ignore[operator]
    return algorithm
