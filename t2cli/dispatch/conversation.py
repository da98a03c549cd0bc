"""A conversation that has grown longer than the model's context: its oldest turns go, the system text stays."""

from __future__ import annotations

from bisect import bisect_left

from t2cli.dispatch.decision import Messages
from t2cli.models.base import BaseModel


def fitted(base: BaseModel, messages: Messages, new_tokens: int) -> tuple[Messages, int]:
    """Return the chat without as many of its oldest turns as must go, and how many those are.

    A turn is a question with what follows it. Room is left for an answer of `new_tokens`, but no more than half of the
    context. The system text before the first question and the last turn always stay, even where they do not fit.
    """
    begins = [place for place, message in enumerate(messages) if message["role"] == "user"]
    system = [message for message in messages[: begins[0] if begins else 0] if message["role"] == "system"]
    room = base.context - min(new_tokens, base.context // 2)

    def without(turns: int) -> Messages:
        return [*system, *messages[begins[turns] :]] if turns else messages

    if len(begins) < 2 or len(base.encode(messages)) <= room:
        return messages, 0
    # what is left shrinks with every turn that goes
    dropped = bisect_left(
        range(len(begins) - 1), True, lo=1, key=lambda turns: len(base.encode(without(turns))) <= room
    )
    return without(dropped), dropped
