"""From probabilities to experts: thresholds, soft mixes, and what is never chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t2cli.config import DispatchConfig, SamplingConfig
from t2cli.dispatch.batch import Question, answer_each
from t2cli.dispatch.choice import DIGITS, chosen
from t2cli.dispatch.decision import OTHER, Decision, Messages
from t2cli.dispatch.two_pass import Answer, TwoPass
from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import ExpertEntry
from t2cli.registry.vectors import read_z

Put = Callable[..., ExpertEntry]

EXPERTS = {"math": "math@1", "story": "tales@3"}
LIKELY = {"math": 0.71, "story": 0.22, OTHER: 0.07}


def decided(probabilities: dict[str, float], *, advised: float = 0.0, **settings: object) -> Decision:
    config = DispatchConfig(**settings)  # type: ignore[arg-type]
    return chosen("any", probabilities, EXPERTS, config, 0.25, advised=advised)


def test_the_likeliest_category_answers_if_it_reaches_the_threshold() -> None:
    assert decided(LIKELY).weights == {"math@1": 1.0}
    for threshold, weights in ((0.71, {"math@1": 1.0}), (0.72, {}), (1.0, {}), (0.0, {"math@1": 1.0})):
        decision = decided(LIKELY, threshold=threshold)
        assert (decision.category, decision.weights, decision.threshold) == ("math", weights, threshold)
        assert decision.abstained == decision.below_threshold == (not weights)
        assert (decision.probabilities, decision.seconds, decision.strategy) == (LIKELY, 0.25, "any")


def test_what_a_strategy_advises_holds_where_nothing_is_asked_for() -> None:
    assert decided(LIKELY, advised=0.9).below_threshold
    assert decided(LIKELY, advised=0.9, threshold=0.5).weights == {"math@1": 1.0}
    assert decided(LIKELY, advised=0.9, threshold=0.0).weights == {"math@1": 1.0}
    assert decided(LIKELY, advised=0.2, threshold=0.9).weights == {}


@pytest.mark.parametrize("soft", [True, False])
def test_other_and_a_category_without_an_expert_are_the_bases(soft: bool) -> None:
    decision = decided({"math": 0.3, OTHER: 0.7}, soft=soft, threshold=0.9)
    assert (decision.category, decision.weights, decision.abstained) == (OTHER, {}, True)
    assert not decision.below_threshold  # nothing to be certain of
    decision = decided({"music": 0.6, "math": 0.4, OTHER: 0.0}, soft=soft)
    assert (decision.category, decision.weights, decision.below_threshold) == ("music", {}, False)


def test_a_soft_mix_has_the_probabilities_as_weights() -> None:
    assert decided(LIKELY, soft=True).weights == {"math@1": 0.71, "tales@3": 0.22}
    assert decided(LIKELY, soft=True, threshold=0.8).weights == {}
    assert decided({"math": 0.999, "story": 0.001, OTHER: 0.0}, soft=True).weights == {"math@1": 1.0}
    assert decided({"math": 0.995, "story": 0.004, OTHER: 0.001}, soft=True).weights.keys() == {"math@1"}


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_threshold_is_a_probability(threshold: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        DispatchConfig(threshold)


@given(
    st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(any),
    st.none() | st.floats(0, 1),
    st.booleans(),
)
def test_every_choice(numbers: list[float], threshold: float | None, soft: bool) -> None:
    probabilities = dict(zip((*EXPERTS, OTHER), (number / sum(numbers) for number in numbers), strict=True))
    decision = decided(probabilities, threshold=threshold, soft=soft)
    assert probabilities[decision.category or ""] == max(probabilities.values())
    assert set(decision.weights) <= set(EXPERTS.values())
    for name, reference in EXPERTS.items():
        alpha = decision.weights.get(reference, 0.0)
        assert alpha in (0.0, 1.0) if not soft else abs(alpha - probabilities[name]) <= 0.51 * 10**-DIGITS or not alpha
    assert sum(decision.weights.values()) <= 1 + 2 * 10**-DIGITS
    if decision.weights:
        assert max(probabilities.values()) >= (threshold or 0.0)
    if not soft:
        assert len(decision.weights) <= 1


class BySize:
    """Finds a question the more of `math` the longer it is."""

    def __init__(self, config: DispatchConfig) -> None:
        self.config = config

    def decide(self, messages: Messages) -> Decision:
        p = min(0.9, len(messages[-1]["content"]) / 50)
        probabilities = {"math": p, "story": 0.95 - p, OTHER: 0.05}
        return chosen("by size", probabilities, {"math": "math@1", "story": "story@1"}, self.config, 0.0)


@pytest.mark.parametrize("size", [1, 3, 16])
def test_soft_mixes_in_a_batch_are_each_as_alone(size: int, two_pass: TwoPass, put: Put) -> None:
    put("math", seed=1)
    put("story", seed=2)
    strategy, sampling = BySize(DispatchConfig(0.52, soft=True)), SamplingConfig(max_new_tokens=8)
    chats = [[{"role": "user", "content": "xy" * length}] for length in (1, 5, 9, 12, 13, 14, 18, 22, 5, 9)]
    found = dict(answer_each(two_pass, [Question(chat, strategy) for chat in chats], sampling, size))
    weights = set()
    for place, chat in enumerate(chats):
        answer, decision = found[place], strategy.decide(chat)
        assert isinstance(answer, Answer)
        assert answer.decision.weights == decision.weights
        assert answer.text == two_pass.answer(chat, decision, sampling).text
        weights.add(tuple(decision.weights.items()))
    assert () in weights  # some are left to the base
    assert len(weights) >= 7
    assert len({answer.text for answer in found.values() if isinstance(answer, Answer)}) > 3


def test_a_soft_mix_is_the_weighted_sum_and_nearly_equal_ones_are_folded_once(
    two_pass: TwoPass, adapted: AdaptedModel, put: Put
) -> None:
    experts = {name: read_z(put(name, seed=seed)) for name, seed in (("math", 1), ("story", 2))}
    strategy = BySize(DispatchConfig(soft=True))
    decision = strategy.decide([{"role": "user", "content": "a question of some length"}])
    z = two_pass.z_of(decision.weights)
    assert z is not None
    assert set(decision.weights) == {"math@1", "story@1"}
    for name in adapted.ranks:
        parts = (decision.weights[f"{expert}@1"] * (experts[expert][name].double() - 1) for expert in experts)
        assert torch.allclose(z[name].double(), 1 + sum(parts), atol=1e-6)
    near = replace(decision, probabilities={name: p + 0.001 for name, p in decision.probabilities.items()})
    again = chosen("any", near.probabilities, {"math": "math@1", "story": "story@1"}, strategy.config, 0.0)
    assert two_pass.z_of(again.weights) is z
