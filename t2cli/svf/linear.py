"""A linear layer whose singular values are rescaled by z: folded, factored or per row.

Source: Transformer-Squared (arXiv 2501.06252), section 3.1; math.md 3.

Notation: x (B, T, n) input, W (m, n) weight, Q (r, r) basis, z (r,) one vector or (B, r) one per row.

    folded     y = W' x, W' formed once: native speed, for one expert or mix
    factored   y = W (x + Q ((z - 1) * (Q^T x)))         Q on the input side
               y = v + Q ((z - 1) * (Q^T v)), v = W x    Q on the output side
    per row    factored with z (B, r): every row of the batch has its own expert

Deviations from the reference code:
1. W stays the model's own parameter and is never written, so the base is what it was, bit for bit, whatever
   happens while an expert is in use; W' lives in a buffer of its own.
2. The gradient reaches z through the factored form: no W' is formed, and autograd keeps one (T, r) product per layer.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from t2cli.svf.basis import Basis, fold


class SVFLinear(nn.Module):
    """Stands in for an nn.Linear and answers as the base until `z` or a folded weight is set."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.basis: Basis | None = None
        self.z: torch.Tensor | None = None  # (r,) or (B, r)
        self.folded: torch.Tensor | None = None  # (m, n)

    @property
    def weight(self) -> torch.Tensor:
        """Return the pristine base weight (m, n)."""
        return self.linear.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """Return the bias (m,), which no expert changes."""
        return self.linear.bias

    def require_basis(self) -> Basis:
        """Return the basis, or raise RuntimeError when none was attached."""
        if self.basis is None:
            raise RuntimeError("this layer has no basis: attach one before setting z")
        return self.basis

    def fold(self, z: torch.Tensor) -> torch.Tensor:
        """Return W' for z (r,) without storing it."""
        return fold(self.weight.detach(), self.require_basis(), z)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to x (..., n); returns (..., m)."""
        if self.folded is not None:
            return functional.linear(x, self.folded, self.bias)
        if self.z is None:
            return functional.linear(x, self.weight, self.bias)
        basis = self.require_basis()
        if basis.side == "input":
            return functional.linear(x + self._change(x, basis.Q), self.weight, self.bias)
        v = functional.linear(x, self.weight)  # (..., m)
        # with a bias the base's own output is computed too: v + bias is rounded otherwise, and z = 1 must be the base
        base = v if self.bias is None else functional.linear(x, self.weight, self.bias)
        return base + self._change(v, basis.Q)

    def _change(self, v: torch.Tensor, Q: torch.Tensor) -> torch.Tensor:
        """Return Q ((z - 1) * (Q^T v)) for v (..., r)."""
        assert self.z is not None
        shift = (self.z - 1).to(v.dtype)
        if shift.ndim == 2:  # (B, r) -> (B, 1, ..., r), against v (B, T, r)
            shift = shift.view(shift.shape[0], *([1] * (v.ndim - 2)), shift.shape[1])
        Q = Q.to(v.dtype)
        return ((v @ Q) * shift) @ Q.T

    def extra_repr(self) -> str:
        """Say which of the three ways is active."""
        mode = "folded" if self.folded is not None else "base" if self.z is None else "factored"
        return f"mode={mode}"
