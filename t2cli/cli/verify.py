"""t2 verify: whether experts on disk are whole and are what their manifests say."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from t2cli.cli.completion import expert_names
from t2cli.cli.options import DEFAULT_BASE, Base, Device, Json, Quiet, RegistryPath
from t2cli.cli.output import Output, one_line
from t2cli.errors import CorruptArtifactError, NotFoundError, T2Error, UsageError

if TYPE_CHECKING:
    from t2cli.registry.entry import Slot
    from t2cli.registry.local import LocalRegistry


def verify(
    expert: Annotated[
        str,
        typer.Argument(
            metavar="EXPERT",
            help="NAME (its newest version), NAME@VERSION or NAME@sha256:...",
            show_default=False,
            autocompletion=expert_names,
        ),
    ] = "",
    every: Annotated[bool, typer.Option("--all", help="Every version of every expert.")] = False,
    base: Base = DEFAULT_BASE,
    registry: RegistryPath = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check experts: hashes, schema, finite numbers, shapes, and the base they say they are for.

    Shapes are compared with those of --base for the experts made for it, if it is on this machine.
    Exit code 5 if anything is wrong.
    """
    from t2cli.paths import registry_search_path
    from t2cli.registry.local import LocalRegistry

    if bool(expert) == every:
        raise UsageError("name an expert, or all of them with --all", hint="t2 verify math, or t2 verify --all")
    out = Output(json=json, quiet=quiet)
    entries = LocalRegistry(registry_search_path(registry))
    unreadable: list[T2Error] = []
    slots = entries.slots(problems=unreadable) if every else named(entries, expert)
    check = _base_check(base)
    found = [(slot, check(slot)) for slot in slots]
    found = [(slot, problems) for slot, problems in found if not problems or os.path.lexists(slot.path)]
    if not found and not every:
        raise NotFoundError(f"{expert} was removed by another process", hint="see: t2 list")
    _report(out, found, unreadable)
    if bad := sum(bool(problems) for _, problems in found) + len(unreadable):
        raise CorruptArtifactError(
            f"{bad} of {len(found) + len(unreadable)} are not sound",
            hint="restore them from a copy, or remove them with t2 rm and train or fetch them again",
        )


def _report(out: Output, found: Sequence[tuple[Slot, list[str]]], unreadable: Sequence[T2Error]) -> None:
    results = [
        {"ref": slot.reference, "ok": not problems, "problems": problems, "path": str(slot.path)}
        for slot, problems in found
    ]
    out.emit("verify", {"results": results})
    for slot, problems in found:
        out.data(one_line(f"{'bad' if problems else 'ok'} {slot.reference} ({slot.base})"))
        for problem in problems:
            out.data(f"    {one_line(problem)}")
    for error in unreadable:
        out.warn(str(error))


def named(registry: LocalRegistry, expert: str) -> list[Slot]:
    """Return the places that a reference means, damaged or not: of a name the newest version for each base.

    Raises NotFoundError if there is none.
    """
    from t2cli.registry.reference import ExpertRef

    ref = ExpertRef.parse(expert)
    if ref.digest is not None or ref.repo is not None:
        return [entry.slot for entry in registry.find_each(ref)]
    newest: dict[str, Slot] = {}
    for slot in registry.candidates(ref):
        newest.setdefault(slot.base, slot)
    if not newest:
        registry.find(ref)  # says which versions there are
    return list(newest.values())


def _base_check(base: str) -> Callable[[Slot], list[str]]:
    """Return a function that gives the problems of a place; shapes only where they are known without fetching."""
    from t2cli.models.catalog import known_folder, read_identity
    from t2cli.registry.checks import misfit, problems_at
    from t2cli.registry.entry import read_entry

    folder = known_folder(base)
    identity = read_identity(folder) if folder is not None else None
    ranks: dict[str, int] = {}

    def problems(slot: Slot) -> list[str]:
        found = problems_at(slot)
        if found or identity is None or folder is None or not slot.is_for(identity.fingerprint.weights):
            return found
        if not ranks:
            from t2cli.models.targets import checkpoint_targets  # takes seconds: it loads transformers

            ranks.update({target.weight: target.rank for target in checkpoint_targets(folder)})
        try:
            wrong = misfit(read_entry(slot, ""), ranks, base)
        except T2Error as error:
            wrong = error.message
        return [wrong] if wrong else []

    return problems
