"""A weight whose singular values are rescaled by z: folded, factored, per row, or folded with a gradient.

Source: Transformer-Squared (arXiv 2501.06252), section 3.1; math.md 3.

Notation: x (B, T, n) input, W (m, n) weight, Q (r, r) basis, z (r,) one vector or (B, r) one per row.

    folded     y = W' x, W' formed once: native speed, for one expert or mix
    factored   y = W (x + Q ((z - 1) * (Q^T x)))         Q on the input side
               y = v + Q ((z - 1) * (Q^T v)), v = W x    Q on the output side
    per row    factored with z (B, r): every row of the batch has its own expert
    spectral   y = (W Q) (z * (Q^T x)) or Q (z * ((Q^T W) x)): per row for one product less, where W Q is kept
    thin       factored with only the columns of Q at which any z differs from 1
    trained    folded, and the backward pass gives the gradient of z too (svf/gradient.py)

Deviations from the reference code:
1. W stays the model's own parameter and is never written, so the base is what it was, bit for bit, whatever
   happens while an expert is in use; W' lives in a buffer of its own.
2. The gradient reaches z in closed form or through the factored form, never through an assignment to W.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from t2cli.svf.basis import Basis, fold
from t2cli.svf.gradient import folded_product, small_components

FEW = 128  # vectors at a time under which a product is faster with them as columns

Product = Callable[[torch.Tensor], torch.Tensor]  # x (..., n) -> W x + b (..., m), as the base computes it
ProductOf = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # the same of x and a weight in place of W


class Use(NamedTuple):
    """What decides how a weight answers; the base itself where all are None."""

    z: torch.Tensor | None = None
    folded: torch.Tensor | None = None
    columns: torch.Tensor | None = None
    small: torch.Tensor | None = None


class AdaptedWeight:
    """One weight (m, n) that may be in use as an expert; the base itself until `z` or `folded` is set.

    `z` alone is factored or per row, `folded` alone is W', and both together are W' with the gradient of z.
    `spectral` and `columns` only say how the factored product is computed.
    """

    def __init__(self) -> None:
        self.basis: Basis | None = None
        self.z: torch.Tensor | None = None  # (r,) or (B, r)
        self.folded: torch.Tensor | None = None  # (m, n)
        self.spectral: torch.Tensor | None = None  # W Q (m, r) or Q^T W (r, n), used where z is per row
        self.columns: torch.Tensor | None = None  # (k,) the components at which z may differ from 1; None: all
        self.small: torch.Tensor | None = None  # (k,) the small components of a trained z; None: not looked for yet
        self.transposed = False  # whether the base keeps the weight as (n, m)

    @property
    def weight(self) -> torch.Tensor:
        """Return the pristine base weight (m, n)."""
        raise NotImplementedError

    @property
    def use(self) -> Use:
        """Return as what the weight is in use, to be put back later."""
        return Use(self.z, self.folded, self.columns, self.small)

    @use.setter
    def use(self, use: Use) -> None:
        self.z, self.folded, self.columns, self.small = use

    def require_basis(self) -> Basis:
        """Return the basis, or raise RuntimeError when none was attached."""
        if self.basis is None:
            raise RuntimeError("this layer has no basis: attach one before setting z")
        return self.basis

    def fold(self, z: torch.Tensor) -> torch.Tensor:
        """Return W' (m, n) for z (r,), in memory as the base has W: another layout can round in another order."""
        W = fold(self.weight.detach(), self.require_basis(), z)
        return W.T.contiguous().T if self.transposed else W

    def applied(
        self,
        x: torch.Tensor,
        product: Product,
        product_of: ProductOf,
        bias: torch.Tensor | None,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the output (..., m) of x (..., n) in the way that is in use; `rows` as in `factored`."""
        if self.folded is not None:
            if self.z is not None and torch.is_grad_enabled():
                basis = self.require_basis()
                small = small_components(self.z) if self.small is None else self.small
                return folded_product(x, self.folded, bias, self.z, small, self.weight, basis.Q, basis.side)
            return product_of(x, self.folded)
        return product(x) if self.z is None else self.factored(x, product, bias, rows)

    def factored(
        self, x: torch.Tensor, product: Product, bias: torch.Tensor | None, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return W' x + b (..., m) of x (..., n) from the base's own `product`; z = 1 gives its bits.

        Where z is per row, x holds the rows one after the other, equally long, or `rows` (N,) names the row of each
        of the N vectors in x (N, n).
        """
        assert self.z is not None
        basis, z = self.require_basis(), self.z
        if rows is not None and z.ndim == 2:
            z = z[rows]  # (N, r)
        if self.spectral is not None and self.columns is None and z.ndim == 2:
            return _spectral(x, basis, z, self.spectral, bias)
        Q, shift = basis.Q, z - 1
        if self.columns is not None:
            Q, shift = Q[:, self.columns], shift[..., self.columns]
        if basis.side == "input":
            return product(x + rescaled(x, Q, shift))
        y = product(x)
        return y + rescaled(y if bias is None else y - bias, Q, shift)

    def spectral_form(self) -> torch.Tensor:
        """Return W Q (m, r) on the input side, Q^T W (r, n) on the output side, in W's precision."""
        basis, W = self.require_basis(), self.weight.detach()
        Q = basis.Q.to(W.dtype)
        return W @ Q if basis.side == "input" else Q.T @ W


def rescaled(v: torch.Tensor, Q: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return Q (shift * (Q^T v)) of v (..., r); shift (k,) or (B, k), Q (r, k)."""
    Q = Q.to(v.dtype)
    return _times(v @ Q, shift) @ Q.T


def _times(components: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Return components (..., k) times z (k,), or (B, k) where the rows of the batch follow one another."""
    z = z.to(components.dtype)
    if z.ndim == 1:
        return components * z
    rows = components.reshape(z.shape[0], -1, z.shape[1])  # (B, T, k), also for models that flatten rows and tokens
    return (rows * z.unsqueeze(1)).reshape(components.shape)


def _spectral(
    x: torch.Tensor, basis: Basis, z: torch.Tensor, form: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return W' x + b (..., m) of x (..., n), z (B, r) and the spectral form of W."""
    Q = basis.Q.to(x.dtype)
    first, second = (Q.T, form) if basis.side == "input" else (form, Q)
    if x.device.type != "cpu" or x.numel() // x.shape[-1] > FEW:
        return functional.linear(_times(functional.linear(x, first), z), second, bias)
    # the weights on the left: with few columns on the right the CPU's libraries take a fifth less time that way round
    components = first @ x.reshape(-1, x.shape[-1]).T  # (r, N)
    r, rows = z.shape[1], z.shape[0]
    components = (components.view(r, rows, -1) * z.to(x.dtype).T.unsqueeze(2)).view(r, -1)
    y = (second @ components).T.contiguous().view(*x.shape[:-1], second.shape[0])  # (..., m)
    return y if bias is None else y + bias


class SVFLinear(nn.Module, AdaptedWeight):
    """Stands in for an nn.Linear, or with `transposed` for a module whose weight is (n, m) such as GPT-2's Conv1D."""

    def __init__(self, linear: nn.Module, *, transposed: bool = False) -> None:
        nn.Module.__init__(self)
        AdaptedWeight.__init__(self)
        self.linear = linear
        self.transposed = transposed

    @property
    def weight(self) -> torch.Tensor:
        """Return the pristine base weight (m, n)."""
        weight: torch.Tensor = self.linear.weight  # type: ignore[assignment]
        return weight.T if self.transposed else weight

    @property
    def bias(self) -> torch.Tensor | None:
        """Return the bias (m,), which no expert changes."""
        return self.linear.bias  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to x (..., n); returns (..., m)."""
        return self.applied(x, self._base, self._product, self.bias)

    def _base(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(x)
        return y

    def _product(self, x: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
        """Return W x + b by the operation that the base itself uses, so that equal weights give equal bits."""
        if type(self.linear) is nn.Linear:
            return functional.linear(x, W, self.linear.bias)
        # another class may multiply in another order: its own code runs with W in place of its weight
        own: torch.Tensor = functional_call(self.linear, {"weight": W.T if self.transposed else W}, (x,))
        return own

    def extra_repr(self) -> str:
        """Say which of the ways is active."""
        mode = "folded" if self.folded is not None else "base" if self.z is None else "factored"
        return f"mode={mode}"
