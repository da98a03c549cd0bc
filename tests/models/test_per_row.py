"""Rows of a batch as experts of their own: however they are given and however the products are computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from t2cli.errors import IncompatibleBaseError
from t2cli.models.adapted import AdaptedModel
from t2cli.svf.lowrank import truncate
from t2cli.svf.zvector import ZVectors

IDS = torch.arange(3 * 9).view(3, 9) % 250
LONG = torch.arange(3 * 60).view(3, 60) % 250  # so many tokens that products are computed the other way round


@torch.no_grad()
def logits_of(adapted: AdaptedModel, ids: torch.Tensor = IDS) -> torch.Tensor:
    return adapted.model(input_ids=ids).logits


def one_by_one(adapted: AdaptedModel, rows: list[ZVectors | None], all_ids: torch.Tensor = IDS) -> torch.Tensor:
    """Return the logits of each row answered alone, with folded weights."""
    found = []
    for ids, z in zip(all_ids, rows, strict=True):
        with adapted.reference() if z is None else adapted.use_z(z):
            found.append(logits_of(adapted, ids[None]))
    return torch.cat(found)


@pytest.mark.parametrize("ids", [IDS, LONG], ids=["few", "many"])
@pytest.mark.parametrize("spectral", [True, False])
@pytest.mark.parametrize("variant", ["llama", "qwen2", "qwen3"])
def test_rows_are_what_each_is_alone(
    variant: str,
    spectral: bool,
    ids: torch.Tensor,
    adapt: Callable[..., AdaptedModel],
    random_z: Callable[..., ZVectors],
) -> None:
    adapted = adapt(variant)
    adapted.spectral_bytes = (1 << 30) if spectral else 0
    rows = [random_z(adapted.ranks, 1), None, random_z(adapted.ranks, 2)]
    with adapted.per_row(rows):
        assert all((layer.spectral is not None) == spectral for layer in adapted.layers.values())
        found = logits_of(adapted, ids)
    assert torch.allclose(found, one_by_one(adapted, rows, ids), rtol=1e-4, atol=1e-4)
    adapted.release()
    assert all(layer.spectral is None for layer in adapted.layers.values())


def test_rows_of_numbers_are_rows_of_experts(
    adapt: Callable[..., AdaptedModel], random_z: Callable[..., ZVectors]
) -> None:
    adapted = adapt()
    rows = [random_z(adapted.ranks, seed) for seed in range(3)]
    with adapted.per_row(rows):
        wanted = logits_of(adapted)
    with adapted.per_row(torch.stack([z.flat() for z in rows])):
        assert torch.equal(logits_of(adapted), wanted)


def test_rows_of_another_width_are_refused(adapt: Callable[..., AdaptedModel]) -> None:
    adapted = adapt()
    for wrong in (torch.ones(3, 7), torch.ones(sum(adapted.ranks.values()))):
        with pytest.raises(ValueError, match="shape"), adapted.per_row(wrong):
            pass
    with pytest.raises(IncompatibleBaseError), adapted.per_row([ZVectors({"nothing.weight": torch.ones(2)})]):
        pass


def test_rows_that_are_all_the_base_answer_bit_for_bit(
    adapt: Callable[..., AdaptedModel], random_z: Callable[..., ZVectors]
) -> None:
    adapted = adapt()
    wanted = logits_of(adapted)
    ones = ZVectors({name: torch.ones(r) for name, r in adapted.ranks.items()})
    for rows in ([None, None, None], [ones, None, ones], torch.ones(3, ones.parameters)):
        with adapted.per_row(rows):
            assert torch.equal(logits_of(adapted), wanted)
    with adapted.per_row([random_z(adapted.ranks)] * 3):  # the second form of the weights is there now
        pass
    with adapted.per_row([None, None, None]):
        assert torch.equal(logits_of(adapted), wanted)
    assert torch.equal(logits_of(adapted), wanted)


def test_float64_is_never_computed_from_the_rounded_form(
    adapt: Callable[..., AdaptedModel], random_z: Callable[..., ZVectors]
) -> None:
    adapted = adapt(double=True)
    with adapted.per_row([random_z(adapted.ranks)] * 3):
        assert all(layer.spectral is None for layer in adapted.layers.values())


@pytest.mark.parametrize("rows", [True, False])
def test_truncated_products_are_those_of_the_truncated_expert(
    rows: bool, adapt: Callable[..., AdaptedModel], random_z: Callable[..., ZVectors]
) -> None:
    adapted = adapt(double=True)
    adapted.prepare()
    z = random_z(adapted.ranks)
    z = ZVectors({name: 1 + (vector - 1) ** 5 for name, vector in z.items()})  # few large components
    tolerance = 0.2
    cut = {name: truncate(z[name], adapted.layers[name].require_basis().S, tolerance) for name in z}
    kept = ZVectors({name: part.z for name, part in cut.items()})
    assert 0 < sum(part.kept for part in cut.values()) < 0.5 * z.parameters
    with adapted.use_z(kept, folded=False):
        wanted = logits_of(adapted)
    with adapted.per_row([z] * 3, tolerance=tolerance) if rows else adapted.use_z(z, folded=False, tolerance=tolerance):
        assert any(layer.columns is not None for layer in adapted.layers.values())
        assert torch.allclose(logits_of(adapted), wanted, rtol=1e-9, atol=1e-9)
    assert all(layer.columns is None for layer in adapted.layers.values())
