"""The best approximation of an expert by fewer components, and its exact error.

Source: math.md 7. W' - W has the singular values |S (z - 1)| with the base's own singular vectors, so that keeping the
largest of them is the best approximation of its rank (Eckart and Young 1936), and its relative Frobenius error is

    sqrt( sum of the dropped (S (z - 1))^2 / sum of all )

Notation: S (r,) singular values of W, z (r,) of the expert.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

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
    energy = (S.double() * (z.double().to(S.device) - 1)).square()  # (r,)
    ascending, order = energy.sort()
    dropped_energy, total = ascending.cumsum(dim=0), float(energy.sum())
    dropped = int((dropped_energy <= tolerance**2 * total).sum())
    result = z.clone()
    result[order[:dropped].to(z.device)] = 1
    error = (float(dropped_energy[dropped - 1]) / total) ** 0.5 if dropped and total else 0.0
    return Truncated(result, z.numel() - dropped, error)


def thinned(z: torch.Tensor, S: torch.Tensor, tolerance: float) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return z (r,) or (B, r) truncated row by row, and the components (k,) at which any row still differs from 1.

    None instead of these where they are too many for thin products to be cheaper than full ones.
    """
    rows = torch.stack([truncate(row, S, tolerance).z for row in z.reshape(-1, z.shape[-1])])
    columns = (rows != 1).any(dim=0).nonzero().flatten()
    thin = columns.numel() <= WORTH_THINNING * z.shape[-1]
    return rows.reshape(z.shape), columns if thin else None
