"""Evolution strategies: mirrored pairs, ranks only, uphill, the same bits for the same seed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t2cli.svf.evolution import centred_ranks, estimate, perturbations

FITNESS = st.lists(st.integers(-1000, 1000), min_size=2, max_size=40).map(lambda v: torch.tensor(v).float())


def test_pairs_are_mirrored_and_cancel() -> None:
    noise = perturbations(3, 5, 16, 1000, 0.02)
    assert noise.shape == (16, 1000)
    assert torch.equal(noise[:8], -noise[8:])
    assert float(noise.std()) == pytest.approx(0.02, rel=0.05)
    # a score that cannot tell z + eps from z - eps says nothing about the direction
    even = (noise**2).sum(dim=1)
    assert torch.allclose(estimate(noise, even, 0.02), torch.zeros(1000), atol=1e-4)


def test_same_seed_same_bits_and_every_step_its_own() -> None:
    assert torch.equal(perturbations(1, 2, 8, 50, 0.1), perturbations(1, 2, 8, 50, 0.1))
    seen = {tuple(perturbations(seed, step, 2, 3, 0.1).flatten().tolist()) for seed in range(4) for step in range(50)}
    assert len(seen) == 200


@pytest.mark.parametrize("parameters", [3, 40])
def test_it_ascends_a_quadratic(parameters: int) -> None:
    target = torch.linspace(0.5, 1.5, parameters)
    z = torch.ones(parameters)
    before = float(((z - target) ** 2).sum())
    for step in range(300):
        noise = perturbations(0, step, 32, parameters, 0.05)
        fitness = -((z + noise - target) ** 2).sum(dim=1)
        z = z + 0.01 * estimate(noise, fitness, 0.05)
    assert float(((z - target) ** 2).sum()) < 0.02 * before


def test_it_estimates_the_direction_of_a_linear_score() -> None:
    direction = torch.randn(20, generator=torch.Generator().manual_seed(0))
    noise = perturbations(0, 0, 4000, 20, 0.1)
    found = estimate(noise, noise @ direction, 0.1)
    assert float(torch.cosine_similarity(found, direction, dim=0)) > 0.99


@settings(deadline=None)
@given(FITNESS)
def test_only_the_order_of_the_rewards_counts(fitness: torch.Tensor) -> None:
    fitness = fitness[: len(fitness) // 2 * 2]
    noise = perturbations(0, 0, len(fitness), 7, 0.3)
    found = estimate(noise, fitness, 0.3)
    assert torch.equal(estimate(noise, (fitness.double() / 500).exp(), 0.3), found)
    assert torch.equal(estimate(noise, fitness * 3 - 1, 0.3), found)
    assert torch.equal(centred_ranks(-fitness), -centred_ranks(fitness))


@settings(deadline=None)
@given(FITNESS)
def test_ranks_are_centred_and_ties_share(fitness: torch.Tensor) -> None:
    ranks = centred_ranks(fitness)
    assert float(ranks.sum()) == pytest.approx(0, abs=1e-5)
    assert float(ranks.abs().max()) <= 0.5
    for value in fitness.unique():
        assert len(ranks[fitness == value].unique()) == 1


def test_a_population_that_scores_the_same_does_not_move() -> None:
    noise = perturbations(0, 0, 8, 30, 0.1)
    assert torch.equal(estimate(noise, torch.full((8,), -1.0), 0.1), torch.zeros(30))


@pytest.mark.parametrize(
    ("population", "parameters", "sigma"),
    [(3, 2, 0.1), (0, 2, 0.1), (2, 0, 0.1), (2, 2, 0.0), (2, 2, -1.0), (2, 2, float("nan")), (2, 2, float("inf"))],
)
def test_what_cannot_be_perturbed_is_refused(population: int, parameters: int, sigma: float) -> None:
    with pytest.raises(ValueError, match=r".+"):
        perturbations(0, 0, population, parameters, sigma)


def test_scores_that_do_not_fit_are_refused() -> None:
    noise = perturbations(0, 0, 4, 3, 0.1)
    for fitness in (torch.zeros(3), torch.tensor([0.0, 1.0, 2.0, float("nan")]), torch.zeros(4, 1)):
        with pytest.raises(ValueError, match=r".+"):
            estimate(noise, fitness, 0.1)
