"""Folders of bases, as the tests make them."""

from __future__ import annotations

from pathlib import Path

from t2cli.config import DecomposeConfig
from t2cli.models.basis_cache import (
    Decomposition,
    decompose,
)
from t2cli.models.catalog import BaseFiles, locate
from t2cli.models.identity import BaseIdentity, identify
from t2cli.models.targets import Target, checkpoint_targets


def located(folder: Path) -> tuple[BaseFiles, BaseIdentity, list[Target]]:
    files = locate(str(folder))
    return files, identify(files, quiet=True), checkpoint_targets(files.folder)


def run(folder: Path, selection: str = "all") -> Decomposition:
    files, identity, _ = located(folder)
    return decompose(files, identity, DecomposeConfig(selection=selection), quiet=True)


def bases_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.safetensors"))
