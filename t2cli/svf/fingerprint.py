"""What ties an expert to its base model: an exact digest of the weights and a sketch of their spectra.

Source: math.md 8. Singular vectors have free signs and near-equal singular values a free order, so neither is hashed.

    weights    SHA-256 over names, shapes and canonical bytes; one value for float32, float16 and bfloat16 files
               that hold the same numbers, however many shards they are in
    spectrum   per kind of matrix, the root mean square over layers of the singular values at five positions
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch

POSITIONS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Fingerprint:
    """`weights`: 64 hex digits; `spectrum`: kind of matrix -> singular values at POSITIONS of the ranking."""

    weights: str
    spectrum: dict[str, list[float]]


def tensor_digest(W: torch.Tensor) -> str:
    """Return the SHA-256 of W's values as little-endian float32 in row order, -0 counted as 0.

    float16 and bfloat16 values are float32 values too, so the digest does not depend on the stored precision.
    """
    canonical = (W.detach().to(device="cpu", dtype=torch.float32) + 0.0).contiguous()
    return hashlib.sha256(canonical.numpy().astype("<f4", copy=False).data).hexdigest()


def weights_digest(tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> str:
    """Return the digest of a base from each weight's name, shape and `tensor_digest`; order does not matter."""
    total = hashlib.sha256()
    for name, (shape, digest) in sorted(tensors.items()):
        total.update(f"{name}\0{'x'.join(map(str, shape))}\0{digest}\n".encode())
    return total.hexdigest()


def kind_of(name: str) -> str:
    """Return the kind of a weight from its name: model.layers.3.mlp.up_proj.weight -> up_proj, of slices theirs."""
    parts = name.removesuffix(".weight").split(".")
    return next((part for part in reversed(parts) if not part.isdecimal()), name)


def spectrum_sketch(singular_values: Mapping[str, torch.Tensor]) -> dict[str, list[float]]:
    """Return the sketch of all S (r,), five numbers of four significant digits per kind of matrix."""
    rows: dict[str, list[torch.Tensor]] = {}
    for name, S in sorted(singular_values.items()):
        index = torch.tensor([round(position * (S.numel() - 1)) for position in POSITIONS])
        rows.setdefault(kind_of(name), []).append(S.double().cpu()[index])
    return {
        kind: [float(f"{value:.4g}") for value in torch.stack(values).square().mean(dim=0).sqrt().tolist()]
        for kind, values in sorted(rows.items())
    }


def drift(ours: Mapping[str, list[float]], theirs: Mapping[str, list[float]]) -> float | None:
    """Return how far two sketches are apart, relative to the larger; None when they have other kinds of matrices.

    0 means equal spectra (another precision gives below 0.01), values near 1 mean unrelated models.
    """
    if set(ours) != set(theirs) or not ours:
        return None
    a = torch.tensor([value for kind in sorted(ours) for value in ours[kind]], dtype=torch.float64)
    b = torch.tensor([value for kind in sorted(theirs) for value in theirs[kind]], dtype=torch.float64)
    if a.shape != b.shape:
        return None
    scale = torch.maximum(a.abs(), b.abs()).clamp_min(1e-12)
    return float(((a - b).abs() / scale).mean())
