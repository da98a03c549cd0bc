"""Truncation keeps the largest components of the change, and says its error exactly."""

from __future__ import annotations

import pytest
import torch

from t2cli.svf.basis import basis_of, fold
from t2cli.svf.lowrank import thinned, truncate


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
