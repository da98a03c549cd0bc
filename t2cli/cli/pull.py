"""t2 pull: copy experts from the Hugging Face Hub into the registry."""

from __future__ import annotations

from typing import Annotated

import typer

from t2cli.cli.options import DEFAULT_BASE, Base, Device, Json, Quiet, RegistryPath
from t2cli.cli.output import Output


def pull(
    source: Annotated[
        str,
        typer.Argument(metavar="ORG/REPO[@REV][/EXPERT]", help="A repository, a revision of it, one expert of it."),
    ],
    every: Annotated[bool, typer.Option("--all", help="Every version instead of the newest of each expert.")] = False,
    base: Base = DEFAULT_BASE,
    registry: RegistryPath = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Copy experts from the Hub into the registry.

    An expert keeps its version and its digest, and appears when it is complete and its hashes are
    checked. Where its version is another expert here, nothing is written. An expert can also be used
    without this, by its reference: t2 chat --expert hf://ORG/REPO/NAME@2.
    """
    from t2cli.cli.progress import paused, progress
    from t2cli.paths import registry_search_path
    from t2cli.registry.hub import HubSource
    from t2cli.registry.hub import pull as fetch
    from t2cli.registry.hub_client import HubRepo
    from t2cli.registry.local import LocalRegistry

    out = Output(json=json, quiet=quiet)
    wanted = HubSource.parse(source)
    entries = LocalRegistry(registry_search_path(registry))
    records: list[dict[str, object]] = []
    commit = ""
    with progress("pull", in_bytes=True, quiet=quiet) as bar:
        repo = HubRepo(wanted.repo, received=bar.advance)
        for pulled in fetch(repo, wanted, entries, every=every, expect=bar.expect):
            entry, commit = pulled.entry, pulled.commit
            with paused():  # both may be the same terminal
                out.data(entry.reference)
            out.say(f"{'fetched' if pulled.new else 'was here already'}: {entry.reference} in {entry.path}")
            records.append(
                {
                    "expert": entry.reference,
                    "base": entry.manifest.base.folder,
                    "digest": entry.digest,
                    "path": str(entry.path),
                    "pulled": pulled.new,
                }
            )
    out.emit("pull", {"repo": wanted.repo, "revision": wanted.revision, "commit": commit, "experts": records})
