"""t2 copy: an expert under another name, or in another registry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from t2cli.cli.completion import expert_names
from t2cli.cli.options import DEFAULT_BASE, Base, Device, Json, Quiet, RegistryPath
from t2cli.cli.output import Output
from t2cli.errors import UsageError


def copy(
    expert: Annotated[str, typer.Argument(metavar="EXPERT", help="What to copy.", autocompletion=expert_names)],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The copy's name.", show_default="the same")] = "",
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="PATH", help="Another registry's folder.", show_default="the one written to"),
    ] = None,
    base: Base = DEFAULT_BASE,
    registry: RegistryPath = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Copy an expert under a new name, or into another registry.

    The copy has the same numbers and evaluation, the next free version of its name, and names what
    it was copied from as its parent.
    """
    from t2cli.models.catalog import known_fingerprint
    from t2cli.paths import expanded, registry_search_path
    from t2cli.registry.local import LocalRegistry
    from t2cli.registry.manifest import ParentRecord, timestamp
    from t2cli.registry.reference import check_new_name
    from t2cli.registry.resolve import shown

    if not name and to is None:
        raise UsageError("a copy needs a new name or another registry", hint="t2 copy EXPERT NAME, or add --to PATH")
    if name:
        check_new_name(name)
    out = Output(json=json, quiet=quiet)
    entries = LocalRegistry(registry_search_path(registry))
    source, _ = shown(entries, expert, known_fingerprint(base))
    parent = ParentRecord(source.reference, source.digest, 1.0)
    manifest = replace(source.manifest, name=name or source.manifest.name, created=timestamp(), parents=(parent,))
    target = entries if to is None else LocalRegistry([expanded(to)])
    made = target.put(manifest, source.z_bytes())
    parents = [{"ref": parent.ref, "digest": parent.digest, "alpha": parent.alpha}]
    out.emit("copy", {"expert": made.reference, "digest": made.digest, "path": str(made.path), "parents": parents})
    out.data(f"{made.reference} is a copy of {source.reference}: {made.path}")
