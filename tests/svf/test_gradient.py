"""The gradient of z through a folded weight is that of autograd through the factored form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from t2cli.svf.basis import Basis, basis_of
from t2cli.svf.linear import SVFLinear

SHAPES = [(24, 24), (40, 16), (16, 40)]


def layer_of(m: int, n: int, *, bias: bool, dtype: torch.dtype = torch.float64) -> SVFLinear:
    torch.manual_seed(m * 100 + n)
    layer = SVFLinear(nn.Linear(n, m, bias=bias).to(dtype).requires_grad_(False))
    rounded = basis_of(layer.weight)
    layer.basis = Basis(torch.linalg.qr(rounded.Q.to(dtype)).Q, rounded.S, rounded.side)  # orthogonal to the last digit
    return layer


def gradients(layer: SVFLinear, x: torch.Tensor, z: torch.Tensor, *, trained: bool) -> tuple[torch.Tensor, ...]:
    """Return y and the gradients of x and z of a scalar that weighs all of y."""
    x, z = x.clone().requires_grad_(), z.clone().requires_grad_()
    layer.z, layer.folded = z, layer.fold(z.detach()) if trained else None
    y = layer(x)
    weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    (y * weights).sum().backward()
    layer.z = layer.folded = None
    assert x.grad is not None
    assert z.grad is not None
    return y.detach(), x.grad, z.grad


@pytest.mark.parametrize("tokens", [3, 100])  # fewer and more than r: the two ways round
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_it_is_the_gradient_of_the_factored_form(m: int, n: int, bias: bool, tokens: int) -> None:
    layer = layer_of(m, n, bias=bias)
    x = torch.randn(2, tokens, n, dtype=torch.float64)
    z = 1 + 0.3 * torch.randn(min(m, n), dtype=torch.float64)
    for found, wanted in zip(gradients(layer, x, z, trained=True), gradients(layer, x, z, trained=False), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_a_model_may_change_the_output_in_place(m: int, n: int, bias: bool) -> None:
    layer = layer_of(m, n, bias=bias)
    x, other = torch.randn(2, 7, n, dtype=torch.float64), torch.randn(2, 7, m, dtype=torch.float64)
    z = (1 + 0.3 * torch.randn(min(m, n), dtype=torch.float64)).requires_grad_()

    def gradient(*, in_place: bool) -> torch.Tensor:
        layer.z, layer.folded = z, layer.fold(z.detach())
        y = layer(x)
        if in_place:
            y += other  # as Falcon's blocks do
        else:
            y = y + other
        return torch.autograd.grad(y.square().sum(), z)[0]

    assert torch.equal(gradient(in_place=True), gradient(in_place=False))


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_small_and_zero_components_keep_their_digits(m: int, n: int) -> None:
    layer = layer_of(m, n, bias=True)
    x = torch.randn(2, 50, n, dtype=torch.float64)
    z = 1 + 0.3 * torch.randn(min(m, n), dtype=torch.float64)
    z[:4] = torch.tensor([0.0, 1e-12, -1e-3, 0.04])
    found, wanted = gradients(layer, x, z, trained=True)[2], gradients(layer, x, z, trained=False)[2]
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_float32_loses_no_more_than_rounding(m: int, n: int) -> None:
    layer, exact = layer_of(m, n, bias=True, dtype=torch.float32), layer_of(m, n, bias=True, dtype=torch.float32)
    exact.linear.double()
    exact.basis = layer.require_basis()._replace(Q=layer.require_basis().Q.double())
    x, z = torch.randn(2, 100, n), 1 + 0.3 * torch.randn(min(m, n))
    found = gradients(layer, x, z, trained=True)[2]
    wanted = gradients(exact, x.double(), z.double(), trained=False)[2]
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_without_gradients_it_is_the_folded_product() -> None:
    layer = layer_of(24, 16, bias=True)
    x, z = torch.randn(2, 5, 16, dtype=torch.float64), 1 + 0.3 * torch.randn(16, dtype=torch.float64)
    layer.folded = layer.fold(z)
    wanted = layer(x)
    layer.z = z.requires_grad_()
    with torch.no_grad():
        assert torch.equal(layer(x), wanted)
