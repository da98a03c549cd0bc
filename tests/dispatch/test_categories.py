"""What pass 1 may choose from: one category for each kind of question, however its experts spell it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from t2cli.dispatch.categories import categories_of
from t2cli.dispatch.two_pass import TwoPass
from t2cli.registry.local import ExpertEntry

Put = Callable[..., ExpertEntry]


@pytest.mark.parametrize("spelling", ["math", "Math", "MATH", " math "])
def test_a_category_named_twice_is_one_with_the_newest_expert(spelling: str, two_pass: TwoPass, put: Put) -> None:
    put("sums", category="math", created="2026-01-01T00:00:00Z")
    put("adding", category=spelling, created="2026-01-02T00:00:00Z")
    (category,) = categories_of(two_pass.resolver)
    assert (category.name, category.reference) == (spelling, "adding@1")
    decision = two_pass.strategy("prompt").decide([{"role": "user", "content": "What is 1 + 2?"}])
    assert set(decision.probabilities) == {spelling, "other"}


@pytest.mark.parametrize("spelling", ["other", "Other", "OTHER "])
def test_no_expert_is_for_what_no_expert_is_for(spelling: str, two_pass: TwoPass, put: Put) -> None:
    put("everything", category=spelling)
    assert categories_of(two_pass.resolver) == []
    decision = two_pass.strategy("prompt").decide([{"role": "user", "content": "What is 1 + 2?"}])
    assert (decision.category, decision.probabilities, decision.weights) == ("other", {"other": 1.0}, {})


def test_different_categories_stay_apart(two_pass: TwoPass, put: Put) -> None:
    put("a", category="short stories")
    put("b", category="shortstories")
    assert [category.name for category in categories_of(two_pass.resolver)] == ["short stories", "shortstories"]
