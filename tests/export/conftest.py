"""Experts for tiny bases, as an export reads them, and a bundle of experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import parents, put

from t2cli.export.bundle import write_bundle
from t2cli.export.source import Source
from t2cli.models.base import BaseModel
from t2cli.models.targets import find_targets
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.vectors import read_z
from t2cli.svf.zvector import ZVectors


@pytest.fixture
def source(
    tmp_path: Path,
    load: Callable[[str], BaseModel],
    publish: Callable[..., ExpertEntry],
    random_z: Callable[..., ZVectors],
) -> Callable[..., Source]:
    """Return a function that publishes an expert for a tiny base, or for the model in a folder, with random z."""

    def make(variant: str = "llama", selection: str = "all", z: ZVectors | None = None) -> Source:
        base = load(variant)
        ranks = {target.weight: target.rank for target in find_targets(base.model, selection)}
        entry = publish(tmp_path / "experts", base.identity, "math", z or random_z(ranks))
        return Source(base.files, base.identity, entry.manifest, entry.digest, read_z(entry))

    return make


@pytest.fixture
def here(tmp_path: Path) -> LocalRegistry:
    """Return a registry with two experts, a mix of them, and a mix of that mix."""
    registry = LocalRegistry([tmp_path / "here"])
    math, code = put(registry, "math"), put(registry, "code")
    both = put(registry, "both", kind="mix", parents=parents(math, code))
    put(registry, "more", kind="mix", parents=parents(both, math))
    return registry


@pytest.fixture
def there(tmp_path: Path) -> LocalRegistry:
    return LocalRegistry([tmp_path / "there"])


@pytest.fixture
def bundle(here: LocalRegistry, tmp_path: Path) -> Path:
    write_bundle(here, [here.find("more")], tmp_path / "more.t2")
    return tmp_path / "more.t2"
