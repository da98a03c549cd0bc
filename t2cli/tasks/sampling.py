"""Which questions a split holds, and how n of them are drawn from a task's mixture.

A question belongs to a split by the SHA-256 of its text, not by the seed it was made with: test,
validation and train stay disjoint between any two runs, also where a data set has only 100 different
questions and any two samples of it would overlap. Questions that differ in their text are different
questions, but the split is that of their words in any order: "3 * 5" and "5 * 3" never lie in different ones.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from t2cli.errors import T2Error
from t2cli.lookup import load, require

if TYPE_CHECKING:
    from t2cli.tasks.spec import Row, TaskSpec

SPLITS = ("train", "validation", "test")
_SPLIT_OF_REMAINDER = ("test", "test", "validation", *["train"] * 7)

# A row that gave this many items without a new question of the split has no more of them.
PATIENCE = 5000

NO_FIELDS: Mapping[str, object] = MappingProxyType({})

Asked = dict[str, set[int]]  # row -> digests of its questions that were drawn before


class Item(NamedTuple):
    """A question, its right answer, the split it belongs to (None: that of its words), and what else is known of it."""

    question: str
    answer: str
    split: str | None = None
    fields: Mapping[str, object] = NO_FIELDS


class Source(Protocol):
    """Where the questions of a task come from; a row of SOURCES makes one from a TaskSpec.

    `finite` says that there are so many questions and no more, so that asking for too many gives all.
    """

    @property
    def finite(self) -> bool:
        """Tell whether the questions are a fixed set."""

    def stream(self, row: Row, split: str, seed: int) -> Iterator[Item]:
        """Yield questions of a row, those of `split` among them.

        The stream is the same for the same arguments, may be endless, and may repeat itself. `seed` is
        below 2^31.
        """

    def origin(self) -> list[dict[str, str]]:
        """Return which files the questions are from, for the manifest; empty where they are made."""


SOURCES: Mapping[str, str] = {
    "reasoning-gym": "t2cli.tasks.reasoning_gym:source",
    "jsonl": "t2cli.tasks.jsonl:source",
    "hub": "t2cli.tasks.hub_data:source",
    "programs": "t2cli.tasks.programs:source",
    "dispatch": "t2cli.tasks.dispatch_source:source",
}


def open_source(spec: TaskSpec) -> Source:
    """Return the source of a task; nothing is read or made yet."""
    return cast("Callable[[TaskSpec], Source]", load(spec.source, SOURCES, "source"))(spec)


class Drawn(NamedTuple):
    """A question, its right answer, and the row of the mixture it came from."""

    row: Row
    question: str
    answer: str
    fields: Mapping[str, object]


def digest(text: str) -> int:
    """Return the SHA-256 of `text`, its white space normalised, as a number below 2^256."""
    return int.from_bytes(hashlib.sha256(" ".join(text.split()).encode()).digest())


def split_of(question: str) -> str:
    """Return the only split that may hold `question`: test 2 in 10, validation 1, train 7."""
    return _SPLIT_OF_REMAINDER[words_digest(question) % 10]


def words_digest(question: str) -> int:
    """Return a number that is the same for the same words in any order."""
    return digest(" ".join(sorted(re.findall(r"\w+", question.lower()))))


def stream_seed(seed: int, split: str, row: str) -> int:
    """Return a seed below 2^31 for one row of one split.

    Sources count up from their seed (reasoning-gym's item i is made with seed + i), so seeds 7 and 8
    would share nearly all items; a hash spreads them over 2^31.
    """
    return digest(f"{seed}/{split}/{row}") % (1 << 31)


def draw(
    spec: TaskSpec,
    split: str,
    n: int,
    seed: int,
    source: Source | None = None,
    *,
    fewer: bool = False,
    asked: Asked | None = None,
) -> list[Drawn]:
    """Return `n` different questions of `split`, rows in proportion to their weights, in random order.

    The same arguments give the same questions. A row whose data set is too small leaves its share to
    the others. `source` is the task's own, opened before. With `asked`, to which what is drawn is added,
    a question is drawn again only after all others of its row. Raises NotFoundError for an unknown split,
    ValueError for a negative `n`, and T2Error when all rows together have too few questions; with
    `fewer` only when they have none.
    """
    require(split, SPLITS, "split")
    if n < 0:
        raise ValueError(f"n must not be negative: {n}")
    rng = random.Random(stream_seed(seed, split, ""))  # noqa: S311
    source = source or open_source(spec)
    open_rows = list(spec.mixture)
    seen: set[int] = set()
    asked = {} if asked is None else asked
    hands = {row.name: _Hand(source, row, split, seed, seen, asked.setdefault(row.name, set())) for row in open_rows}
    drawn: list[Drawn] = []
    while len(drawn) < n and open_rows:
        quotas = apportion([row.weight for row in open_rows], n - len(drawn), rng.random())
        still_open = []
        for row, quota in zip(open_rows, quotas, strict=True):
            taken = hands[row.name].take(quota)
            drawn += [Drawn(row, item.question, item.answer, item.fields) for item in taken]
            if len(taken) == quota:
                still_open.append(row)
        open_rows = still_open
    if len(drawn) < n and not (fewer and drawn):
        raise T2Error(
            f"the task {spec.name} has {len(drawn)} different {split} questions, and {n} were asked for",
            hint="ask for fewer, or give the task more questions",
        )
    rng.shuffle(drawn)
    return drawn


def kept(row: Row, stream: Iterator[Item]) -> Iterator[Item]:
    """Yield the items of a row that it does not skip."""
    if row.skip is None:
        return stream
    skipped = re.compile(row.skip)
    return (item for item in stream if not skipped.fullmatch(item.answer))


class _Hand:
    """Takes new questions of one row: none in `seen`, which all rows of a draw share, nor, while there are others,
    in `asked`, the row's own of earlier draws. Both grow by what is taken."""

    def __init__(self, source: Source, row: Row, split: str, seed: int, seen: set[int], asked: set[int]) -> None:
        self._source, self._row, self._split, self._seed = source, row, split, seed
        self._seen, self._asked = seen, asked
        self._stream = self._from_the_first()

    def take(self, quota: int) -> list[Item]:
        """Return up to `quota` items."""
        taken = list(self._new(quota))
        if len(taken) < quota and not self._asked <= self._seen:  # all were asked: from the first again
            self._asked.clear()
            self._stream = self._from_the_first()
            taken += self._new(quota - len(taken))
        self._asked.update(digest(item.question) for item in taken)
        return taken

    def _from_the_first(self) -> Iterator[Item]:
        seed = stream_seed(self._seed, self._split, self._row.name)
        return kept(self._row, self._source.stream(self._row, self._split, seed))

    def _new(self, quota: int) -> Iterator[Item]:
        fruitless = 0
        while quota > 0 and fruitless < PATIENCE and (item := next(self._stream, None)) is not None:
            key = digest(item.question)
            if key in self._seen or key in self._asked or (item.split or split_of(item.question)) != self._split:
                fruitless += 1
                continue
            self._seen.add(key)
            quota, fruitless = quota - 1, 0
            yield item


def apportion(weights: Sequence[float], n: int, offset: float) -> list[int]:
    """Return how many of `n` each weight gets: its exact share, rounded down or up, adding up to n.

    Systematic sampling: n points at equal distances, shifted by `offset` in [0, 1), fall on the
    weights laid end to end. Over a uniform offset each share is right on average, so a row with a
    small weight is met now and then also when n is a single training step.
    """
    total = sum(weights)
    # Of the points offset, 1 + offset, ..., ceil(x - offset) lie below x; rounding must not move the end.
    ends = [0, *(math.ceil(n * end / total - offset) for end in itertools.accumulate(weights))]
    ends[-1] = n
    return [end - start for start, end in itertools.pairwise(ends)]
