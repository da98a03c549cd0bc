"""t2 import: experts from a bundle, or from the files of the paper's own code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t2cli.cli.options import DEFAULT_BASE, Base, Device, Json, Quiet, RegistryPath
from t2cli.cli.output import Output
from t2cli.errors import CorruptArtifactError, NotFoundError, UsageError

if TYPE_CHECKING:
    from t2cli.models.identity import BaseIdentity
    from t2cli.registry.intake import Taken
    from t2cli.registry.local import LocalRegistry
    from t2cli.registry.manifest import ExpertManifest
    from t2cli.svf.zvector import ZVectors


def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A bundle, policy_params.pt or learnable_params.pt.")],
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="The expert's name, for a file of the paper's code.")
    ] = "",
    category: Annotated[
        str, typer.Option("--category", metavar="NAME", help="What it is for.", show_default="its name")
    ] = "",
    base: Base = DEFAULT_BASE,
    registry: RegistryPath = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Import experts: a bundle that t2 export wrote, or a file of the Transformer-Squared code.

    A bundle's experts keep their version and digest. Where a version is another expert here, nothing is written.
    The paper's files hold numbers without names: --base must be the model that they were trained on.
    """
    from t2cli.export.bundle import is_bundle
    from t2cli.paths import registry_search_path
    from t2cli.registry.local import LocalRegistry

    out = Output(json=json, quiet=quiet)
    path = file.expanduser()
    if not path.is_file():
        what = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        raise NotFoundError(what, hint="give a bundle, policy_params.pt or learnable_params.pt")
    entries = LocalRegistry(registry_search_path(registry))
    if is_bundle(path):
        if name or category:
            raise UsageError(
                f"{path} is a bundle, whose experts have names and categories", hint="leave out --name and --category"
            )
        _import_bundle(out, entries, path)
        return
    from t2cli.export.reference_checkpoint import is_checkpoint

    if not is_checkpoint(path):
        raise CorruptArtifactError(
            f"{path} is neither a bundle nor a file of the paper's code", hint="give what t2 export --to bundle wrote"
        )
    _import_reference(out, entries, path, name, category or name, base, device)


def _import_bundle(out: Output, registry: LocalRegistry, path: Path) -> None:
    from t2cli.export.bundle import import_bundle

    done = import_bundle(registry, path)
    records: list[dict[str, object]] = []
    for bundled, taken in done:
        records.append({**_record(taken), "asked": bundled.asked})
        out.data(_line(taken))
    out.emit("import", {"from": "bundle", "experts": records})


def _import_reference(
    out: Output, registry: LocalRegistry, path: Path, name: str, category: str, base: str, device: str
) -> None:
    from t2cli.export.reference_checkpoint import convert
    from t2cli.models.base import resolve_device
    from t2cli.models.catalog import locate
    from t2cli.models.identity import identify
    from t2cli.registry.intake import Taken
    from t2cli.registry.reference import check_new_name
    from t2cli.registry.vectors import z_to_bytes

    if not name:
        raise UsageError(f"{path} does not say what its expert is called", hint="give it a name with --name")
    check_new_name(name)
    files = locate(base, quiet=out.quiet)
    identity = identify(files, quiet=out.quiet)
    z = convert(path, files, identity, device=str(resolve_device(device)), quiet=out.quiet)
    entry = registry.put(_manifest(identity, z, name, category, path.name), z_to_bytes(z))
    out.data(_line(Taken(entry, True)))
    out.emit("import", {"from": "reference", "experts": [{**_record(Taken(entry, True)), "asked": True}]})


def _manifest(identity: BaseIdentity, z: ZVectors, name: str, category: str, file: str) -> ExpertManifest:
    from t2cli.registry.manifest import (
        BaseRecord,
        ExpertManifest,
        FingerprintRecord,
        TargetsRecord,
        ZRecord,
        timestamp,
    )

    fingerprint = FingerprintRecord(identity.weights, {}, identity.probes)
    printable = "".join(character if character.isprintable() else "?" for character in file)[:200]
    return ExpertManifest(
        name=name,
        version=1,  # the registry assigns the real one
        kind="expert",
        category=category,
        description=f"from {printable} of the paper's code, its sigmoid values as an effective z",
        base=BaseRecord(identity.name, identity.source, identity.revision, identity.architecture, fingerprint),
        targets=TargetsRecord("mlp", len(z), z.parameters),
        z=ZRecord("z.safetensors", "0" * 64, "linear"),
        created=timestamp(),
    )


def _record(taken: Taken) -> dict[str, object]:
    entry = taken.entry
    place = {"digest": entry.digest, "path": str(entry.path), "base": entry.manifest.base.folder}
    return {"expert": entry.reference, **place, "new": taken.new}


def _line(taken: Taken) -> str:
    here = "" if taken.new else " (is here already)"
    return f"{taken.entry.reference} for {taken.entry.manifest.base.folder}{here}"
