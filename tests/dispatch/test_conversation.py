"""What is left of a conversation that is longer than the context."""

from __future__ import annotations

from dataclasses import replace

import pytest

from t2cli.dispatch.conversation import fitted
from t2cli.dispatch.decision import Messages
from t2cli.models.adapted import AdaptedModel

SYSTEM = {"role": "system", "content": "Be brief."}


def turns(number: int) -> Messages:
    return [
        {"role": role, "content": f"{role} says {turn} " + "and more " * (turn % 4)}
        for turn in range(number)
        for role in ("user", "assistant")
    ][:-1]


@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("context", [60, 100, 200, 400, 5000])
@pytest.mark.parametrize("new_tokens", [1, 30, 10_000])
def test_as_few_of_the_oldest_turns_as_must_go(
    system: bool, context: int, new_tokens: int, adapted: AdaptedModel
) -> None:
    base = replace(adapted.base, context=context)
    head = [SYSTEM] if system else []
    chat = turns(12)
    room = context - min(new_tokens, context // 2)
    kept, dropped = fitted(base, [*head, *chat], new_tokens)
    assert kept == [*head, *chat[2 * dropped :]]
    assert dropped == 11 or len(base.encode(kept)) <= room
    if dropped:
        assert len(base.encode([*head, *chat[2 * dropped - 2 :]])) > room


def test_one_question_stays_whatever_its_length(adapted: AdaptedModel) -> None:
    base = replace(adapted.base, context=10)
    chat = [SYSTEM, {"role": "user", "content": "a long question " * 9}]
    assert fitted(base, chat, 5) == (chat, 0)
