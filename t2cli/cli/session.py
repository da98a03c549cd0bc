"""What the commands that run a model share: open it, and find the registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2cli.models.adapted import AdaptedModel


def search_path(registry: Path | None) -> list[Path]:
    """Return the folders of --registry, or those of the environment."""
    from t2cli.paths import registry_search_path

    return registry_search_path(registry)


def open_model(base: str, *, device: str, selection: str = "all", quiet: bool = False) -> AdaptedModel:
    """Load a base and make its targets adaptable; no expert is in use yet."""
    from t2cli.models.adapted import AdaptedModel
    from t2cli.models.base import load_base

    return AdaptedModel(load_base(base, device=device, quiet=quiet), selection)
