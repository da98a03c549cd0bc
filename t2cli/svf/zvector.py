"""An expert's numbers: one z (r,) per adapted matrix, and how experts are mixed.

Source: Transformer-Squared (arXiv 2501.06252), sections 3.1 and 3.2; math.md 4.

Deviation from the paper:
1. mix is 1 + sum_k alpha_k (z_k - 1), so that the base model is a member with weight 1 - sum_k alpha_k. It equals
   the paper's sum_k alpha_k z_k where the alphas sum to 1, and stays meaningful where they do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch


class ZVectors(Mapping[str, torch.Tensor]):
    """An immutable mapping from the weight's name to its z (r,), float32, in a fixed order."""

    def __init__(self, vectors: Mapping[str, torch.Tensor]) -> None:
        for name, z in vectors.items():
            if z.ndim != 1 or not z.is_floating_point():
                raise ValueError(f"z of {name} must be a float vector, got {z.dtype} of shape {tuple(z.shape)}")
        self._vectors = {name: z.detach().to(torch.float32, copy=True) for name, z in sorted(vectors.items())}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._vectors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._vectors)

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def parameters(self) -> int:
        """Return how many numbers the expert has."""
        return sum(z.numel() for z in self._vectors.values())

    @property
    def ranks(self) -> dict[str, int]:
        """Return r of each adapted matrix."""
        return {name: z.numel() for name, z in self._vectors.items()}

    def flat(self) -> torch.Tensor:
        """Return all z in one vector (parameters,), in the order of the names."""
        return torch.cat(list(self._vectors.values()))


def identity(ranks: Mapping[str, int]) -> ZVectors:
    """Return z = 1 everywhere: the base model."""
    return ZVectors({name: torch.ones(r) for name, r in ranks.items()})


def unflatten(flat: torch.Tensor, ranks: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Return views of `flat` (..., parameters), one (..., r) per matrix in the order of the names.

    Gradients flow through them.
    """
    names = sorted(ranks)
    return dict(zip(names, torch.split(flat, [ranks[name] for name in names], dim=-1), strict=True))


def mix(members: Sequence[tuple[float, ZVectors]]) -> ZVectors:
    """Return 1 + sum_k alpha_k (z_k - 1).

    A matrix that only some members adapt counts as z = 1 in the others. Raises ValueError when the same matrix has
    different ranks in two members, or for an alpha that is not finite.
    """
    shift: dict[str, torch.Tensor] = {}
    for alpha, vectors in members:
        if not torch.isfinite(torch.tensor(float(alpha))):
            raise ValueError(f"a mixing weight must be a finite number of float32, got {alpha:g}")
        for name, z in vectors.items():
            term = alpha * (z.double() - 1)
            if name in shift and shift[name].shape != term.shape:
                raise ValueError(f"{name} has rank {shift[name].numel()} in one expert and {term.numel()} in another")
            shift[name] = shift[name] + term if name in shift else term
    return ZVectors({name: (1 + total).float() for name, total in shift.items()})
