"""What ties an expert to its base model: an exact digest of the weights, probes of them, a sketch of their spectra.

Source: math.md 8. Singular vectors have free signs and near-equal singular values a free order, so neither is hashed.

    weights    SHA-256 over names, shapes and canonical bytes; one value for float32, float16 and bfloat16 files
               that hold the same numbers, however many shards they are in
    probes     per kind of matrix, PROBES sums over its layers of r1^T W r2 with pseudo-random signs r1, r2
    spectrum   per kind of matrix, the root mean square over layers of the singular values at five positions

Deviation from math.md: the probes. Spectra need the decomposition, and two trainings from other seeds have nearly
the same ones; probes come with the digest's one pass over the weights and tell how far apart two bases are
(svf/relation.py). E[(r1^T W r2)^2] = ||W||_F^2 over the signs, and since every matrix has signs of its own, the
square of a sum over layers has the sum of their squared norms as its mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

POSITIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
PROBES = 16  # per kind of matrix: a drift within about 10 % of itself, and a manifest one kilobyte longer
BLOCK_ROWS = 1024  # of a weight at once in float64: the copy of a whole one would be the pass's peak of memory


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


def signs(name: str, side: str, length: int) -> torch.Tensor:
    """Return the pseudo-random signs (length, PROBES) of one side, "rows" or "columns", of the weight `name`.

    float64, each +1 or -1. The bits are SHAKE-128 of the names, not a library's random numbers: the same on every
    platform and in every version.
    """
    columns = []
    for index in range(PROBES):
        stream = hashlib.shake_128(f"t2.probe/1\0{name}\0{side}\0{index}".encode()).digest((length + 7) // 8)
        packed = torch.frombuffer(bytearray(stream), dtype=torch.uint8)
        bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1  # (bytes, 8)
        columns.append(bits.flatten()[:length])
    return 1.0 - 2.0 * torch.stack(columns, dim=1).double()


def tensor_probes(name: str, W: torch.Tensor) -> torch.Tensor:
    """Return r1^T W r2 (PROBES,) of the weight `name`, W (m, n), in float64 on the CPU."""
    m, n = W.shape
    rows, columns = signs(name, "rows", m), signs(name, "columns", n)  # (m, PROBES), (n, PROBES)
    total = torch.zeros(PROBES, dtype=torch.float64)
    for start in range(0, m, BLOCK_ROWS):
        block = W[start : start + BLOCK_ROWS].detach().to(device="cpu", dtype=torch.float64)
        total += (rows[start : start + BLOCK_ROWS] * (block @ columns)).sum(dim=0)
    return total


def probe_sums(probes: Mapping[str, torch.Tensor]) -> dict[str, list[float]]:
    """Return the probes of a base from each weight's `tensor_probes`: sums of six digits per kind of matrix."""
    sums: dict[str, torch.Tensor] = {}
    for name, numbers in sorted(probes.items()):  # a fixed order: sums in another one round otherwise
        kind = kind_of(name)
        sums[kind] = sums[kind] + numbers if kind in sums else numbers
    return {kind: [float(f"{number:.6g}") for number in total.tolist()] for kind, total in sorted(sums.items())}


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


def spectrum_drift(ours: Mapping[str, list[float]], theirs: Mapping[str, list[float]]) -> float | None:
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
