"""One step of learning which label is right for a question: what a dispatcher is trained by.

Source: Transformer-Squared (arXiv 2501.06252), section 3.2: the classification expert z_c.

Notation: P questions, C labels.

The reward of an answer is 1 for the right label and -1 for the others, and there are C answers: the expected reward
that the samples of REINFORCE estimate, 2 pi(right) - 1, is known exactly after one forward pass, and so is its
gradient. It is the logarithm of pi(right) that is followed (cross-entropy): its gradient does not vanish where the
right label is unlikely. Bounds, schedule, checkpoints and validation are those of Trainer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from t2cli.config import TrainConfig
from t2cli.errors import UsageError
from t2cli.evaluation.labels import question_of
from t2cli.models.adapted import AdaptedModel
from t2cli.models.labels import LabelPrompt
from t2cli.tasks.dispatch import label_set_of
from t2cli.training.packing import pack, rollout_logp
from t2cli.training.trainer import StepResult, Trainer

if TYPE_CHECKING:
    from t2cli.tasks.base import Example, Task

Question = tuple[list[int], int]  # the tokens of its chat, and the place of its right label


class LabelTrainer(Trainer):
    """Moves the policy's flat parameter (parameters,) towards the right labels."""

    def __init__(self, adapted: AdaptedModel, config: TrainConfig) -> None:
        super().__init__(adapted, config)
        self.rooms = (self.trained_at_once,)  # nothing is sampled

    def update(self, task: Task, lessons: Iterator[list[Example]], generator: torch.Generator) -> StepResult:
        """Read a lesson as the policy, and update it once from the labels. Nothing is drawn from `generator`."""
        examples = next(lessons)
        label_set = label_set_of(task)
        if label_set is None:
            raise UsageError(f"the answers of the task {task.name} are no categories", hint="use another --trainer")
        prompt, team = LabelPrompt(self.adapted.base, label_set.instruction, label_set.labels), self.adapted.team
        asked = [
            (prompt.encode(question_of(task, example)), label_set.categories.index(example.answer))
            for example in team.share(examples)
        ]
        self.flat.grad = torch.zeros_like(self.flat)
        found = self.trained_at_once.over(
            asked, lambda part: self._accumulate_labels(part, prompt.labels, len(examples))
        )
        (right,) = team.total(sum(found))
        norm, rate = self.follow()
        return StepResult(
            reward=2 * right / len(examples) - 1,
            kl=None,
            gradient_norm=norm,
            learning_rate=rate,
            informative=1.0,
            rollouts=len(examples),
        )

    def _accumulate_labels(self, part: Sequence[Question], labels: Sequence[int], count: int) -> float:
        """Add the gradient of some questions, out of `count`; return the sum of their right labels' probabilities.

        Nothing is added where memory runs out on the way.
        """
        device = self.adapted.base.device
        packed = pack([ids for ids, _ in part], [[[label] for label in labels]] * len(part), device)
        right = torch.tensor([place for _, place in part], device=device)
        with torch.enable_grad(), self.policy.differentiable():
            logp = rollout_logp(self.adapted.model, packed)[..., 0]  # (P, C)
            loss = label_loss(logp, right)
            gradient = self.policy.gradient_of(loss.sum() / count)
        assert self.flat.grad is not None
        self.flat.grad += gradient
        return float(torch.exp(-loss.detach()).sum())


def label_loss(logp: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return -log P(right label, among the labels) (P,) from log pi(label) (P, C) and the right places (P,)."""
    return -torch.log_softmax(logp, dim=-1).gather(1, right.unsqueeze(1)).squeeze(1)
