"""t2 diff: two experts of a tiny base, with and without its decomposition at hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from t2cli.models.adapted import AdaptedModel
from t2cli.models.spectra import cached_singular_values
from t2cli.paths import cache_dir
from t2cli.registry.local import ExpertEntry
from t2cli.svf.zvector import ZVectors


@pytest.fixture
def adapted(adapt: Callable[..., AdaptedModel]) -> AdaptedModel:
    """Return the tiny base with its decomposition in the cache."""
    made = adapt("llama")
    made.prepare(quiet=True)
    return made


@pytest.fixture
def experts(
    adapted: AdaptedModel, publish: Callable[..., ExpertEntry], random_z: Callable[..., ZVectors], tmp_path: Path
) -> dict[str, ZVectors]:
    """Return two experts in a registry, and a third that differs from the first in one layer only."""
    first, second = (random_z(adapted.ranks, seed=seed) for seed in (1, 2))
    third = ZVectors({name: second[name] if ".layers.1." in name else z for name, z in first.items()})
    made = {"math": first, "story": second, "near": third}
    for name, z in made.items():
        publish(tmp_path / "experts", adapted.base.identity, name, z)
    return made


@pytest.fixture
def diff(run: Callable, base_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., Any]:
    """Return a function that compares two experts of the tiny base."""
    options = ("--base", base_folder("llama"), "--registry", tmp_path / "experts")
    return lambda *arguments: run("diff", *arguments, *options)


def record_of(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded


def test_the_figures_are_those_of_the_vectors_and_weights(
    diff: Callable, adapted: AdaptedModel, experts: dict[str, ZVectors]
) -> None:
    record = record_of(diff("math", "story", "--json"))
    a, b = (experts[name].flat().double() - 1 for name in ("math", "story"))
    assert (record["schema"], record["a"]["ref"], record["b"]["ref"]) == ("t2.diff/1", "math@1", "story@1")
    total = record["total"]
    assert total["rms_difference"] == pytest.approx(float((a - b).square().mean().sqrt()))
    assert total["cosine"] == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)))
    weights = {name: layer.weight.detach().double() for name, layer in adapted.layers.items()}
    first, second = (
        {name: layer.fold(experts[expert][name]).double() for name, layer in adapted.layers.items()}
        for expert in ("math", "story")
    )

    def moved(x: dict[str, torch.Tensor], y: dict[str, torch.Tensor]) -> float:
        apart = sum(float((x[name] - y[name]).square().sum()) for name in weights)
        return (apart / sum(float(W.square().sum()) for W in weights.values())) ** 0.5

    assert total["weights_a"] == pytest.approx(moved(first, weights), rel=1e-4)
    assert total["weights_difference"] == pytest.approx(moved(first, second), rel=1e-4)
    assert [row["layer"] for row in record["layers"]] == ["0", "1"]
    assert {row["module"] for row in record["modules"]} >= {"mlp.up_proj", "self_attn.q_proj"}
    assert len(record["matrices"]) == len(weights)


def test_only_the_layer_that_differs_is_said_to(diff: Callable, experts: dict[str, ZVectors]) -> None:
    record = record_of(diff("math", "near", "--json"))
    assert [row["rms_difference"] > 0 for row in record["layers"]] == [False, True]
    result = diff("math", "near")
    assert "1 of 2 layers differ, layer 1 the most" in result.stdout
    q_proj = next(line for line in result.stdout.splitlines() if line.startswith("q_proj  "))
    assert q_proj[-4:-2] == "··"
    assert q_proj[-1] in "░▒▓█"
    assert "numbers are equal" in diff("math", "math@1").stdout


def test_without_the_decomposition_it_says_how_to_get_it(
    diff: Callable, adapted: AdaptedModel, experts: dict[str, ZVectors]
) -> None:
    bases = cache_dir() / "bases"
    assert "A moves the weights by" in diff("math", "story").stdout
    identity = adapted.base.identity
    S = cached_singular_values(identity.weights, adapted.ranks)
    assert S is not None
    for name, layer in adapted.layers.items():
        assert layer.basis is not None
        assert S[name].tolist() == layer.basis.S.tolist()
    assert cached_singular_values("0" * 64, adapted.ranks) is None
    file = next(bases.rglob("*q_proj*.safetensors"))
    whole = file.read_bytes()
    for damaged in (b"", whole[:100], b"\xff" * 200, whole.replace(identity.weights.encode(), b"0" * 64)):
        file.write_bytes(damaged)
        assert cached_singular_values(identity.weights, adapted.ranks) is None
    result = diff("math", "story")
    assert f"effect on the weights: not known here, run t2 decompose {identity.name}" in result.stdout
    assert "W, A" not in result.stdout
    total = record_of(diff("math", "story", "--json"))["total"]
    assert (total["weights_a"], total["weights_difference"]) == (None, None)


def test_experts_of_other_shapes_cannot_be_compared(
    diff: Callable,
    refused: Callable,
    experts: dict[str, ZVectors],
    adapted: AdaptedModel,
    publish: Callable[..., ExpertEntry],
    random_z: Callable[..., ZVectors],
    tmp_path: Path,
) -> None:
    name = next(iter(adapted.ranks))
    publish(tmp_path / "experts", adapted.base.identity, "odd", random_z({name: adapted.ranks[name] + 1}))
    refused(diff("math", "odd"), 4, name, "singular values in the one expert")
    refused(diff("math", "stori"), 3, "did you mean story")


def test_a_picture_is_drawn(diff: Callable, experts: dict[str, ZVectors], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert diff("math", "story", "--plot", tmp_path / "map.png").exit_code == 0
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_it_loads_no_torch(experts: dict[str, ZVectors], base_folder: Callable[[str], Path], tmp_path: Path) -> None:
    options = ["--base", str(base_folder("llama")), "--registry", str(tmp_path / "experts")]
    program = f"""if True:
        import sys
        from typer.testing import CliRunner
        from t2cli.cli.app import app
        result = CliRunner().invoke(app, {["diff", "math", "story", *options]!r})
        assert "moves the weights" in result.stdout, result.output
        print(*sorted({{"torch", "transformers", "matplotlib"}} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
