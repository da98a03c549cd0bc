"""How the numbers that are trained become the factors z of the singular values.

Source: Transformer-Squared (arXiv 2501.06252), section 3.1 and appendix A, and its released code; math.md 5.

Notation: p (..., r) trained numbers, S (r,) singular values of W, z (..., r) effective factors: W' = U diag(S * z) Vh.

    linear     z = p
    sigmoid    z = sigmoid(p) * sum(S) / sum(S * sigmoid(p))        the released code, whose max_mult cancels out

Everything else sees z alone: generation, the registry, mixing. The gradient reaches p through z by autograd.

How the sources are read:
1. The paper prints that the vectors start with mean 0.1 and variance 1e-3. As factors they would shrink every weight to
   a tenth, so its 0.1 is that of the sigmoid's p, where it hardly matters: z is rescaled, and equal p are the base.
   The preset `paper`, whose z is linear as in the paper's formulas, starts around 1 with that variance.
2. The released code draws p as 0.1 + 0.01 N(0, 1), a variance of 1e-4; the preset `reference` does as the code does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from t2cli.svf.zvector import unflatten


class Parametrisation(NamedTuple):
    """`effective` gives z of p (..., r) and S (r,); where all p are `origin`, z is 1: the base model."""

    effective: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    origin: float
    uses_spectrum: bool  # whether `effective` looks at S


def linear(p: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
    """Return z = p (..., r)."""
    return p


def rescaled_sigmoid(p: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
    """Return z = sigmoid(p) * sum(S) / sum(S * sigmoid(p)) (..., r) of p (..., r) and S (r,).

    Not finite where the sum underflows, as it does for p far below -100 in float32 and -745 in float64.
    """
    factor = torch.sigmoid(p)
    return factor * (S.sum() / (S * factor).sum(dim=-1, keepdim=True))


PARAMETRISATIONS = {
    "linear": Parametrisation(linear, origin=1.0, uses_spectrum=False),
    "sigmoid": Parametrisation(rescaled_sigmoid, origin=0.1, uses_spectrum=True),
}


def effective(
    form: Parametrisation, flat: torch.Tensor, ranks: Mapping[str, int], spectra: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return z (..., r) by name of flat p (..., parameters); `spectra` has S (r,) where the form uses it.

    Gradients flow through it. The values have the precision of p.
    """
    parts = unflatten(flat, ranks)
    if not form.uses_spectrum:
        return {name: form.effective(p, p) for name, p in parts.items()}
    return {name: form.effective(p, spectra[name].to(p)) for name, p in parts.items()}


def initial(parameters: int, mean: float, deviation: float, seed: int) -> torch.Tensor:
    """Return p (parameters,), float32: exactly `mean` for a `deviation` of 0, else draws of N(mean, deviation^2)."""
    noise = torch.randn(parameters, generator=torch.Generator().manual_seed(seed))
    return mean + deviation * noise
