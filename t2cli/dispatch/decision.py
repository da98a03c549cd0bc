"""What pass 1 answers: which experts, with which weights, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from t2cli.registry.dispatcher_record import OTHER as OTHER

Messages = list[dict[str, str]]

FEW_SHOT = "few-shot"  # the strategy that is searched on examples, made by TwoPass.few_shot


@dataclass(frozen=True)
class Category:
    """What pass 1 may answer: a name, what it is about, questions of its kind, and the expert that answers them."""

    name: str
    description: str
    examples: tuple[str, ...]
    reference: str


@dataclass(frozen=True)
class Decision:
    """Which experts answer a question. No `weights` means the base model untouched."""

    strategy: str
    category: str | None = None  # None where no category was looked for
    probabilities: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)  # reference of an expert -> alpha
    seconds: float = 0.0
    threshold: float = 0.0  # the probability that the category needed

    @property
    def abstained(self) -> bool:
        """Tell whether pass 1 looked at the question and left it to the base model."""
        return self.category is not None and not self.weights

    @property
    def below_threshold(self) -> bool:
        """Tell whether the likeliest category, which is not OTHER, was not likely enough."""
        if self.category in (None, OTHER):
            return False
        return self.probabilities.get(self.category or "", 0.0) < self.threshold


class Strategy(Protocol):
    """Pass 1. Adding one is a file in this package and a row of two_pass.STRATEGIES."""

    def decide(self, messages: Messages) -> Decision:
        """Return which experts answer the last message of the chat."""
