"""Decomposing, folding and switching beside what a user would have instead, on the default base and random matrices.

    python tests/benchmarks/spectral.py [--rounds 3] [--quick] [--json FILE] [--device cpu|cuda]

decomposition  bases of all matrices beside torch.linalg.svd(full_matrices=False) in float32, both in memory
error          of W' - W for a random z (sigma 0.1) beside a float64 SVD, relative Frobenius
bytes          of Q and S beside U, S and V in float32
folding        W' of all matrices beside two matrix products per matrix at the measured speed of large products
switching      to an expert that was in use before, beside copying the weights once
The rounds take turns; ratios are of the medians. --quick leaves out the widths above 1024.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from clock import now
from table import print_table, write_json

WIDTHS = (512, 1024, 2048, 4096)
Factors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # U, S, Vh


def in_turn(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = now()
            way()
            seconds[name].append(now() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def product_speed(device: str) -> float:
    """Return multiplications and additions per second of a large float32 product."""
    A, B = torch.randn(2, 2048, 2048, device=device)
    A @ B
    return 2 * 2048**3 / in_turn({"": lambda: A @ B}, 5)[""]


def error_of(W: torch.Tensor, changed: torch.Tensor, exact: Factors, z: torch.Tensor) -> float:
    """Return the relative Frobenius error of `changed` - W against the float64 factors."""
    U, S, Vh = exact
    wanted = (U * (S * (z.double() - 1))) @ Vh
    return float((changed.double() - W.double() - wanted).norm() / wanted.norm())


def errors(W: torch.Tensor) -> tuple[float, float]:
    """Return the error of our W' - W and of the one from a float32 SVD, for one random z."""
    from t2cli.svf.basis import basis_of, fold

    exact = torch.linalg.svd(W.double(), full_matrices=False)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    z = 1 + 0.1 * torch.randn(min(W.shape), device=W.device)
    # in float64 from here on: what is measured is the factors, not the last addition to W
    ours = fold(W.double(), basis_of(W), z)
    theirs = W.double() + (U.double() * (S.double() * (z.double() - 1))) @ Vh.double()
    return error_of(W, ours, exact, z), error_of(W, theirs, exact, z)


def of_matrices(
    name: str, matrices: Mapping[str, torch.Tensor], rounds: int, speed: float
) -> tuple[list[str], dict[str, object]]:
    """Return a table's row and the numbers of one set of matrices."""
    from t2cli.config import DecomposeConfig
    from t2cli.models.basis_pool import compute_each, workers_for
    from t2cli.models.targets import Target
    from t2cli.svf.basis import Basis, basis_of, fold

    bases: dict[str, Basis] = {}
    config = DecomposeConfig(device=next(iter(matrices.values())).device.type)
    targets = [Target(key, "", tuple(W.shape)) for key, W in matrices.items()]

    def make(target: Target) -> bool:
        bases[target.weight] = basis_of(matrices[target.weight])
        return True

    def decompose() -> None:
        for _ in compute_each(targets, make, workers_for(config)):
            pass

    def svd() -> None:
        for W in matrices.values():
            torch.linalg.svd(W, full_matrices=False)

    seconds = in_turn({"t2": decompose, "svd": svd}, rounds)
    measured = [errors(W) for W in list(matrices.values())[:14]]  # two layers of the default base
    worst = max(error for error, _ in measured)
    below = statistics.median(svd_error / error for error, svd_error in measured)
    stored = sum(4 * r * r + 8 * r for r in (min(W.shape) for W in matrices.values()))
    factors = sum(4 * (sum(W.shape) + 1) * min(W.shape) for W in matrices.values())
    z = {key: 1 + 0.1 * torch.randn(min(W.shape), device=W.device) for key, W in matrices.items()}
    products = sum(2 * min(W.shape) ** 2 * (min(W.shape) + max(W.shape)) for W in matrices.values())
    folding = in_turn({"": lambda: [fold(W, bases[key], z[key]) for key, W in matrices.items()]}, rounds)[""]
    row = [
        name,
        f"{seconds['t2']:.2f}",
        f"{seconds['svd']:.2f}",
        f"{seconds['svd'] / seconds['t2']:.2f}",
        f"{worst:.1e}",
        f"{below:.0f}",
        f"{stored / factors:.2f}",
        f"{folding / (products / speed):.2f}",
    ]
    numbers = {"seconds": seconds, "errors": measured, "stored": stored, "factors": factors}
    return row, {**numbers, "folding": folding, "folding_limit": products / speed}


def switching(rounds: int, device: str) -> dict[str, float]:
    """Return the seconds of switching between two experts in use before, and of copying the weights once."""
    from t2cli.models.adapted import AdaptedModel
    from t2cli.models.base import load_base
    from t2cli.svf.zvector import ZVectors

    adapted = AdaptedModel(load_base("smollm2-135m", device=device, quiet=True))
    a, b = (ZVectors({n: 1 + 0.1 * torch.randn(r) for n, r in adapted.ranks.items()}) for _ in range(2))
    copies = [torch.empty_like(layer.weight) for layer in adapted.layers.values()]

    def switch() -> None:
        for z in (a, b):
            with adapted.use_z(z):
                pass

    def copy() -> None:
        for _ in range(2):
            for target, layer in zip(copies, adapted.layers.values(), strict=True):
                target.copy_(layer.weight)

    switch()
    copy()
    return in_turn({"switch": switch, "copy": copy}, rounds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from t2cli.models.catalog import locate
    from t2cli.models.checkpoint import Checkpoint
    from t2cli.models.targets import checkpoint_targets

    torch.manual_seed(0)
    speed = product_speed(options.device)
    files = locate("smollm2-135m")
    checkpoint = Checkpoint(files.folder)
    all_matrices = {
        target.weight: checkpoint.weight(target).to(options.device) for target in checkpoint_targets(files.folder)
    }
    layers = len(all_matrices) // 7
    sets: dict[str, Mapping[str, torch.Tensor]] = {
        f"smollm2-135m, {count} layers": dict(list(all_matrices.items())[: 7 * count])
        for count in (layers // 4, layers // 2, layers)
    }
    for width in (width for width in WIDTHS if width <= 1024 or not options.quick):
        sets[f"random {width} x {width}"] = {"W": torch.randn(width, width, device=options.device)}
        if width == 2048:
            sets["random 2048 x 8192"] = {"W": torch.randn(2048, 8192, device=options.device)}
    header = ("", "t2 s", "SVD s", "faster", "error", "below SVD's", "bytes", "folding / limit")
    rows, numbers = [], {}
    for name, matrices in sets.items():
        row, numbers[name] = of_matrices(name, matrices, options.rounds if "4096" not in name else 1, speed)
        rows.append(row)
        print(" ".join(row), flush=True)
    print_table(header, rows)
    switched = switching(options.rounds, options.device)
    print(f"switching: {switched['switch']:.4f} s, copying the weights once: {switched['copy']:.4f} s")
    write_json(options.json, {"product_speed": speed, "sets": numbers, "switching": switched})


if __name__ == "__main__":
    main()
