"""t2 push: publish an expert on the Hugging Face Hub."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from t2cli.cli.completion import expert_names
from t2cli.cli.options import DEFAULT_BASE, Base, Device, Json, Quiet, RegistryPath
from t2cli.cli.output import Output
from t2cli.errors import UsageError

Expert = Annotated[
    str,
    typer.Argument(
        metavar="EXPERT", help="An expert: NAME, NAME@VERSION or NAME@sha256:...", autocompletion=expert_names
    ),
]


def push(
    expert: Expert,
    repo: Annotated[str, typer.Argument(metavar="ORG/REPO", help="A repository on the Hub; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    license_id: Annotated[
        str, typer.Option("--license", metavar="ID", help="License in the model card, as in apache-2.0.")
    ] = "",
    base: Base = DEFAULT_BASE,
    registry: RegistryPath = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Publish an expert on the Hub: one commit and a tag.

    A repository may hold many experts, of several bases. Its model card is made from all of them; text of
    your own in it stays. The same expert again changes nothing, and a published version is never replaced.
    HF_TOKEN (or hf auth login) says who you are, HF_ENDPOINT which Hub.
    """
    from t2cli.models.catalog import hub_bars, known_fingerprint
    from t2cli.paths import registry_search_path
    from t2cli.registry.hub_client import HubRepo
    from t2cli.registry.hub_push import push as publish
    from t2cli.registry.local import LocalRegistry
    from t2cli.registry.resolve import shown

    out = Output(json=json, quiet=quiet)
    target = _repository(repo)
    entries = LocalRegistry(registry_search_path(registry))
    entry, _ = shown(entries, expert, known_fingerprint(base))
    with hub_bars(show=not quiet and sys.stderr is not None and sys.stderr.isatty()):
        done = publish(entry, HubRepo(target), entries, private=private, license_id=license_id)
    manifest = entry.manifest
    reference = f"hf://{target}/{manifest.name}@{manifest.version}"
    out.emit(
        "push",
        {
            "expert": entry.reference,
            "digest": entry.digest,
            "repo": target,
            "ref": reference,
            "commit": done.commit,
            "tag": done.tag,
            "pushed": done.new,
        },
    )
    out.data(reference)
    state = "published" if done.new else "was published before, nothing changed"
    out.say(f"{state}: {entry.reference} for {manifest.base.folder}, tag {done.tag}, commit {done.commit[:12]}")


def _repository(text: str) -> str:
    """Return the repository that an argument names; UsageError if it names more, or none."""
    from t2cli.registry.hub import HubSource

    source = HubSource.parse(text)
    if source.expert is not None or source.revision is not None:
        raise UsageError(f"{text} is no repository", hint="write it as ORG/REPO: name and version are the expert's own")
    return source.repo
