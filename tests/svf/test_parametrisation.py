"""From trained numbers to the factors of the singular values: the formula of the released code, and its derivative."""

from __future__ import annotations

import pytest
import torch

from t2cli.svf.parametrisation import PARAMETRISATIONS, effective, initial, rescaled_sigmoid

SPECTRUM = torch.tensor([5.0, 2.0, 1.0, 0.5], dtype=torch.float64)


def test_linear_numbers_are_the_factors() -> None:
    p = torch.tensor([0.5, 1.5])
    assert torch.equal(PARAMETRISATIONS["linear"].effective(p, SPECTRUM), p)


def test_the_sigmoid_by_hand() -> None:
    p = torch.tensor([0.0, 1.0, -1.0, 2.0], dtype=torch.float64)
    s = [1 / (1 + 2.718281828459045 ** -float(value)) for value in p]
    total = 5 * s[0] + 2 * s[1] + 1 * s[2] + 0.5 * s[3]
    wanted = [value * 8.5 / total for value in s]
    assert rescaled_sigmoid(p, SPECTRUM).tolist() == pytest.approx(wanted, rel=1e-12)


def test_the_sum_of_the_singular_values_stays() -> None:
    z = rescaled_sigmoid(torch.randn(7, 4, dtype=torch.float64), SPECTRUM)
    assert torch.allclose((SPECTRUM * z).sum(dim=1), torch.full((7,), 8.5, dtype=torch.float64))


@pytest.mark.parametrize("value", [-3.0, 0.1, 4.0])
def test_equal_numbers_are_the_base(value: float) -> None:
    p = torch.full((4,), value, dtype=torch.float64)
    assert torch.allclose(rescaled_sigmoid(p, SPECTRUM), torch.ones(4, dtype=torch.float64), atol=1e-15)


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_the_origin_is_the_base(name: str) -> None:
    form = PARAMETRISATIONS[name]
    z = form.effective(torch.full((4,), form.origin, dtype=torch.float64), SPECTRUM)
    assert torch.allclose(z, torch.ones(4, dtype=torch.float64), atol=1e-15)


def test_the_derivative_by_hand() -> None:
    """With s = sigmoid(p), c = sum(S) and t = sum(S s): dz_i / dp_j = s_j' c (delta_ij - s_i S_j / t) / t."""
    p = torch.tensor([0.3, -0.4, 0.8, 0.0], dtype=torch.float64, requires_grad=True)
    found = torch.autograd.functional.jacobian(lambda p: rescaled_sigmoid(p, SPECTRUM), p)
    s = torch.sigmoid(p.detach())
    slope, c, t = s * (1 - s), SPECTRUM.sum(), (SPECTRUM * s).sum()
    wanted = c / t * (torch.eye(4, dtype=torch.float64) - s[:, None] * SPECTRUM[None] / t) * slope[None]
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-14)


def test_rows_of_numbers_become_rows_of_factors() -> None:
    ranks, spectra = {"b": 4, "a": 2}, {"a": SPECTRUM[:2], "b": SPECTRUM}
    flat = torch.randn(3, 6, dtype=torch.float64)
    found = effective(PARAMETRISATIONS["sigmoid"], flat, ranks, spectra)
    for row in range(3):
        assert torch.allclose(found["a"][row], rescaled_sigmoid(flat[row, :2], SPECTRUM[:2]))
        assert torch.allclose(found["b"][row], rescaled_sigmoid(flat[row, 2:], SPECTRUM))


def test_the_start_is_exact_or_drawn_from_the_seed() -> None:
    assert torch.equal(initial(5, 1.0, 0.0, seed=3), torch.ones(5))
    drawn = initial(40_000, 0.1, 0.01, seed=3)
    assert torch.equal(drawn, initial(40_000, 0.1, 0.01, seed=3))
    assert not torch.equal(drawn, initial(40_000, 0.1, 0.01, seed=4))
    assert float(drawn.mean()) == pytest.approx(0.1, abs=3e-4)
    assert float(drawn.std()) == pytest.approx(0.01, rel=0.03)
