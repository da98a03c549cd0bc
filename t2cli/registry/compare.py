"""How an expert differs from its base, and two experts from each other: by layer, kind of matrix and part of S.

Source: math.md 1. Notation: a = z_A - 1, b = z_B - 1 (r,), in the order of descending S.

    rms          sqrt(mean of a^2)                       how far the factors of S are from 1
    cosine       <a, b> / (|a| |b|)                      whether both turn the same singular values the same way
    on weights   ||W'_A - W||_F / ||W||_F = sqrt(sum (S a)^2 / sum S^2), and with a - b for the difference of both

The last are exact, for U and V are orthogonal, and need S; everything else needs the experts alone. numpy, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from t2cli.errors import IncompatibleBaseError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Vector = NDArray[numpy.float64]
    Vectors = Mapping[str, Vector]

BANDS = ((0.0, 0.01), (0.01, 0.1), (0.1, 0.5), (0.5, 1.0))  # parts of the r singular values, the largest first


class Place(NamedTuple):
    """Where a matrix is: its layer, None outside of layers, and its name inside the layer."""

    layer: int | None
    module: str


class Figures(NamedTuple):
    """How two experts differ over some of their numbers; the ones on weights are None where S is not known.

    Cosines are None where an expert does not change anything.
    """

    numbers: int
    rms_a: float
    rms_b: float
    rms_difference: float
    cosine: float | None
    weights_a: float | None
    weights_b: float | None
    weights_difference: float | None
    weights_cosine: float | None


@dataclass(frozen=True)
class Comparison:
    """Two experts: over all, and by layer ("-" outside of layers), module, band ("0-1 %") and matrix."""

    total: Figures
    layers: dict[str, Figures]
    modules: dict[str, Figures]
    bands: dict[str, Figures]
    matrices: dict[str, Figures]


@dataclass(frozen=True)
class Grid:
    """A number per kind of matrix and layer; no number where a layer has no such matrix."""

    modules: list[str]
    layers: list[int | None]
    values: dict[tuple[str, int | None], float]

    @property
    def range(self) -> tuple[float, float]:
        """Return the smallest number that is not 0, and the largest; 0 and 0 if all are."""
        changed = [value for value in self.values.values() if value]
        return min(changed, default=0.0), max(changed, default=0.0)


def in_order(weight: str) -> list[tuple[int, str]]:
    """Return what sorts the names of weights so that layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in weight.split(".")]


def place_of(weight: str) -> Place:
    """Return layer and module: model.layers.3.mlp.up_proj.weight -> 3, mlp.up_proj; numbered experts are one."""
    parts = weight.removesuffix(".weight").split(".")
    at = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    if at is None:
        return Place(None, ".".join(parts))
    rest = [part for part in parts[at + 1 :] if not part.isdecimal()]
    return Place(int(parts[at]), ".".join(rest) or ".".join(parts[:at]))


def short_names(modules: list[str]) -> dict[str, str]:
    """Return each module's last part where that tells it from the others: mlp.up_proj -> up_proj."""
    last = [module.rpartition(".")[2] for module in modules]
    return {module: part if last.count(part) == 1 else module for module, part in zip(modules, last, strict=True)}


def grid(vectors: Vectors) -> Grid:
    """Return the root mean square of `vectors` (weight name -> (r,)) per kind of matrix and layer."""
    squares: dict[tuple[str, int | None], list[float]] = {}
    for weight, vector in vectors.items():
        place = place_of(weight)
        cell = squares.setdefault((place.module, place.layer), [0.0, 0.0])
        cell[0] += float(vector @ vector)
        cell[1] += len(vector)
    modules = sorted({module for module, _ in squares})
    layers = sorted({layer for _, layer in squares}, key=lambda layer: -1 if layer is None else layer)
    return Grid(modules, layers, {key: math.sqrt(total / count) for key, (total, count) in squares.items()})


def shifts(a: Vectors, b: Vectors) -> dict[str, tuple[Vector, Vector]]:
    """Return z_A - 1 and z_B - 1 of every matrix that one of them adapts; the other has z = 1 there.

    Raises IncompatibleBaseError where a matrix has different ranks in the two.
    """
    import numpy

    pairs: dict[str, tuple[Vector, Vector]] = {}
    for weight in sorted({*a, *b}):
        ones = numpy.ones(len(a[weight] if weight in a else b[weight]))
        z_a, z_b = a.get(weight, ones), b.get(weight, ones)
        if len(z_a) != len(z_b):
            raise IncompatibleBaseError(
                f"{weight} has {len(z_a)} singular values in the one expert and {len(z_b)} in the other",
                hint="only experts of bases with the same shapes can be compared",
            )
        pairs[weight] = (z_a - 1, z_b - 1)
    return pairs


def compare(pairs: Mapping[str, tuple[Vector, Vector]], S: Vectors | None) -> Comparison:
    """Return how two experts differ, from their `shifts`; `S` (weight name -> (r,)) is None if it is not known."""
    import numpy

    groups: dict[str, dict[str, Vector]] = {"layers": {}, "modules": {}, "bands": {}, "matrices": {}}
    for weight, (a, b) in pairs.items():
        layer, module = place_of(weight)
        for low, high in BANDS:
            span = slice(math.ceil(low * len(a)), math.ceil(high * len(a)))
            sums = _sums(a[span], b[span], None if S is None else S[weight][span])
            where = {
                "layers": "-" if layer is None else str(layer),
                "modules": module,
                "bands": f"{100 * low:g}-{100 * high:g} %",
                "matrices": weight,
            }
            for kind, name in where.items():
                groups[kind][name] = groups[kind].get(name, 0) + sums
    figures = {kind: {name: _figures(sums) for name, sums in rows.items()} for kind, rows in groups.items()}
    return Comparison(_figures(numpy.sum(list(groups["bands"].values()), axis=0)), **figures)


def _sums(a: Vector, b: Vector, S: Vector | None) -> Vector:
    """Return the sums that `_figures` needs (10,); those of disjoint parts add up. NaN where S is not known."""
    import numpy

    d = a - b
    plain = [len(a), a @ a, b @ b, a @ b, d @ d]
    if S is None:
        return numpy.array([*plain, *[numpy.nan] * 5])
    return numpy.array([*plain, S @ S, *((S * x) @ (S * y) for x, y in ((a, a), (b, b), (a, b), (d, d)))])


def _figures(sums: Vector) -> Figures:
    n, aa, bb, ab, dd, norm, *on_weights = map(float, sums)
    rms_a, rms_b, rms_difference = (math.sqrt(total / n) if n else 0.0 for total in (aa, bb, dd))
    alike = _cosine(ab, aa, bb)
    if not norm > 0:  # S is not known, or that of a matrix of zeros
        return Figures(int(n), rms_a, rms_b, rms_difference, alike, None, None, None, None)
    saa, sbb, sab, sdd = on_weights
    a, b, difference = (math.sqrt(total / norm) for total in (saa, sbb, sdd))
    return Figures(int(n), rms_a, rms_b, rms_difference, alike, a, b, difference, _cosine(sab, saa, sbb))


def _cosine(ab: float, aa: float, bb: float) -> float | None:
    return max(-1.0, min(1.0, ab / math.sqrt(aa * bb))) if aa > 0 and bb > 0 else None
