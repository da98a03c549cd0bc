"""What a strategy chose for the questions of an evaluation, and where its time went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Learned:
    """What a strategy found out about a task before it answered, from `shots` examples of `split`.

    `chosen` names what won; `scores` are accuracies by candidate, those of a search on the half of the examples that
    it did not choose by. Of a search alone there are the `alphas` by expert that answer, and the `spread` that its last
    Gaussian had.
    """

    split: str
    shots: int
    chosen: str
    scores: Mapping[str, float]
    alphas: Mapping[str, float] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Choices:
    """What pass 1 said of n examples, in their order, and the seconds of both passes for all of them together.

    `categories` are None where it looks for none, else among `known`. `weights` are alphas by expert, without any the
    base answered. What was learned of the task beforehand counts as pass 1.
    """

    categories: tuple[str | None, ...]
    known: tuple[str, ...]
    weights: tuple[Mapping[str, float], ...]
    pass1_seconds: float
    answer_seconds: float
    learned: Learned | None = None

    @property
    def share(self) -> float:
        """Return the share of the time that pass 1 took."""
        total = self.pass1_seconds + self.answer_seconds
        return self.pass1_seconds / total if total else 0.0

    @property
    def of_categories(self) -> dict[str, int]:
        """Return how many questions each category was chosen for; empty where pass 1 looks for none."""
        return {name: self.categories.count(name) for name in self.known}

    @property
    def of_experts(self) -> dict[str, int]:
        """Return how many questions each expert answered, alone or in a mix."""
        counts = Counter(reference for weights in self.weights for reference, alpha in weights.items() if alpha)
        return dict(sorted(counts.items()))

    @property
    def left_to_base(self) -> int:
        """Return how many questions the base answered alone."""
        return sum(not weights for weights in self.weights)


def record(choices: Choices) -> dict[str, object]:
    """Return what --json adds to a strategy's row."""
    learned = choices.learned
    return {
        "categories": choices.of_categories,
        "experts": choices.of_experts,
        "left_to_base": choices.left_to_base,
        "pass1_seconds": round(choices.pass1_seconds, 3),
        "answer_seconds": round(choices.answer_seconds, 3),
        "pass1_share": round(choices.share, 4),
        "learned": learned and _learned(learned),
    }


def _learned(learned: Learned) -> dict[str, object]:
    return {
        "split": learned.split,
        "shots": learned.shots,
        "chosen": learned.chosen,
        "scores": dict(learned.scores),
        "alphas": {
            reference: {"alpha": alpha, "spread": learned.spread[reference]}
            for reference, alpha in learned.alphas.items()
        },
    }
