"""Experts that are removed while questions are answered: pass 1 chooses among the rest from then on.

What the user chose by hand is not replaced by something else: there the question has no answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from t2cli.dispatch.batch import Question, decide_all
from t2cli.dispatch.decision import Decision, Messages, Strategy
from t2cli.dispatch.fixed import FixedStrategy
from t2cli.errors import CorruptArtifactError, IncompatibleBaseError, NotFoundError, T2Error
from t2cli.registry.resolve import Resolver


class Renewed:
    """A strategy that is made anew where an expert it chose is gone, with one warning for each."""

    def __init__(self, make: Callable[[], Strategy], resolver: Resolver, warn: Callable[[str], None]) -> None:
        self._make = make
        self._resolver = resolver
        self._warn = warn
        self._told: set[str] = set()
        self.strategy = make()

    def decide(self, messages: Messages) -> Decision:
        """Return which of the experts that are still there answer."""
        return self.decide_each([messages])[0]

    def decide_each(self, conversations: Sequence[Messages]) -> list[Decision]:
        """Return what `decide` says of each, up to rounding."""
        decisions = self._decided(conversations)
        gone = self._gone(decisions)
        if new := gone.keys() - self._told:
            for reference in sorted(new):
                self._warn(f"{reference} cannot answer any more: {gone[reference].message}")
            self._told |= new
            with contextlib.suppress(T2Error):  # without all that it needs: the old one, and the base for what is gone
                self.strategy = self._make()
            decisions = self._decided(conversations)
            gone = self._gone(decisions)
        return [_without(decision, gone) for decision in decisions]

    def _decided(self, conversations: Sequence[Messages]) -> list[Decision]:
        return decide_all([Question(messages, self.strategy) for messages in conversations])

    def _gone(self, decisions: Sequence[Decision]) -> dict[str, T2Error]:
        """Return why experts of the decisions are not found, by reference; one that is damaged is still there."""
        gone: dict[str, T2Error] = {}
        for reference in {reference for decision in decisions for reference in decision.weights}:
            try:
                self._resolver.find(reference)
            except (NotFoundError, IncompatibleBaseError) as error:  # the latter where another base's has that name
                gone[reference] = error
            except CorruptArtifactError:
                continue
        return gone


def renewed(make: Callable[[], Strategy], resolver: Resolver, warn: Callable[[str], None]) -> Strategy:
    """Return the strategy of `make`, made anew where an expert it chooses is gone; one that never chooses stays."""
    strategy = Renewed(make, resolver, warn)
    return strategy.strategy if isinstance(strategy.strategy, FixedStrategy) else strategy


def still_there(resolver: Resolver, strategy: Strategy) -> Strategy:
    """Return the strategy; raises as Resolver.find for experts chosen by hand that cannot be used any more."""
    if isinstance(strategy, FixedStrategy):
        for reference in strategy.decision.weights:
            resolver.find(reference)
    return strategy


def _without(decision: Decision, gone: Mapping[str, object]) -> Decision:
    """Return a decision without some experts: the base answers in their place."""
    if not gone.keys() & decision.weights.keys():
        return decision
    return replace(decision, weights={name: alpha for name, alpha in decision.weights.items() if name not in gone})
