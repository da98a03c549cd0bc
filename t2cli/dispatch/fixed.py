"""No pass 1: the user chose the experts, or chose none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2cli.dispatch.decision import Decision, Messages, Strategy

if TYPE_CHECKING:
    from t2cli.config import DispatchConfig
    from t2cli.dispatch.two_pass import TwoPass


class FixedStrategy:
    """Answers every question with the same experts."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision

    def decide(self, messages: Messages) -> Decision:
        """Return the decision that was made beforehand."""
        return self.decision


def no_strategy(two_pass: TwoPass, config: DispatchConfig) -> Strategy:
    """Return the strategy to answer with the base model; what experts there are is of no interest."""
    return FixedStrategy(Decision("none"))
