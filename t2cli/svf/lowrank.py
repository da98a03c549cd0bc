"""The best approximation of an expert by fewer components, and its exact error.

Source: math.md 7. W' - W has the singular values |S (z - 1)| with the base's own singular vectors, so that keeping the
largest of them is the best approximation of its rank (Eckart and Young 1936), and its relative Frobenius error is

    sqrt( sum of the dropped (S (z - 1))^2 / sum of all )

Notation: S (r,) singular values of W, z (r,) of the expert.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from t2cli.svf.basis import Basis

WORTH_THINNING = 0.6  # of the components; gathering columns costs too


class Truncated(NamedTuple):
    """`z` (r,) with the dropped components at 1, how many are `kept`, and the relative `error` of W' - W."""

    z: torch.Tensor
    kept: int
    error: float


def truncate(z: torch.Tensor, S: torch.Tensor, tolerance: float) -> Truncated:
    """Return z (r,) with as few components as keep the error of W' - W at most `tolerance`, 0 to 1 relative.

    0 drops only what changes nothing. Raises ValueError for a tolerance outside [0, 1].
    """
    if not 0 <= tolerance <= 1:
        raise ValueError(f"the tolerance must lie between 0 and 1, not {tolerance}")
    ascending, order = strength(z, S).square().sort()
    dropped_energy = ascending.cumsum(dim=0)
    dropped = int((dropped_energy <= tolerance**2 * float(dropped_energy[-1])).sum())
    return _without(z, order[:dropped], dropped_energy)


def strongest(z: torch.Tensor, S: torch.Tensor, rank: int) -> Truncated:
    """Return z (r,) with the `rank` components that change W the most, fewer where fewer change it at all.

    No other W' of this rank is closer to the expert's. Raises ValueError for a negative rank.
    """
    if rank < 0:
        raise ValueError(f"the rank must not be negative, not {rank}")
    ascending, order = strength(z, S).square().sort()
    dropped = max(z.numel() - rank, int((ascending == 0).sum()))
    return _without(z, order[:dropped], ascending.cumsum(dim=0))


def strength(z: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
    """Return the singular values (r,) of W' - W, |S (z - 1)| in float64, in the order of S."""
    return (S.double() * (z.double().to(S.device) - 1)).abs()


def _without(z: torch.Tensor, dropped: torch.Tensor, dropped_energy: torch.Tensor) -> Truncated:
    """Return z with the components `dropped` at 1; `dropped_energy` (r,) is that of the weakest 1, 2, 3, ..."""
    result, total, count = z.clone(), float(dropped_energy[-1]), dropped.numel()
    result[dropped.to(z.device)] = 1
    error = (float(dropped_energy[count - 1]) / total) ** 0.5 if count and total else 0.0
    return Truncated(result, z.numel() - count, error)


class Factors(NamedTuple):
    """`A` (k, n) and `B` (m, k), float32, whose product is W' - W of a z that differs from 1 in k components."""

    A: torch.Tensor
    B: torch.Tensor


def factors(W: torch.Tensor, basis: Basis, z: torch.Tensor) -> Factors:
    """Return W' - W (m, n) of z (r,) as two thin matrices, without forming it; the strongest component comes first.

    Column i of B and row i of A have the same norm, sqrt(|S_i (z_i - 1)|), so that lower precisions fit both alike.
    """
    strengths = strength(z, basis.S)
    order = strengths.argsort(descending=True)[: int((strengths > 0).sum())]  # (k,)
    scale = strengths[order].sqrt()
    shift = (z.double().to(basis.S.device) - 1)[order] / scale
    Q, wide = basis.Q[:, order].double(), W.double()  # (r, k), (m, n)
    A, B = ((Q * scale).T, (wide @ Q) * shift) if basis.side == "input" else ((Q * shift).T @ wide, Q * scale)
    return Factors(A.float().contiguous(), B.float().contiguous())


def thinned(z: torch.Tensor, S: torch.Tensor, tolerance: float) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return z (r,) or (B, r) truncated row by row, and the components (k,) at which any row still differs from 1.

    None instead of these where they are too many for thin products to be cheaper than full ones.
    """
    rows = torch.stack([truncate(row, S, tolerance).z for row in z.reshape(-1, z.shape[-1])])
    columns = (rows != 1).any(dim=0).nonzero().flatten()
    thin = columns.numel() <= WORTH_THINNING * z.shape[-1]
    return rows.reshape(z.shape), columns if thin else None
