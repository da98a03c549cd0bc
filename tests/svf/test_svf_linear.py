"""One adapted layer: its three ways agree with the paper's W', with each other, and with the base at z = 1."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from t2cli.svf.basis import basis_of
from t2cli.svf.linear import SVFLinear

SHAPES = [(24, 24), (40, 16), (16, 40)]


def layer_of(m: int, n: int, *, bias: bool = True, dtype: torch.dtype = torch.float32) -> SVFLinear:
    torch.manual_seed(m * 100 + n)
    layer = SVFLinear(nn.Linear(n, m, bias=bias).to(dtype).requires_grad_(False))
    layer.basis = basis_of(layer.weight)
    return layer


def oracle(layer: SVFLinear, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Return W' x + b in float64, W' as the paper defines it."""
    U, S, Vh = torch.linalg.svd(layer.weight.double(), full_matrices=False)
    y = x.double() @ ((U * (S * z.double())) @ Vh).T
    return y if layer.bias is None else y + layer.bias.double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_three_ways_are_the_papers(m: int, n: int, bias: bool) -> None:
    layer = layer_of(m, n, bias=bias)
    x, z = torch.randn(3, 5, n), 1 + 0.3 * torch.randn(3, min(m, n))
    wanted = torch.stack([oracle(layer, row, own) for row, own in zip(x, z, strict=True)])

    layer.z = z
    per_row = layer(x)
    factored, folded = torch.empty_like(per_row), torch.empty_like(per_row)
    for row in range(3):
        layer.z = z[row]
        factored[row] = layer(x[row : row + 1])[0]
        layer.z, layer.folded = None, layer.fold(z[row])
        folded[row] = layer(x[row : row + 1])[0]
        layer.folded = None
    for found in (per_row, factored, folded):
        assert float((found - wanted).norm() / wanted.norm()) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_identity_is_the_base_bit_for_bit(m: int, n: int, dtype: torch.dtype) -> None:
    layer = layer_of(m, n, dtype=dtype)
    x = torch.randn(4, 7, n).to(dtype)
    wanted = layer.linear(x)
    assert torch.equal(layer(x), wanted)
    for z in (torch.ones(min(m, n)), torch.ones(4, min(m, n))):
        layer.z = z
        assert torch.equal(layer(x), wanted)
    layer.z, layer.folded = None, layer.fold(torch.ones(min(m, n)))
    assert torch.equal(layer(x), wanted)


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("rows", [False, True])
def test_gradient_of_z_equals_finite_differences(m: int, n: int, rows: bool) -> None:
    layer = layer_of(m, n, dtype=torch.float64)
    x = torch.randn(2, 3, n, dtype=torch.float64)
    z = 1 + 0.3 * torch.randn(2, min(m, n), dtype=torch.float64) if rows else torch.ones(min(m, n)).double()
    z.requires_grad_()

    def output(z: torch.Tensor) -> torch.Tensor:
        layer.z = z
        return layer(x)

    assert torch.autograd.gradcheck(output, (z,), eps=1e-5, atol=1e-6)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_gradient_of_z_equals_that_through_an_explicit_folded_weight(m: int, n: int) -> None:
    layer = layer_of(m, n, dtype=torch.float64)
    x, outer = torch.randn(2, 3, n).double(), torch.randn(2, 3, m).double()
    z = (1 + 0.3 * torch.randn(min(m, n))).double().requires_grad_()
    layer.z = z
    (found,) = torch.autograd.grad((layer(x) * outer).sum(), z)
    (wanted,) = torch.autograd.grad((oracle(layer, x, z) * outer).sum(), z)
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_no_gradient_reaches_the_base_weight() -> None:
    layer = layer_of(6, 4)
    layer.z = torch.ones(4, requires_grad=True)
    layer(torch.randn(1, 2, 4)).sum().backward()
    assert layer.z.grad is not None
    assert layer.weight.grad is None


def test_single_tokens_and_more_dimensions() -> None:
    layer = layer_of(6, 4)
    x, z = torch.randn(3, 2, 5, 4), 1 + 0.3 * torch.randn(3, 4)
    layer.z = z
    found = layer(x)
    layer.z = z[1]
    assert torch.allclose(found[1], layer(x[1]), atol=1e-6)
    layer.z = z
    assert torch.allclose(layer(x[:, 0, 0]), found[:, 0, 0], atol=1e-6)  # (B, n), one token per row


def test_z_without_a_basis_is_an_error() -> None:
    layer = SVFLinear(nn.Linear(3, 3))
    layer.z = torch.ones(3)
    with pytest.raises(RuntimeError, match="no basis"):
        layer(torch.ones(1, 1, 3))


def test_repr_names_the_mode() -> None:
    layer = layer_of(4, 4)
    assert "mode=base" in repr(layer)
    layer.z = torch.ones(4)
    assert "mode=factored" in repr(layer)
    layer.folded = layer.weight
    assert "mode=folded" in repr(layer)
