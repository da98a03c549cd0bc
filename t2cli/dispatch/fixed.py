"""No pass 1: the user chose the experts, or chose none."""

from __future__ import annotations

from collections.abc import Sequence

from t2cli.dispatch.decision import Category, Decision, Messages
from t2cli.models.adapted import AdaptedModel


class FixedStrategy:
    """Answers every question with the same experts."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision

    def decide(self, messages: Messages) -> Decision:
        """Return the decision that was made beforehand."""
        return self.decision


class NoStrategy(FixedStrategy):
    """Answers every question with the base model."""

    def __init__(self, adapted: AdaptedModel, categories: Sequence[Category]) -> None:
        super().__init__(Decision("none"))
