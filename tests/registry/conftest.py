"""Experts to put into registries: a sound manifest and a z.safetensors written by safetensors itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import safetensors.numpy

from t2cli.registry.local import LocalRegistry
from t2cli.registry.manifest import (
    BaseRecord,
    EvaluationRecord,
    ExpertManifest,
    FingerprintRecord,
    ParentRecord,
    TargetsRecord,
    TrainingRecord,
    ZRecord,
)

WEIGHTS = "3fa91c02be11" + "0" * 52
OTHER_WEIGHTS = "b" * 64
RANKS = {"model.layers.0.mlp.up_proj.weight": 6, "model.layers.0.self_attn.q_proj.weight": 4}


def z_file(ranks: dict[str, int] | None = None, value: float = 1.25) -> bytes:
    """Return a z.safetensors with `value` everywhere, as safetensors writes it."""
    tensors = {name: numpy.full(r, value, dtype=numpy.float32) for name, r in (ranks or RANKS).items()}
    return safetensors.numpy.save(tensors)


def base(weights: str = WEIGHTS, name: str = "tiny") -> BaseRecord:
    fingerprint = FingerprintRecord(weights, {"up_proj": [5.5, 2.0, 0.125], "q_proj": [3.0, 1e-05]})
    return BaseRecord(name, "org/tiny-model", "main", "LlamaForCausalLM", fingerprint)


def sound(name: str = "math", **changes: object) -> ExpertManifest:
    """Return a manifest with every part filled in, that fits `z_file()`."""
    manifest = ExpertManifest(
        name=name,
        version=1,
        kind="expert",
        category="math",
        description="two-digit sums",
        base=base(),
        targets=TargetsRecord("all", len(RANKS), sum(RANKS.values())),
        z=ZRecord("z.safetensors", "0" * 64, "linear", None),
        created="2026-11-23T10:00:00Z",
        training=TrainingRecord(
            task="sums",
            preset="t2",
            config={"learning_rate": 2e-3, "steps": 60, "nested": {"a": [1, None, "x"]}},
            seed=0,
            steps=60,
            seconds=12.5,
            device="cpu",
            versions={"torch": "2.13.0"},
            threads=2,
        ),
        evaluation=(
            EvaluationRecord(
                *("sums", "test", 200, 0.15, 0.42, (0.35, 0.49), 0.27, (0.2, 0.34), 1e-9, 7), *(31.25, 12.5, 40, 0)
            ),
        ),
        parents=(ParentRecord("add@2", "a" * 64, 0.6),),
    )
    return replace(manifest, **changes)  # type: ignore[arg-type]


@pytest.fixture
def manifest() -> ExpertManifest:
    return sound()


@pytest.fixture
def make() -> Callable[..., ExpertManifest]:
    return sound


@pytest.fixture
def z() -> bytes:
    return z_file()


@pytest.fixture
def make_z() -> Callable[..., bytes]:
    return z_file


@pytest.fixture
def other_base() -> BaseRecord:
    return base(OTHER_WEIGHTS, "other")


@pytest.fixture
def registry(tmp_path: Path) -> LocalRegistry:
    return LocalRegistry([tmp_path / "registry"])
