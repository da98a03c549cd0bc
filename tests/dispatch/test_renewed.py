"""Experts that are removed while questions are answered: the rest are chosen from, with one warning."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from t2cli.config import DispatchConfig
from t2cli.dispatch.categories import categories_of
from t2cli.dispatch.choice import chosen
from t2cli.dispatch.decision import OTHER, Decision, Messages, Strategy
from t2cli.dispatch.fixed import FixedStrategy
from t2cli.dispatch.renewed import Renewed, renewed, still_there
from t2cli.dispatch.two_pass import TwoPass
from t2cli.errors import NotFoundError
from t2cli.registry.local import ExpertEntry

Put = Callable[..., ExpertEntry]

CHATS = [[{"role": "user", "content": text}] for text in ("math please", "story please", "math again", "what?")]


class ByName:
    """Finds a question of the category that it names, among those that there were when it was made."""

    def __init__(self, two_pass: TwoPass, config: DispatchConfig) -> None:
        self.config = config
        self.experts = {category.name: category.reference for category in categories_of(two_pass.resolver)}

    def decide(self, messages: Messages) -> Decision:
        named = {name: float(name in messages[-1]["content"]) * 0.6 + 0.1 for name in self.experts}
        return chosen("by name", {**named, OTHER: 0.3}, self.experts, self.config, 0.0)


@pytest.fixture
def warned() -> list[str]:
    return []


@pytest.fixture
def make(two_pass: TwoPass, put: Put, warned: list[str]) -> Callable[..., Renewed]:
    """Return a function that makes the strategy over two experts, one of which has two versions."""
    put("math", seed=1)
    put("math", seed=2)
    put("story", seed=3)
    return lambda **settings: Renewed(
        lambda: ByName(two_pass, DispatchConfig(**settings)), two_pass.resolver, warned.append
    )


def weights(decisions: list[Decision]) -> list[dict[str, float]]:
    return [dict(decision.weights) for decision in decisions]


def test_with_all_experts_there_it_is_the_strategy_itself(make: Callable[..., Renewed], warned: list[str]) -> None:
    strategy = make()
    assert strategy.decide_each(CHATS) == [strategy.strategy.decide(chat) for chat in CHATS]
    assert weights(strategy.decide_each(CHATS)) == [{"math@2": 1.0}, {"story@1": 1.0}, {"math@2": 1.0}, {}]
    assert strategy.decide_each([]) == []
    assert warned == []


def test_what_is_left_is_chosen_from_and_the_warning_comes_once(
    make: Callable[..., Renewed], two_pass: TwoPass, warned: list[str]
) -> None:
    strategy = make()
    strategy.decide_each(CHATS)
    two_pass.registry.remove("math@2")
    assert weights(strategy.decide_each(CHATS)) == [{"math@1": 1.0}, {"story@1": 1.0}, {"math@1": 1.0}, {}]
    two_pass.registry.remove("math@1")
    for _ in range(2):
        found = strategy.decide_each(CHATS)
        assert weights(found) == [{}, {"story@1": 1.0}, {}, {}]
        assert found[0].category == OTHER
        assert set(found[0].probabilities) == {"story", OTHER}
    two_pass.registry.remove("story@1")
    assert strategy.decide(CHATS[1]).weights == {}
    assert [text.split(" cannot answer any more: ")[0] for text in warned] == ["math@2", "math@1", "story@1"]


def test_a_soft_mix_is_made_of_the_rest(make: Callable[..., Renewed], two_pass: TwoPass, warned: list[str]) -> None:
    strategy = make(soft=True)
    assert strategy.decide(CHATS[0]).weights == {"math@2": 0.7, "story@1": 0.1}
    two_pass.registry.remove("story@1")
    assert strategy.decide(CHATS[0]).weights == {"math@2": 0.7}
    assert len(warned) == 1


def test_a_strategy_that_cannot_be_made_anew_goes_on_without(two_pass: TwoPass, put: Put, warned: list[str]) -> None:
    put("math", seed=1)
    put("story", seed=2)
    made: list[Strategy] = []

    def once() -> Strategy:
        if made:
            raise NotFoundError("what it needs is gone too")
        made.append(ByName(two_pass, DispatchConfig()))
        return made[0]

    strategy = Renewed(once, two_pass.resolver, warned.append)
    two_pass.registry.remove("math@1")
    decisions = strategy.decide_each(CHATS)
    assert weights(decisions) == [{}, {"story@1": 1.0}, {}, {}]
    assert decisions[0].category == "math"
    assert decisions[0].abstained
    assert len(warned) == 1


def test_a_damaged_expert_is_not_gone(make: Callable[..., Renewed], put: Put, warned: list[str]) -> None:
    strategy, entry = make(), put("story", seed=4)
    strategy = make()
    (entry.path / "expert.yaml").write_text("schema: 1\n")
    assert strategy.decide(CHATS[1]).weights == {"story@2": 1.0}  # whoever reads it says what is wrong
    assert warned == []


def test_an_expert_of_another_base_does_not_stand_in(
    make: Callable[..., Renewed], two_pass: TwoPass, warned: list[str], publish: Callable[..., ExpertEntry]
) -> None:
    from dataclasses import replace

    from t2cli.registry.vectors import read_z

    strategy, entry = make(), two_pass.resolver.find("story")
    identity = replace(two_pass.adapted.base.identity, weights="b" * 64, probes={})
    publish(two_pass.registry.search_path[0], identity, "story", read_z(entry))
    shutil.rmtree(entry.path)
    assert strategy.decide(CHATS[1]).weights == {}
    assert len(warned) == 1


def test_nobody_chooses_for_somebody_who_chose(two_pass: TwoPass, put: Put, warned: list[str]) -> None:
    put("math")
    fixed = two_pass.by_hand({"math": 1.0})
    assert renewed(lambda: fixed, two_pass.resolver, warned.append) is fixed
    assert still_there(two_pass.resolver, fixed) is fixed
    chooser = renewed(lambda: ByName(two_pass, DispatchConfig()), two_pass.resolver, warned.append)
    nobody = FixedStrategy(Decision("none"))
    two_pass.registry.remove("math@1")
    with pytest.raises(NotFoundError, match="math"):
        still_there(two_pass.resolver, fixed)
    assert still_there(two_pass.resolver, chooser) is chooser
    assert still_there(two_pass.resolver, nobody) is nobody
    assert warned == []
