"""Truncation keeps the largest components of the change, and says its error exactly."""

from __future__ import annotations

import pytest
import torch

from t2cli.svf.basis import basis_of, fold
from t2cli.svf.lowrank import factors, strength, strongest, thinned, truncate


def made(m: int = 40, n: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(m, n, generator=generator, dtype=torch.float64)
    z = 1 + 0.1 * torch.randn(n, generator=generator, dtype=torch.float64) ** 3  # few large, many small
    return W, z, basis_of(W).S


@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("m", "n"), [(40, 24), (24, 24)])
def test_error_is_that_of_the_folded_weights(m: int, n: int, tolerance: float) -> None:
    W, z, S = made(m, n)
    basis = basis_of(W)
    found = truncate(z, S, tolerance)
    change, kept_change = fold(W, basis, z) - W, fold(W, basis, found.z) - W
    error = float((change - kept_change).norm() / change.norm())
    assert error == pytest.approx(found.error, abs=1e-6)
    assert found.error <= tolerance
    assert found.kept == int((found.z != 1).sum())


def test_no_choice_of_as_many_components_is_better() -> None:
    _, z, S = made()
    found = truncate(z, S, 0.3)
    energy = (S * (z - 1)).square()
    assert 0 < found.kept < z.numel()
    assert energy[found.z != 1].min() >= energy[found.z == 1].max()
    one_less = energy.sort().values[: z.numel() - found.kept + 1].sum() / energy.sum()
    assert float(one_less) ** 0.5 > 0.3  # the next component would have cost too much


def test_ends_of_the_range() -> None:
    _, z, S = made()
    assert torch.equal(truncate(z, S, 0.0).z, z)
    nothing = truncate(z, S, 1.0)
    assert (nothing.kept, nothing.error) == (0, pytest.approx(1.0))
    assert truncate(torch.ones(24), S, 0.0) == (pytest.approx(torch.ones(24)), 0, 0.0)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="tolerance"):
            truncate(z, S, wrong)


def test_rows_are_truncated_each_and_share_their_columns() -> None:
    _, z, S = made()
    other = z.flip(0)
    rows, columns = thinned(torch.stack([z, other]), S, 0.5)
    assert torch.equal(rows, torch.stack([truncate(z, S, 0.5).z, truncate(other, S, 0.5).z]))
    assert columns is not None
    assert torch.equal(columns, ((rows != 1).any(dim=0)).nonzero().flatten())
    assert thinned(z, S, 0.0)[1] is None  # all components: not thin


@pytest.mark.parametrize("rank", [0, 1, 5, 23, 24, 100])
def test_the_strongest_components_are_kept_and_the_error_is_that_of_the_rest(rank: int) -> None:
    W, z, S = made()
    basis, found = basis_of(W), strongest(z, S, rank)
    strengths = strength(z, S)
    assert found.kept == int((found.z != 1).sum()) == min(rank, 24)
    least = strengths[found.z != 1].min() if rank else torch.inf
    assert bool((strengths[found.z == 1] <= least).all())
    change, lost = fold(W, basis, z) - W, fold(W, basis, z) - fold(W, basis, found.z)
    assert float(lost.norm() / change.norm()) == pytest.approx(found.error, abs=1e-6)


def test_what_changes_nothing_is_not_counted() -> None:
    _, z, S = made()
    S = S.clone()
    S[-3:] = 0
    z[0] = 1
    assert strongest(z, S, 24).kept == 20
    assert strongest(torch.ones(24), S, 24) == (pytest.approx(torch.ones(24)), 0, 0.0)
    with pytest.raises(ValueError, match="rank"):
        strongest(z, S, -1)


@pytest.mark.parametrize(("m", "n"), [(40, 24), (24, 24), (24, 40)])
@pytest.mark.parametrize("rank", [0, 1, 7, 24])
def test_factors_are_the_change_of_the_weight(m: int, n: int, rank: int) -> None:
    W, z, _ = made(m, n) if n == 24 else (made(n, m)[0].T.contiguous(), *made(n, m)[1:])
    basis = basis_of(W)
    cut = strongest(z, basis.S, rank)
    A, B = factors(W, basis, cut.z)
    assert (A.shape, B.shape, A.dtype, B.dtype) == ((rank, n), (m, rank), torch.float32, torch.float32)
    change = fold(W, basis, z) - W
    wanted = fold(W, basis, cut.z) - W
    assert float((B.double() @ A.double() - wanted).norm() / change.norm()) < 1e-6
    norms = strength(cut.z, basis.S).sort(descending=True).values[:rank].sqrt().float()
    assert torch.allclose(A.norm(dim=1), norms, rtol=1e-5)
    assert torch.allclose(B.norm(dim=0), norms, rtol=1e-5)
