"""What the commands that run a model share: open it, and find its experts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2cli.dispatch.two_pass import TwoPass
    from t2cli.models.adapted import AdaptedModel
    from t2cli.registry.resolve import ForBase


def for_base(base: str, quiet: bool) -> ForBase:
    """Return the base to find experts for; its files are read only where its digest or relation is not known."""
    from t2cli.models.catalog import known_digest, locate, short_name
    from t2cli.models.identity import identify
    from t2cli.models.targets import checkpoint_targets
    from t2cli.registry.resolve import ForBase

    digest = known_digest(base) or identify(locate(base, quiet=quiet), quiet=quiet).weights
    return ForBase(
        f"{short_name(Path(base).name)}-{digest[:12]}",
        digest,
        probes=lambda: identify(locate(base, quiet=quiet), quiet=quiet).probes,
        ranks=lambda: {target.weight: target.rank for target in checkpoint_targets(locate(base, quiet=quiet).folder)},
    )


def open_model(base: str, *, device: str, selection: str = "all", quiet: bool = False) -> AdaptedModel:
    """Load a base and make its targets adaptable; no expert is in use yet."""
    from t2cli.models.adapted import AdaptedModel
    from t2cli.models.base import load_base

    return AdaptedModel(load_base(base, device=device, quiet=quiet), selection)


def open_two_pass(base: str, registry: Path | None, *, device: str, allow_foreign: bool, quiet: bool) -> TwoPass:
    """Load a base and make it answer with the experts of the registry."""
    from t2cli.dispatch.two_pass import TwoPass
    from t2cli.paths import registry_search_path
    from t2cli.registry.local import LocalRegistry

    entries = LocalRegistry(registry_search_path(registry))
    return TwoPass(open_model(base, device=device, quiet=quiet), entries, quiet=quiet, allow_foreign=allow_foreign)
