"""What the dispatch tests share: a registry of experts for a tiny base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from t2cli.dispatch.two_pass import TwoPass
from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.svf.zvector import ZVectors


@pytest.fixture
def adapted(adapt: Callable[..., AdaptedModel]) -> AdaptedModel:
    """Return a tiny base."""
    return adapt("llama")


@pytest.fixture
def put(
    tmp_path: Path, adapted: AdaptedModel, publish: Callable[..., ExpertEntry], random_z: Callable[..., ZVectors]
) -> Callable[..., ExpertEntry]:
    """Return a function that puts an expert for the tiny base into the test's registry."""

    def make(name: str, *, seed: int = 0, sigma: float = 0.5, **fields: object) -> ExpertEntry:
        z = random_z(adapted.ranks, seed=seed, sigma=sigma)
        return publish(tmp_path / "experts", adapted.base.identity, name, z, **fields)

    return make


@pytest.fixture
def two_pass(tmp_path: Path, adapted: AdaptedModel) -> TwoPass:
    """Return two-pass inference over the test's registry."""
    return TwoPass(adapted, LocalRegistry([tmp_path / "experts"]), quiet=True)
