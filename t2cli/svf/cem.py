"""The cross-entropy method: find the best vector by sampling around the best ones found so far; knows no model.

Source: Transformer-Squared (arXiv 2501.06252), section 3.2 and appendix: at most 100 iterations, population 32,
elite 0.2; Rubinstein and Kroese 2004; math.md 6.

Notation: D numbers to find, C candidates (C, D), mean and std (D,) of the Gaussian they are drawn from.

Deviations from the paper:
1. The mean itself and what the caller starts with (the base, each expert) are candidates of the first generation, and
   the elite are carried over: the result is never worse, on what it was scored with, than any of them.
2. No candidate is scored twice: a population that has gathered at one point costs nothing.
3. The Gaussian follows the elite smoothly and keeps a least spread, so that a lucky generation does not end the
   search; it ends early after `patience` generations without a candidate that is noticeably better (`least_gain`):
   the last number of a score, which breaks ties, nearly always gets a little better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

Score = tuple[float, ...]  # compared like words: the first number decides, the next ones break ties
ScoreAll = Callable[[torch.Tensor], Sequence[Score]]  # candidates (C, D) -> a score of each, higher is better


class Settings(Protocol):
    """How to search; t2cli.config.CEMConfig says what each means."""

    @property
    def iterations(self) -> int: ...  # noqa: D102
    @property
    def population(self) -> int: ...  # noqa: D102
    @property
    def elite(self) -> float: ...  # noqa: D102
    @property
    def sigma(self) -> float: ...  # noqa: D102
    @property
    def least_sigma(self) -> float: ...  # noqa: D102
    @property
    def smoothing(self) -> float: ...  # noqa: D102
    @property
    def patience(self) -> int: ...  # noqa: D102
    @property
    def least_gain(self) -> float: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102


class Found(NamedTuple):
    """`best` (D,) and its score, the final Gaussian `mean` and `std` (D,), and what it took."""

    best: torch.Tensor
    score: Score
    mean: torch.Tensor
    std: torch.Tensor
    iterations: int
    evaluations: int  # different candidates that were scored


def search(
    score: ScoreAll,
    mean: torch.Tensor,
    config: Settings,
    *,
    also: Sequence[torch.Tensor] = (),
    on_iteration: Callable[[int, Score], None] | None = None,
) -> Found:
    """Return the best vector (D,) found from `mean` (D,); `also` are further candidates of the first generation.

    `score` gets only candidates it has not seen. A score with NaN counts as the worst there is. The same arguments
    give the same bits. `on_iteration` is told how many generations are done and the best score.
    """
    generator = torch.Generator().manual_seed(config.seed)
    known = _Known(score)
    mean, std = mean.double(), torch.full_like(mean, config.sigma, dtype=torch.float64)
    carried = [candidate.double() for candidate in also]
    best, since, iteration = mean, 0, 0
    noticed: Score = ()
    for iteration in range(1, config.iterations + 1):
        drawn = max(1, config.population - 1 - len(carried))
        noise = torch.randn(drawn, len(mean), generator=generator, dtype=torch.float64)
        candidates = [mean, *carried, *(mean + std * noise)]
        known.add(candidates)
        ranked = sorted(candidates, key=known.score_of, reverse=True)
        carried = _different(ranked)[: max(2, round(config.elite * config.population))]
        elite = torch.stack(carried)  # (E, D)
        keep = 1 - config.smoothing
        mean = keep * mean + config.smoothing * elite.mean(dim=0)
        std = (keep * std + config.smoothing * elite.std(dim=0, unbiased=False)).clamp_min(config.least_sigma)
        best = carried[0] if iteration == 1 else max(best, carried[0], key=known.score_of)
        score_now = known.score_of(best)
        since += 1
        if iteration == 1 or _noticeably_better(score_now, noticed, config.least_gain):
            noticed, since = score_now, 0
        if on_iteration is not None:
            on_iteration(iteration, score_now)
        if since >= config.patience:
            break
    return Found(best, known.score_of(best), mean, std, iteration, len(known.scores))


def _noticeably_better(new: Score, old: Score, least: float) -> bool:
    """Tell whether the first number that differs by `least` or more is the higher one in `new`."""
    differences = (a - b for a, b in zip(new, old, strict=True))
    return next((d > 0 for d in differences if d and not abs(d) < least), False)


class _Known:
    """Scores by the candidate's own bits."""

    def __init__(self, score: ScoreAll) -> None:
        self._score = score
        self.scores: dict[bytes, Score] = {}

    def add(self, candidates: Sequence[torch.Tensor]) -> None:
        """Score those that are new, all in one call."""
        new = [candidate for candidate in _different(candidates) if _key(candidate) not in self.scores]
        if not new:
            return
        found = self._score(torch.stack(new))
        for candidate, value in zip(new, found, strict=True):
            self.scores[_key(candidate)] = tuple(-math.inf if math.isnan(number) else number for number in value)

    def score_of(self, candidate: torch.Tensor) -> Score:
        return self.scores[_key(candidate)]


def _key(candidate: torch.Tensor) -> bytes:
    return (candidate + 0.0).numpy().tobytes()  # -0 and 0 are one


def _different(candidates: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the candidates without repetitions, in their order."""
    return list({_key(candidate): candidate for candidate in reversed(candidates)}.values())[::-1]
