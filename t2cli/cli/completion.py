"""What the shell completes: names of experts, tasks and bases. From the names of folders alone, and never an error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from t2cli.registry.entry import Slot
    from t2cli.registry.local import LocalRegistry


def expert_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the experts of the registry in use whose name begins so; with an @, their versions."""
    slots = _slots(ctx)
    if "@" in incomplete:
        return _beginning(incomplete, (slot.reference for slot in slots))
    return _beginning(incomplete, (slot.name for slot in slots))


def base_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the named bases, and those that experts are there for, whose name begins so."""
    from t2cli.models.catalog import CATALOG

    return _beginning(incomplete, [*CATALOG, *(slot.base.rpartition("-")[0] for slot in _slots(ctx))])


def task_names(incomplete: str) -> list[str]:
    """Return the built-in tasks whose name begins so."""
    from t2cli.tasks.base import task_names as built_in

    return _beginning(incomplete, built_in())


def category_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the categories of experts that begin so."""
    from t2cli.registry.listing import remembered

    return _beginning(incomplete, (entry.manifest.category for entry in remembered(_registry(ctx))))


def _registry(ctx: typer.Context) -> LocalRegistry:
    from t2cli.paths import registry_search_path
    from t2cli.registry.local import LocalRegistry

    return LocalRegistry(registry_search_path(ctx.params.get("registry")))


def _slots(ctx: typer.Context) -> list[Slot]:
    return _registry(ctx).slots()


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})
