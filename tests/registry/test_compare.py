"""How experts differ: properties of the figures, and the effect on weights beside the weights themselves."""

from __future__ import annotations

import math

import numpy
import pytest

from t2cli.errors import IncompatibleBaseError
from t2cli.registry.compare import Place, compare, grid, place_of, shifts, short_names

RANKS = {f"model.layers.{layer}.{kind}.weight": r for layer in (0, 1) for kind, r in (("up", 7), ("attn.q", 200))}


def vectors(seed: int) -> dict[str, numpy.ndarray]:
    generator = numpy.random.default_rng(seed)
    return {name: 1 + 0.1 * generator.standard_normal(r) for name, r in RANKS.items()}


def spectra() -> dict[str, numpy.ndarray]:
    generator = numpy.random.default_rng(9)
    return {name: numpy.sort(generator.random(r))[::-1] for name, r in RANKS.items()}


@pytest.mark.parametrize(
    ("weight", "place"),
    [
        ("model.layers.3.mlp.up_proj.weight", Place(3, "mlp.up_proj")),
        ("transformer.h.0.attn.c_attn.weight", Place(0, "attn.c_attn")),
        ("model.layers.2.mlp.experts.gate_up_proj.7", Place(2, "mlp.experts.gate_up_proj")),
        ("model.layers.2.mlp.experts.7.w1.weight", Place(2, "mlp.experts.w1")),
        ("project.weight", Place(None, "project")),
        ("blocks.4.weight", Place(4, "blocks")),
    ],
)
def test_places(weight: str, place: Place) -> None:
    assert place_of(weight) == place


def test_short_names_stay_different() -> None:
    names = ["attn.c_proj", "mlp.c_proj", "mlp.c_fc"]
    assert short_names(names) == {"attn.c_proj": "attn.c_proj", "mlp.c_proj": "mlp.c_proj", "mlp.c_fc": "c_fc"}


def test_the_figures_are_those_of_the_whole_vectors() -> None:
    a, b = vectors(1), vectors(2)
    found = compare(shifts(a, b), None)
    flat_a, flat_b = (numpy.concatenate([z[name] - 1 for name in sorted(RANKS)]) for z in (a, b))
    total = found.total
    assert total.numbers == sum(RANKS.values())
    assert total.rms_a == pytest.approx(numpy.sqrt((flat_a**2).mean()))
    assert total.rms_difference == pytest.approx(numpy.sqrt(((flat_a - flat_b) ** 2).mean()))
    assert total.cosine == pytest.approx(flat_a @ flat_b / numpy.linalg.norm(flat_a) / numpy.linalg.norm(flat_b))
    for part in (found.layers, found.modules, found.bands, found.matrices):
        assert sum(row.numbers for row in part.values()) == total.numbers
        mean = sum(row.numbers * row.rms_difference**2 for row in part.values()) / total.numbers
        assert math.sqrt(mean) == pytest.approx(total.rms_difference)
    assert list(found.bands) == ["0-1 %", "1-10 %", "10-50 %", "50-100 %"]
    assert list(found.layers) == ["0", "1"]


def test_an_expert_equals_itself_and_the_base_has_no_direction() -> None:
    a = vectors(1)
    same = compare(shifts(a, a), spectra()).total
    assert (same.rms_difference, same.weights_difference) == (0, 0)
    assert same.cosine == pytest.approx(1)
    base = {name: numpy.ones(r) for name, r in RANKS.items()}
    none = compare(shifts(a, base), spectra()).total
    assert (none.cosine, none.weights_cosine, none.rms_b, none.weights_b) == (None, None, 0, 0)
    opposite = {name: 2 - z for name, z in a.items()}
    assert compare(shifts(a, opposite), None).total.cosine == pytest.approx(-1)


def test_a_matrix_that_one_expert_leaves_alone_counts_as_1() -> None:
    a = vectors(1)
    first = next(iter(RANKS))
    without = {name: z for name, z in a.items() if name != first}
    whole = {**without, first: numpy.ones(RANKS[first])}
    assert compare(shifts(a, without), None) == compare(shifts(a, whole), None)
    assert compare(shifts(without, a), None) == compare(shifts(whole, a), None)
    with pytest.raises(IncompatibleBaseError, match="7 singular values in the one expert and 8"):
        shifts(a, {first: numpy.ones(8)})


def test_the_effect_on_weights_is_that_on_the_weights() -> None:
    generator = numpy.random.default_rng(0)
    W = generator.standard_normal((9, 6))
    U, S, Vh = numpy.linalg.svd(W, full_matrices=False)
    z_a, z_b = 1 + 0.1 * generator.standard_normal((2, 6))
    moved_a, moved_b = (U @ numpy.diag(S * z) @ Vh - W for z in (z_a, z_b))
    found = compare(shifts({"w": z_a}, {"w": z_b}), {"w": S}).total
    norm = numpy.linalg.norm(W)
    assert found.weights_a == pytest.approx(numpy.linalg.norm(moved_a) / norm)
    assert found.weights_b == pytest.approx(numpy.linalg.norm(moved_b) / norm)
    assert found.weights_difference == pytest.approx(numpy.linalg.norm(moved_a - moved_b) / norm)
    inner = float((moved_a * moved_b).sum())
    assert found.weights_cosine == pytest.approx(inner / numpy.linalg.norm(moved_a) / numpy.linalg.norm(moved_b))


def test_a_grid_averages_over_the_numbers_of_a_cell() -> None:
    found = grid(
        {
            "layers.0.experts.0.w.weight": numpy.array([3.0]),
            "layers.0.experts.1.w.weight": numpy.array([0.0, 0.0, 0.0]),
            "layers.10.other.weight": numpy.array([0.5]),
            "head.weight": numpy.array([-2.0]),
        }
    )
    assert found.layers == [None, 0, 10]
    assert found.modules == ["experts.w", "head", "other"]
    assert found.values == {("experts.w", 0): 1.5, ("other", 10): 0.5, ("head", None): 2.0}
    assert found.range == (0.5, 2.0)
