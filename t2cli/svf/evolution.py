"""Evolution strategies: the gradient of a score from scores alone, no backward pass.

Source: Salimans et al. 2017 (arXiv 1703.03864), algorithm 1 with mirrored sampling; the shaping of fitness by rank is
from Wierstra et al. 2014 (Natural evolution strategies, JMLR 15, section 3.1).

Notation: N population (even), D parameters, eps (N, D) perturbations, F (N,) fitness, u(F) shaped fitness.

    grad E[F(z + sigma eps)]  is estimated by  1 / (N sigma) sum_i u(F)_i eps_i,    eps ~ N(0, I)

Deviations:
1. Ranks are centred and linear, from -0.5 to 0.5, as in Salimans' released code; Wierstra's utilities drop the worse
   half, of which mirrored pairs make use. Equal fitness shares its mean rank: rewards of right or wrong tie often, and
   a population whose members all score the same must not move z.
"""

from __future__ import annotations

import torch

_STRIDE = 1_000_003  # keeps the random streams of a run's steps apart from those of the next seed


def seed_of_step(seed: int, step: int) -> int:
    """Return the seed of a training step's random numbers, from 0 to 2**63 - 1, from that of its run."""
    return (seed * _STRIDE + step) % (1 << 63)


def perturbations(seed: int, step: int, population: int, parameters: int, sigma: float) -> torch.Tensor:
    """Return sigma * eps (population, parameters): row i + population / 2 is the negative of row i.

    The same arguments give the same bits; every step of a seed has directions of its own. Raises ValueError for an odd
    or empty population, no parameters, or a sigma that is not a positive finite number.
    """
    if population < 2 or population % 2:
        raise ValueError(f"mirrored sampling needs an even population, not {population}")
    if parameters < 1:
        raise ValueError("there is nothing to perturb")
    _check_sigma(sigma)
    generator = torch.Generator().manual_seed(seed_of_step(seed, step))
    half = sigma * torch.randn(population // 2, parameters, generator=generator)  # (N / 2, D)
    return torch.cat([half, -half])  # (N, D)


def estimate(perturbations: torch.Tensor, fitness: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return the gradient estimate (D,) of `perturbations` (N, D), as made above, and their fitness (N,).

    It points uphill and depends on the ranks of fitness only. Raises ValueError where the shapes do not match or a
    fitness is not a number.
    """
    if perturbations.ndim != 2 or fitness.shape != perturbations.shape[:1]:
        raise ValueError(f"{tuple(fitness.shape)} scores do not fit perturbations {tuple(perturbations.shape)}")
    _check_sigma(sigma)
    shaped = centred_ranks(fitness).to(perturbations)
    eps = perturbations / sigma
    return shaped @ eps / (len(fitness) * sigma)


def centred_ranks(fitness: torch.Tensor) -> torch.Tensor:
    """Return ranks (N,) from -0.5 for the worst to 0.5 for the best; equal values share their mean rank.

    They add up to 0. Raises ValueError for fewer than two values or where one is not a number.
    """
    if len(fitness) < 2 or bool(torch.isnan(fitness).any()):
        raise ValueError("ranks need at least two values, all of them numbers")
    values = fitness.double()
    below = (values.unsqueeze(1) > values).sum(dim=1)  # (N,)
    same = (values.unsqueeze(1) == values).sum(dim=1)
    above = len(values) - below - same
    return (below - above).double() / (2 * (len(values) - 1))  # exactly antisymmetric


def _check_sigma(sigma: float) -> None:
    if not 0 < sigma < float("inf"):
        raise ValueError(f"sigma must be a positive finite number, not {sigma}")
