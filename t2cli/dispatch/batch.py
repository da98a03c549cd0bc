"""Many questions at once, each answered by its own expert.

Source: Transformer-Squared (arXiv 2501.06252), section 3.2; math.md 3.

Deviation from the paper:
1. The paper's two passes are of one question. Here pass 1 reads questions side by side, and pass 2 answers rows of
   different experts in one batch, for the bases are shared by all rows; a full batch of one expert is folded, and so
   are the prompts of an expert that is met often.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, runtime_checkable

import torch

from t2cli.config import SamplingConfig
from t2cli.dispatch.decision import Decision, Messages, Strategy
from t2cli.dispatch.two_pass import Answer, TwoPass
from t2cli.errors import T2Error
from t2cli.models.adapted import AdaptedModel
from t2cli.models.generate import chunks, continued, draw, generate, left_for
from t2cli.models.memory import Room
from t2cli.models.reading import Group, may_read_in_groups, read_in_groups
from t2cli.svf.zvector import ZVectors


@dataclass(frozen=True)
class Question:
    """A chat to answer, and the strategy that chooses its experts."""

    messages: Messages
    strategy: Strategy


@runtime_checkable
class ReadsSideBySide(Protocol):
    """A strategy that decides on many questions faster than on each of them."""

    def decide_each(self, conversations: Sequence[Messages]) -> list[Decision]:
        """Return what `decide` says of each, up to rounding."""


@dataclass(frozen=True)
class _Row:
    """A question with all that pass 2 needs; `place` is where its answer goes."""

    place: int
    ids: list[int]
    limit: int
    decision: Decision
    z: ZVectors | None


def answer_each(
    two_pass: TwoPass, questions: Sequence[Question], sampling: SamplingConfig, batch: int
) -> Iterator[tuple[int, Answer | T2Error]]:
    """Yield each question's place and answer, or why it has none, as batches of at most `batch` questions are done.

    Batches become smaller where memory runs out, and one question that fails does not keep the others from their
    answers. Answers are what `TwoPass.answer` says of each question alone, up to rounding; at a temperature each draws
    the same random numbers as alone.
    """
    readable: list[tuple[int, list[int], int]] = []  # place, tokens, room for an answer
    for place, question in enumerate(questions):
        try:
            ids = two_pass.adapted.base.encode(question.messages)
            readable.append((place, ids, left_for(two_pass.adapted.base, ids)))
        except T2Error as error:
            yield place, error
    decisions = decide_all([questions[place] for place, *_ in readable])
    rows: list[_Row] = []
    for (place, ids, room), decision in zip(readable, decisions, strict=True):
        try:
            rows.append(_Row(place, ids, min(sampling.max_new_tokens, room), decision, two_pass.z_of(decision.weights)))
        except T2Error as error:
            yield place, error
    if any(row.z is not None for row in rows):
        two_pass.adapted.prepare(quiet=two_pass.quiet)
    at_once = Room(batch, "questions")
    for part in batches(rows, batch):
        for answered in at_once.over(part, lambda few: _answered(two_pass, few, sampling)):
            yield from answered.items()


def decide_all(questions: Sequence[Question]) -> list[Decision]:
    """Return the decision of each question by its own strategy; those of one strategy are read side by side."""
    found: dict[int, Decision] = {}
    by_strategy: dict[int, list[int]] = {}
    for place, question in enumerate(questions):
        by_strategy.setdefault(id(question.strategy), []).append(place)
    for places in by_strategy.values():
        strategy = questions[places[0]].strategy
        chats = [questions[place].messages for place in places]
        if isinstance(strategy, ReadsSideBySide):
            decisions = strategy.decide_each(chats)
        else:
            decisions = [strategy.decide(chat) for chat in chats]
        found.update(zip(places, decisions, strict=True))
    return [found[place] for place in range(len(questions))]


def batches(rows: Sequence[_Row], size: int) -> Iterator[Sequence[_Row]]:
    """Yield batches of at most `size` rows of like length: full ones of one expert first, then what is left, mixed."""
    by_expert: dict[int, list[_Row]] = {}
    for row in sorted(rows, key=lambda row: len(row.ids)):
        by_expert.setdefault(id(row.z), []).append(row)
    left: list[_Row] = []
    for group in by_expert.values():
        full = len(group) // size * size
        yield from chunks(group[:full], size)
        left += group[full:]
    yield from chunks(sorted(left, key=lambda row: len(row.ids)), size)


def _answered(two_pass: TwoPass, rows: Sequence[_Row], sampling: SamplingConfig) -> dict[int, Answer | T2Error]:
    """Return the answers of a batch by place. One row's numbers that overflow end the batch: then each goes alone."""
    try:
        return _generated(two_pass, rows, sampling)
    except T2Error as error:
        if len(rows) == 1:
            return {rows[0].place: error}
    return {place: answer for row in rows for place, answer in _answered(two_pass, [row], sampling).items()}


def _generated(two_pass: TwoPass, rows: Sequence[_Row], sampling: SamplingConfig) -> dict[int, Answer | T2Error]:
    adapted, base = two_pass.adapted, two_pass.adapted.base
    started = time.monotonic()
    first: dict[int, float] = {}
    last: dict[int, float] = {}

    def on_token(row: int, _token: int) -> None:
        last[row] = time.monotonic()
        first.setdefault(row, last[row])

    one, limits = rows[0].z, [row.limit for row in rows]
    draws = _draws(len(rows), replace(sampling, max_new_tokens=max(limits)))
    prompts = [row.ids for row in rows]
    if any(row.z is not one for row in rows):
        with torch.inference_mode():
            start = read_in_groups(adapted, prompts, _groups(adapted, rows))
            with adapted.per_row([row.z for row in rows]):
                completions = continued(adapted, *start, sampling, limits, draws, on_token)
    else:
        with adapted.answering_as(one):
            completions = generate(adapted, prompts, sampling, draws=draws, on_token=on_token, limits=limits)
    ended = time.monotonic()
    return {
        row.place: Answer(
            base.decode(completion.ids[: -1 if completion.ended else None]),  # an end token may have a text
            row.decision,
            row.decision.seconds + first.get(index, ended) - started,
            last.get(index, ended) - started,
            len(row.ids),
            len(completion.ids),
        )
        for index, (row, completion) in enumerate(zip(rows, completions, strict=True))
    }


def _groups(adapted: AdaptedModel, rows: Sequence[_Row]) -> list[Group]:
    """Return how the prompts of different experts are read: folded where that is sooner done, the others per row.

    An answer grows by a token of each row at a time, for which all rows together are faster; a prompt is many tokens.
    """
    by_expert: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        by_expert.setdefault(id(row.z), []).append(place)
    groups: list[Group] = []
    left: list[int] = []
    for places in by_expert.values():
        z = rows[places[0]].z
        tokens = sum(len(rows[place].ids) for place in places)
        if may_read_in_groups(adapted) and (z is None or adapted.folding_pays(z, tokens)):
            groups.append((places, partial(adapted.answering_as, z)))
        else:
            left += places
    if left:
        left.sort()
        groups.append((left, partial(adapted.per_row, [rows[place].z for place in left])))
    return groups


def _draws(rows: int, sampling: SamplingConfig) -> torch.Tensor | None:
    """Return the random numbers (rows, T) of questions that each draw as alone; None where greedy.

    T is the most tokens that a row may get.
    """
    if sampling.temperature <= 0:
        return None
    return draw(1, sampling, torch.Generator().manual_seed(sampling.seed)).expand(rows, -1)
