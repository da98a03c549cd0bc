"""Keeps a run from destroying its policy: steps bounded in weight space, and a watch that sees a collapse coming.

Source: math.md 5, where a factor of 5 in the learning rate takes the same run from 0.42 to 0.00.

Deviations from the paper, which only clips the gradient: AdamW divides the gradient by its own size, so clipping does
not bound a step, and most of the 97,920 numbers of z get noise. What a step may do is therefore bounded where it
counts, in the change of the weights: ||W'_new - W'|| / ||W|| over all targets, which is ||S dz|| / ||S|| because the
singular vectors are orthonormal. A learning rate ten times too high then walks as far as one that is right.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from t2cli.evaluation.statistics import paired_gain

if TYPE_CHECKING:
    from t2cli.training.metrics import StepRecord

WINDOW = 4  # steps that are looked at together
HALF = 0.5  # of the best share of right rollouts so far: less is a collapse, where chance cannot explain it
SIGNIFICANT = 4.0  # standard errors; rollouts of one prompt resemble each other, so that this is less than it seems
RUNAWAY_KL = 6.0  # nats per token over a window, where rewards are down as well: a good policy may be far from the base
DOWN = 0.75  # of the best share of right rollouts
LEVEL = 0.05  # of the paired test that calls a validation worse than the best one


def relative_change(delta: torch.Tensor, S: torch.Tensor) -> float:
    """Return ||W'_new - W'|| / ||W|| of a change `delta` of z, with the singular values S: both (parameters,)."""
    return float((S * delta).norm() / S.norm())


def bounded(delta: torch.Tensor, S: torch.Tensor, bound: float) -> torch.Tensor:
    """Return `delta` (parameters,), shortened where it would change the weights by more than `bound` of their norm."""
    change = relative_change(delta, S)
    return delta * (bound / change) if change > bound else delta


def fallen(best: float, accuracy: float, n: int) -> str:
    """Return why an accuracy on `n` validation examples is a collapse, the best so far being known, or ""."""
    error = math.sqrt(best * (1 - best) / n)
    if accuracy < HALF * best and best - accuracy > SIGNIFICANT * error:
        return f"the accuracy fell from {best:.1%} to {accuracy:.1%} of the validation examples"
    return ""


def set_back(best: Sequence[bool], now: Sequence[bool]) -> str:
    """Return in what the answers `now` to validation examples are measurably worse than the best checkpoint's, or "".

    By a paired test, so that it sees what is far from a collapse: steps that are too long for what is left to learn.
    """
    change = paired_gain(best, now)
    p = change.mcnemar_p
    if change.gain >= 0 or p >= LEVEL:
        return ""
    return f"{sum(now)} of {change.n} validation examples are right, and were {sum(best)} at best (p {p:.1g})"


class CollapseWatch:
    """Sees what comes of one step after another, and says when the policy is falling apart.

    It has no memory of its own on disk: fed with the records of a run, it is where it was.
    """

    def __init__(self, records: Iterable[StepRecord] = ()) -> None:
        self._forget()
        for record in records:
            if record.collapse or self.see(record.reward, record.kl, record.rollouts):
                self._forget()  # it was a collapse, or a suspicion that validation did not confirm

    def _forget(self) -> None:
        self._shares: deque[tuple[float, int]] = deque(maxlen=WINDOW)  # right rollouts of a step, and how many it had
        self._kl: deque[float] = deque(maxlen=WINDOW)
        self._best = 0.0

    def see(self, reward: float, kl: float | None, rollouts: int) -> str:
        """Take in a step's mean reward in [-1, 1] over `rollouts`, and its mean KL per token (None: not measured).

        Returns why this looks like a collapse, in words, or "". Nothing is said before WINDOW steps were seen.
        """
        self._shares.append(((reward + 1) / 2, rollouts))
        if kl is not None:
            self._kl.append(kl)
        if len(self._shares) < WINDOW:
            return ""
        total = sum(count for _, count in self._shares)
        if not total:  # records of runs that did not count their rollouts yet
            return ""
        share = sum(right * count for right, count in self._shares) / total
        self._best = max(self._best, share)
        error = math.sqrt(self._best * (1 - self._best) / total)
        if share < HALF * self._best and self._best - share > SIGNIFICANT * error:
            return f"right rollouts fell from {self._best:.0%} to {share:.0%}"
        mean = sum(self._kl) / max(1, len(self._kl))
        if len(self._kl) == WINDOW and mean > RUNAWAY_KL and share < DOWN * self._best:
            return f"the policy ran {mean:.1f} nats per token away from the base"
        return ""
