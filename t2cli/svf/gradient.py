"""The product with a folded weight whose backward pass gives the gradient of z in closed form.

Source: Transformer-Squared (arXiv 2501.06252), section 3.1, differentiated; math.md 3.

Notation: x (N, n) input, g (N, m) gradient of y, W (m, n) weight, W' folded, Q (r, r) basis, z (r,).

    input side     W' = W Q diag(z) Q^T      dL/dz = diag(Q^T (W^T g)^T x Q)    and   Q^T W'^T g = z * (Q^T W^T g)
    output side    W' = Q diag(z) Q^T W      dL/dz = diag(Q^T g^T (W x) Q)      and   Q^T W' x   = z * (Q^T W x)

so that dL/dz is diag(Q^T M Q) / z with M = (W'^T g)^T x or g^T (W' x): two tensors that the passes through W' make
anyway. Forward and backward of x cost what the base costs; z costs one (r, N) x (N, r) product and an r^3 one where
autograd through the factored form would need four times 2 N r^2. Where |z| is small the division would lose digits,
and those components are computed from W.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from t2cli.svf.basis import Side

SMALL = 0.05  # |z| under which dividing by z would cost more than a digit


def small_components(z: torch.Tensor) -> torch.Tensor:
    """Return at which places (k,) dividing by z (r,) would lose digits."""
    return (z.detach().abs() < SMALL).nonzero().flatten()


def folded_product(
    x: torch.Tensor,
    folded: torch.Tensor,
    bias: torch.Tensor | None,
    z: torch.Tensor,
    small: torch.Tensor,
    W: torch.Tensor,
    Q: torch.Tensor,
    side: Side,
) -> torch.Tensor:
    """Return W' x + b (..., m) of x (..., n), `folded` being W' for `z`; gradients reach x and z.

    `small` (k,) are the small components of z. They are not looked for here: a GPU would be waited for in every layer.
    """
    # flattened out here: models may change y in place, which autograd refuses for views that a Function made itself
    flat = x.reshape(-1, x.shape[-1])  # (N, n)
    y: torch.Tensor = _FoldedProduct.apply(flat, z, small, folded, bias, W, Q, side)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], -1)


class _FoldedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        z: torch.Tensor,
        small: torch.Tensor,
        folded: torch.Tensor,
        bias: torch.Tensor | None,
        W: torch.Tensor,
        Q: torch.Tensor,
        side: Side,
    ) -> torch.Tensor:
        y = functional.linear(x, folded, bias)
        # W' x is needed on the output side only; x where it is not larger, or where small components need it
        kept_y, kept_x = y if side == "output" else None, x if side == "input" or len(small) else None
        ctx.save_for_backward(z, small, folded, bias, W, Q, kept_y, kept_x)
        ctx.side = side
        return y.clone() if side == "output" else y  # the model may change its y in place, the saved one must stay

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        z, small, folded, bias, W, Q, y, x = ctx.saved_tensors
        wants_x, wants_z = ctx.needs_input_grad[:2]
        grad_x: Any = g @ folded if wants_x or ctx.side == "input" else None  # (N, n)
        grad_z = None
        if wants_z:
            left, right = (grad_x, x) if ctx.side == "input" else (g, y if bias is None else y - bias)
            products = _diagonal(left, right, Q.to(g.dtype)).to(z.dtype)
            if len(small):
                grad_z = products / z.detach().index_fill(0, small, 1)
                grad_z = grad_z.index_copy(0, small, _few(g, x, W, Q, small, ctx.side).to(z.dtype))
            else:
                grad_z = products / z.detach()
        return grad_x if wants_x else None, grad_z, None, None, None, None, None, None


def _diagonal(left: torch.Tensor, right: torch.Tensor, Q: torch.Tensor) -> torch.Tensor:
    """Return diag(Q^T left^T right Q) (r,) of left and right (N, r), the cheaper way round."""
    if left.shape[0] < Q.shape[0]:
        return ((left @ Q) * (right @ Q)).sum(dim=0)
    return (((left.T @ right) @ Q) * Q).sum(dim=0)


def _few(
    g: torch.Tensor, x: torch.Tensor, W: torch.Tensor, Q: torch.Tensor, index: torch.Tensor, side: Side
) -> torch.Tensor:
    """Return the components `index` of dL/dz from W: sum over the tokens of (g W q) (x q), or (g q) (q W x)."""
    q = Q.to(g.dtype)[:, index]  # (r, k)
    W = W.to(g.dtype)
    if side == "input":
        return ((g @ (W @ q)) * (x @ q)).sum(dim=0)
    return ((g @ q) * (x @ (W.T @ q))).sum(dim=0)
