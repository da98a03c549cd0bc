"""How the base at hand relates to the one an expert was made for: the same weights, a close relative, or foreign.

Source: math.md 8. Plain numbers only, no torch, so that commands which load no model can tell too.

Notation: W, W' all target weights of two bases, p, p' their probes (svf/fingerprint.py), M how many there are.

    drift = ||p - p'|| / max(||p||, ||p'||)      estimates      ||W - W'||_F / max(||W||_F, ||W'||_F)

The squares are unbiased: a squared probe has the summed squared Frobenius norm of its kind of matrix as its mean
(svf/fingerprint.py). The standard error of the drift is 1 / sqrt(M') of it, M' = M / kinds * (sum of the kinds' mean
squares)^2 / (sum of their squares): 11.5 % for SmolLM2-135M (M = 112, M' = 76) where the difference is spread over
many singular directions or layers; a difference of rank one in one matrix has twice that.

Measured on SmolLM2-135M (106 M weights; 0.65 s on one core, beside 0.64 s for the digest). The overlap is the cosine
between W' - W of that math expert on the base and on the copy, over the eleven matrices of layers 3 and 14:

    copy of it                                   ||W - W'|| / ||W||    drift     overlap
    rounded to bfloat16                                0.0013          0.0012    0.998
    relative Gaussian noise 1e-3 per matrix            0.0010          0.0009    0.999
    1e-2                                               0.0100          0.0101    0.966
    1e-1                                               0.0995          0.0958    0.43
    2e-1                                               0.1961          0.1938    0.25
    rank-one change of 1e-1 in every matrix            0.0995          0.0793
    rounded to 4 bits, blocks of 24                    0.0575          0.0607    0.62 (noise of 6e-2)
    an unrelated random model                          1.4142          1.2849    0.00

Hence RELATIVE_BELOW = 0.1: rounding to 4 bits, the coarsest copy in common use, is inside, and with it a math expert
still gained 15.8 points [8.4, 23.6] on 120 held-out questions (16.3 on 300 with its own base). Beyond it less than half
of the overlap is left, for single singular vectors turn far sooner than the weights change, and nothing was measured.
An unrelated model is eight of its own standard errors above the bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, Protocol

Probes = dict[str, list[float]]
Kind = Literal["same", "relative", "foreign", "unknown"]

RELATIVE_BELOW = 0.1


@dataclass(frozen=True)
class Fingerprint:
    """`weights`: 64 hex digits over all target weights; `probes`: kind of matrix -> probes, {} if never measured."""

    weights: str
    probes: Probes = field(default_factory=dict, hash=False)


class Printed(Protocol):
    """What has the parts of a fingerprint: one itself, a base's identity, the record in a manifest."""

    @property
    def weights(self) -> str:
        """Return the digest."""

    @property
    def probes(self) -> Probes:
        """Return the probes."""


@dataclass(frozen=True)
class Relation:
    """`drift`: the relative distance of the weights, 0 for the same base, None where it is not known."""

    kind: Kind
    drift: float | None

    @property
    def close(self) -> bool:
        """Tell whether an expert of the one base may be used with the other without being asked for."""
        return self.kind in ("same", "relative")


def drift(ours: Probes, theirs: Probes) -> float | None:
    """Return the estimated relative distance of two bases' weights; None if their probes cannot be compared.

    0 means equal weights, sqrt(2) is expected of unrelated ones of equal norm. Symmetric.
    """
    if not ours or {kind: len(p) for kind, p in ours.items()} != {kind: len(p) for kind, p in theirs.items()}:
        return None
    a = [number for kind in sorted(ours) for number in ours[kind]]
    b = [number for kind in sorted(theirs) for number in theirs[kind]]
    scale = max(math.hypot(*a), math.hypot(*b))
    return math.dist(a, b) / scale if scale > 0 else 0.0


def relation(ours: Printed, theirs: Printed) -> Relation:
    """Return how two bases relate; "unknown" where a fingerprint has no probes and the digests differ."""
    if ours.weights == theirs.weights:
        return Relation("same", 0.0)
    if not ours.probes or not theirs.probes:
        return Relation("unknown", None)
    distance = drift(ours.probes, theirs.probes)
    return Relation("foreign" if distance is None or distance >= RELATIVE_BELOW else "relative", distance)
