"""What t2 train left behind."""

from __future__ import annotations

from pathlib import Path

from t2cli.paths import t2_home
from t2cli.registry.local import ExpertEntry, LocalRegistry

FAST = ("--steps", "10", "--learning-rate", "0.03")


def published() -> list[ExpertEntry]:
    """Return the experts of the test's own registry; others come with t2."""
    return LocalRegistry([t2_home() / "registry"]).list()


def runs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "home" / "runs").glob("*/*/*"))
