"""Chats that people write down, and those that have grown longer than the model's context."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import TYPE_CHECKING

from t2cli.dispatch.decision import Messages
from t2cli.errors import UsageError

if TYPE_CHECKING:
    from t2cli.models.base import BaseModel

ROLES = ("system", "user", "assistant")


def chat_of(fields: Mapping[str, object]) -> Messages:
    """Return the chat of a JSON object's `prompt` or `messages`, which ends with what the user asks.

    Raises UsageError, which says of the object as "it" what is wrong.
    """
    hint = 'write {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'
    if ("prompt" in fields) == ("messages" in fields):
        raise UsageError("it needs either a prompt or messages", hint=hint)
    if "prompt" in fields:
        prompt = fields["prompt"]
        if not isinstance(prompt, str) or not prompt.strip():
            raise UsageError("its prompt is no text, or empty", hint=hint)
        return [{"role": "user", "content": readable(prompt)}]
    given = fields["messages"]
    if not isinstance(given, list) or not given:
        raise UsageError("its messages are no list, or none", hint=hint)
    for message in given:
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise UsageError("each of its messages needs a role and a content, and nothing else", hint=hint)
        if message["role"] not in ROLES or not isinstance(message["content"], str):
            raise UsageError(f"the role of a message is one of {', '.join(ROLES)}, and its content a text", hint=hint)
    if given[-1]["role"] != "user" or not given[-1]["content"].strip():
        raise UsageError("its last message is not a user's, or empty", hint=hint)
    return [{"role": message["role"], "content": readable(message["content"])} for message in given]


def readable(text: str) -> str:
    """Return `text` with what is no character replaced: JSON can write half of a pair of surrogates."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def fitted(base: BaseModel, messages: Messages, new_tokens: int) -> tuple[Messages, int]:
    """Return the chat without as many of its oldest turns as must go to fit the context, and how many those are.

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
