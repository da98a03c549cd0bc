"""The small-side orthogonal basis of a weight matrix, which is all that t2 ever needs of its SVD.

Source: Transformer-Squared (arXiv 2501.06252), section 3.1, W = U diag(S) Vh and W' = U diag(S * z) Vh.

Notation: W (m, n) weight, r = min(m, n), Q (r, r) orthogonal, S (r,) singular values, descending.

Deviations from the paper's factors:
1. Only the singular vectors of the smaller side are kept. With V for n <= m, W V = U diag(S), hence
   W' = W + W (V diag(z - 1) V^T); with U for m < n, W' = W + (U diag(z - 1) U^T) W. z = 1 is W itself,
   not a product of rounded factors.
2. Q comes from the Gram matrix in float64. The products of float32, bfloat16 and float16 weights are formed
   without rounding there, and the error of W' - W stays near float32 rounding (a float32 SVD loses 2 to 3 digits).
   On the CPU both steps are numpy's: its product of a matrix with itself computes one half, and its OpenBLAS, called
   in place (lapack.py), was 1.2 (r = 576) to 1.45 (r = 4096) times as fast as torch's LAPACK. float32 `eigh` with a
   refinement in float64 (Ogita and Aishima 2018) was not faster: the four products it needs cost what float32 saves.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy
import torch

from t2cli.svf.lapack import eigh_in_place

BLOCK = 1 << 22  # numbers of W or of V that are copied at a time: 32 MB in float64
LARGEST_FOR_NUMPY = 4096  # numpy's own eigh takes five matrices of memory, torch's four

Side = Literal["input", "output"]


class Basis(NamedTuple):
    """Singular values of one weight and the singular vectors of its smaller side.

    `Q` (r, r) float32, columns in the order of `S`; `S` (r,) float64, descending, not negative;
    `side` tells whether Q acts on the weight's input (n <= m) or output (m < n).
    """

    Q: torch.Tensor
    S: torch.Tensor
    side: Side


def side_of(m: int, n: int) -> Side:
    """Return the smaller side of an (m, n) weight; a square one counts as input."""
    return "input" if n <= m else "output"


def basis_of(W: torch.Tensor, device: str | torch.device | None = None) -> Basis:
    """Return the small-side basis of `W` (m, n), computed on `device` (default: where W is).

    Takes three float64 matrices (r, r) of memory at most, besides W and a few times BLOCK numbers; five, or four of
    more than LARGEST_FOR_NUMPY, where numpy has no OpenBLAS.
    Raises ValueError for a weight that is not a non-empty floating-point matrix or holds NaN or infinity.
    Zero and repeated singular values are fine: any orthonormal basis of such a subspace gives the same W'
    as long as z is equal on it, and a reproducible one otherwise.
    """
    if W.ndim != 2 or W.numel() == 0 or not W.is_floating_point():
        raise ValueError(f"expected a non-empty floating-point matrix, got {W.dtype} of shape {tuple(W.shape)}")
    device = torch.device(device) if device is not None else W.device
    if device.type == "mps":  # no float64 there
        device = torch.device("cpu")
    side = side_of(*W.shape)
    gram = _gram(W.detach() if side == "input" else W.detach().T, device)  # (r, r)
    del W  # who reads weights from a file may drop it now
    if not bool(torch.isfinite(gram.diagonal()).all()):  # sums of squares: they show any number that is none
        raise ValueError("the matrix holds NaN or infinite values")
    eigenvalues, vectors = _eigh(gram)  # ascending
    del gram
    return Basis(_descending(vectors), eigenvalues.flip(0).clamp_min(0).sqrt(), side)


def _gram(tall: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return W^T W (n, n) in float64 of a matrix (m, n), some rows at a time: a float64 copy of all is never made.

    Takes two matrices (n, n): the sum, and the product of the rows at hand.
    """
    rows = max(1, BLOCK // tall.shape[1])
    total = _product(tall[:rows], device)
    for start in range(rows, tall.shape[0], rows):
        total += _product(tall[start : start + rows], device)
    return total


def _product(rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return A^T A (n, n) in float64 of some rows A (k, n)."""
    rows = rows.to(device=device, dtype=torch.float64)
    if device.type != "cpu":
        return rows.T @ rows
    array = rows.numpy()
    return torch.from_numpy(array.T @ array)  # numpy sees one array in both factors and computes half


def _eigh(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the eigenvalues (r,), ascending, and eigenvectors (r, r) of a symmetric matrix, which is consumed."""
    on_cpu = gram.device.type == "cpu"
    if on_cpu and (found := eigh_in_place(gram.numpy())):
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])
    if not on_cpu or gram.shape[0] > LARGEST_FOR_NUMPY:
        values, vectors = torch.linalg.eigh(gram)
        return values, vectors
    copied = numpy.linalg.eigh(gram.numpy())
    return torch.from_numpy(copied.eigenvalues), torch.from_numpy(copied.eigenvectors)


def _descending(vectors: torch.Tensor) -> torch.Tensor:
    """Return Q (r, r) float32, the columns of `vectors` from last to first, some at a time: no other copy is made."""
    r = len(vectors)
    Q = torch.empty(r, r, dtype=torch.float32, device=vectors.device)
    some = max(1, BLOCK // r)
    for start in range(0, r, some):
        end = min(start + some, r)
        Q[:, start:end] = _fix_signs(vectors[:, r - end : r - start].flip(1))  # (r, some)
    return Q


def _fix_signs(Q: torch.Tensor) -> torch.Tensor:
    """Make the largest entry of each column positive: W' does not depend on signs, files then agree."""
    largest = Q.abs().argmax(dim=0, keepdim=True)  # (1, columns)
    signs = torch.where(Q.gather(0, largest) < 0, -1.0, 1.0)
    return Q * signs


def fold(W: torch.Tensor, basis: Basis, z: torch.Tensor) -> torch.Tensor:
    """Return W' (m, n) = U diag(S * z) Vh in W's dtype; z (r,). z = 1 returns W's values bit for bit.

    Computed in float32, or in float64 for a float64 weight.
    """
    dtype = torch.promote_types(W.dtype, torch.float32)
    Q = basis.Q.to(device=W.device, dtype=dtype)
    change = (Q * (z.to(device=W.device, dtype=dtype) - 1)) @ Q.T  # (r, r), symmetric
    wide = W.to(dtype)
    folded = torch.addmm(wide, wide, change) if basis.side == "input" else torch.addmm(wide, change, wide)
    return folded.to(W.dtype)
