"""t2 rm: delete versions of experts from the registry that is written to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from t2cli.cli.completion import expert_names
from t2cli.cli.options import Device, Json, OnlyBase, Quiet, RegistryPath
from t2cli.cli.output import Output, one_line, write_stderr
from t2cli.errors import UsageError

if TYPE_CHECKING:
    from t2cli.registry.entry import Slot


def rm(
    experts: Annotated[
        list[str],
        typer.Argument(
            metavar="EXPERT", help="What to remove: NAME@VERSION, or NAME if it has one.", autocompletion=expert_names
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    base: OnlyBase = "",
    registry: RegistryPath = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove versions of experts. Their numbers are not used again.

    At a terminal it asks first. A name alone is enough where only one version fits; --base chooses
    between experts of the same name for several bases. Mixes made from an expert go on working.
    """
    from t2cli.paths import registry_search_path
    from t2cli.registry.local import LocalRegistry

    out = Output(json=json, quiet=quiet)
    entries = LocalRegistry(registry_search_path(registry))
    doomed = list(dict.fromkeys(entries.removable(expert, among=lambda slot: _fits(slot, base)) for expert in experts))
    if not yes and sys.stdin is not None and sys.stdin.isatty():
        _confirm(doomed)
    for slot in doomed:
        entries.remove_at(slot)
        out.say(f"removed {slot.reference} ({slot.base})")
    out.emit("rm", {"removed": [{"ref": slot.reference, "path": str(slot.path)} for slot in doomed]})


def _fits(slot: Slot, base: str) -> bool:
    """Tell whether a place is for `base`, as --base has it: "" is any."""
    from t2cli.models.catalog import known_digest
    from t2cli.registry.resolve import is_base

    if not base or is_base(slot, base):
        return True
    digest = known_digest(base)
    return digest is not None and slot.is_for(digest)


def _confirm(doomed: list[Slot]) -> None:
    """Ask at the terminal; raise UsageError unless the answer is yes."""
    for slot in doomed:
        write_stderr(one_line(f"{slot.reference}  {slot.path}"))
    sys.stderr.write("remove? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was removed", hint="answer y, or pass --yes")
