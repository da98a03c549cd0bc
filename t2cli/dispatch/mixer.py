"""The z of many mixes of the same experts at once: what a population is made of (math.md 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from t2cli.models.adapted import AdaptedModel
from t2cli.svf.zvector import ZVectors, unflatten


class Mixer:
    """Turns the numbers of mixes into their z."""

    def __init__(self, adapted: AdaptedModel, experts: Sequence[ZVectors], *, per_layer: bool = False) -> None:
        self.ranks = adapted.ranks
        self.names = sorted(self.ranks)
        self.experts = len(experts)
        self.matrices = len(self.names) if per_layer else 1
        for z in experts:
            adapted.check(z)
        zero = {name: torch.zeros(rank, dtype=torch.float64) for name, rank in self.ranks.items()}
        self._shifts = [
            torch.cat([z[name].double() - 1 if name in z else zero[name] for name in self.names]) for z in experts
        ]
        self._adapted = {name for z in experts for name in z}

    @property
    def size(self) -> int:
        """Return D."""
        return self.experts * self.matrices

    def z(self, alphas: torch.Tensor) -> torch.Tensor:
        """Return z (C, P) of mixes (C, D), in float32; one alpha per expert gives the bits of `zvector.mix`."""
        parts = alphas.double().view(len(alphas), self.experts, self.matrices)
        total = torch.zeros(len(alphas), self._shifts[0].numel(), dtype=torch.float64)  # (C, P)
        ranks = torch.tensor([self.ranks[name] for name in self.names])
        for k, shift in enumerate(self._shifts):
            alpha = parts[:, k]  # (C, 1) or (C, M)
            total += (alpha if self.matrices == 1 else alpha.repeat_interleave(ranks, dim=1)) * shift
        return (1 + total).float()

    def vectors(self, alphas: torch.Tensor) -> ZVectors:
        """Return the z of one mix (D,), of the matrices that an expert in it adapts."""
        z = unflatten(self.z(alphas.unsqueeze(0))[0], self.ranks)
        return ZVectors({name: z[name] for name in self._adapted})

    def per_expert(self, numbers: torch.Tensor) -> list[float]:
        """Return the mean over the matrices of a mix's numbers (D,), one per expert."""
        means: list[float] = numbers.double().view(self.experts, self.matrices).mean(dim=1).tolist()
        return means
