"""From the probabilities of the categories to experts: one of them, a mix of them, or none.

Source: Transformer-Squared (arXiv 2501.06252), section 3.2; math.md 4 and 6.

Deviations from the paper:
1. A category that is not likely enough leaves the question to the base model.
2. `soft` mixes by probability, z = 1 + sum_c p_c (z_c - 1): the base answers with the weight of "other".
"""

from __future__ import annotations

from collections.abc import Mapping

from t2cli.config import DispatchConfig
from t2cli.dispatch.decision import OTHER, Decision

DIGITS = 2  # of a soft mix' weights: questions with nearly the same probabilities share a mix, which is folded once


def chosen(
    strategy: str,
    probabilities: Mapping[str, float],
    experts: Mapping[str, str],
    config: DispatchConfig,
    seconds: float,
    *,
    advised: float = 0.0,
) -> Decision:
    """Return which `experts` (category -> reference) answer, from the probabilities of all categories and OTHER.

    The likeliest category has to reach `config.threshold`, or what the strategy `advised` where that is None, and there
    has to be an expert for it: else the base answers, and the decision still names the category.
    """
    threshold = advised if config.threshold is None else config.threshold
    best = max(probabilities, key=lambda name: probabilities[name])
    weights: dict[str, float] = {}
    if best != OTHER and best in experts and probabilities[best] >= threshold:
        weights = _mix(probabilities, experts) if config.soft else {experts[best]: 1.0}
    return Decision(strategy, best, dict(probabilities), weights, seconds, threshold)


def _mix(probabilities: Mapping[str, float], experts: Mapping[str, str]) -> dict[str, float]:
    """Return alpha by reference; categories whose share rounds to nothing are left out."""
    shares = {reference: round(probabilities.get(name, 0.0), DIGITS) for name, reference in experts.items()}
    return {reference: alpha for reference, alpha in shares.items() if alpha}
