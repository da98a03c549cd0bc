"""The small-side basis against a float64 SVD."""

from __future__ import annotations

import pytest
import torch

from t2cli.svf.basis import Basis, basis_of, fold

SHAPES = [(24, 24), (40, 16), (16, 40), (1, 7), (7, 1), (1, 1)]


def random_matrix(m: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def oracle(W: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Return W' (m, n) in float64 as the paper defines it."""
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    return (U * (S * z.double())) @ Vh


def relative_error(W: torch.Tensor, folded: torch.Tensor, z: torch.Tensor) -> float:
    wanted = oracle(W, z) - W.double()
    return float((folded.double() - W.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_basis_is_orthogonal_and_has_the_singular_values(m: int, n: int) -> None:
    W = random_matrix(m, n)
    Q, S, side = basis_of(W)
    r = min(m, n)
    assert (Q.shape, S.shape, Q.dtype, S.dtype) == ((r, r), (r,), torch.float32, torch.float64)
    assert side == ("input" if n <= m else "output")
    assert torch.allclose(Q.double().T @ Q.double(), torch.eye(r, dtype=torch.float64), atol=2e-6)
    assert torch.allclose(S, torch.linalg.svdvals(W.double()), rtol=1e-9)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_folded_weight_is_the_papers(m: int, n: int) -> None:
    W = random_matrix(m, n)
    z = 1 + 0.1 * random_matrix(1, min(m, n), seed=1)[0]
    assert relative_error(W, fold(W, basis_of(W), z), z) < 2e-6


def test_folded_weight_is_the_papers_where_singular_values_span_many_orders() -> None:
    U, _, Vh = torch.linalg.svd(random_matrix(48, 32).double(), full_matrices=False)
    W = ((U * torch.logspace(2, -4, 32, dtype=torch.float64)) @ Vh).float()
    z = 1 + 0.1 * random_matrix(1, 32, seed=1)[0]
    assert relative_error(W, fold(W, basis_of(W), z), z) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("m", "n"), [(40, 16), (16, 40)])
def test_identity_folds_to_the_same_values(m: int, n: int, dtype: torch.dtype) -> None:
    W = torch.randn(m, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    folded = fold(W, basis_of(W), torch.ones(min(m, n)))
    assert folded.dtype == dtype
    assert torch.equal(folded, W)


@pytest.mark.parametrize(("m", "n"), [(20, 12), (12, 20), (12, 12)])
def test_rank_deficient_matrix(m: int, n: int) -> None:
    W = random_matrix(m, 5) @ random_matrix(5, n, seed=1)
    Q, S, _ = basis_of(W)
    z = 1 + 0.1 * random_matrix(1, 12, seed=2)[0]
    assert torch.allclose(Q.double().T @ Q.double(), torch.eye(12, dtype=torch.float64), atol=2e-6)
    assert torch.all(S >= 0)
    assert float(S[5:].max()) < 1e-5 * float(S[0])
    assert relative_error(W, fold(W, basis_of(W), z), z) < 2e-6


def test_zero_matrix_stays_zero() -> None:
    basis = basis_of(torch.zeros(6, 4))
    assert torch.equal(basis.S, torch.zeros(4, dtype=torch.float64))
    assert torch.equal(fold(torch.zeros(6, 4), basis, torch.full((4,), 3.0)), torch.zeros(6, 4))


def test_repeated_singular_values_with_equal_z_give_the_papers_weight() -> None:
    U, _, Vh = torch.linalg.svd(random_matrix(10, 6).double(), full_matrices=False)
    S = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    W = (U * S) @ Vh
    z = torch.tensor([1.2, 0.7, 0.7, 0.7, 1.1, 0.9])
    wanted = (U * (S * z.double())) @ Vh
    assert torch.allclose(fold(W, basis_of(W), z), wanted, atol=1e-6)


def test_identity_matrix_scales_as_a_whole() -> None:
    basis = basis_of(torch.eye(5))
    assert torch.allclose(fold(torch.eye(5), basis, torch.full((5,), 0.25)), 0.25 * torch.eye(5), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_stored_precision_does_not_change_the_basis(dtype: torch.dtype) -> None:
    W = random_matrix(30, 18).to(torch.bfloat16 if dtype == torch.float64 else dtype)
    ours, theirs = basis_of(W.to(dtype)), basis_of(W.float())
    assert torch.equal(ours.Q, theirs.Q)
    assert torch.equal(ours.S, theirs.S)


def test_layout_in_memory_does_not_change_the_basis() -> None:
    W = random_matrix(30, 18)
    transposed = W.T.contiguous().T
    assert not transposed.is_contiguous()
    assert torch.allclose(basis_of(W).Q, basis_of(transposed).Q, atol=1e-6)


def test_signs_are_fixed() -> None:
    Q = basis_of(random_matrix(20, 12)).Q
    largest = Q.gather(0, Q.abs().argmax(dim=0, keepdim=True))
    assert torch.all(largest > 0)


@pytest.mark.parametrize(
    "W",
    [
        torch.tensor([[1.0, float("nan")]]),
        torch.tensor([[1.0, float("inf")]]),
        torch.tensor([[1.0, float("-inf")]]),
        torch.ones(3),
        torch.ones(2, 2, 2),
        torch.ones(3, 0),
        torch.ones(3, 3, dtype=torch.int64),
        torch.ones(3, 3, dtype=torch.complex64),
    ],
    ids=["nan", "inf", "-inf", "1-D", "3-D", "empty", "int", "complex"],
)
def test_what_is_no_weight_is_refused(W: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"matrix"):
        basis_of(W)


def test_overflow_of_the_gram_matrix_does_not_happen_for_any_float32_weight() -> None:
    W = random_matrix(6, 4) * 1e37
    basis = basis_of(W)
    assert torch.allclose(basis.S, torch.linalg.svdvals(W.double()), rtol=1e-9)


def test_fold_leaves_weight_and_basis_untouched() -> None:
    W = random_matrix(8, 5)
    basis = basis_of(W)
    before = (W.clone(), basis.Q.clone())
    fold(W, basis, torch.zeros(5))
    assert torch.equal(W, before[0])
    assert torch.equal(basis.Q, before[1])


def test_gradient_through_the_folded_weight() -> None:
    W = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    basis = basis_of(W)
    exact = Basis(torch.linalg.qr(basis.Q.double()).Q, basis.S, basis.side)
    z = torch.full((3,), 0.8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: fold(W, exact, z), (z,))
