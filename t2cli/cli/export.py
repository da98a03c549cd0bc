"""t2 export: an expert as a LoRA adapter, as a plain checkpoint, or in a bundle for another machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from t2cli.cli.completion import expert_names
from t2cli.cli.options import DEFAULT_BASE, AllowForeign, Base, Device, Json, Quiet, RegistryPath
from t2cli.cli.output import Output, table
from t2cli.errors import UsageError

if TYPE_CHECKING:
    from t2cli.export.lora import LoraExport
    from t2cli.export.source import Source

Form = Literal["lora", "merged", "bundle"]
Precision = Literal["stored", "float32", "float16", "bfloat16"]

SPECIAL = {"lora": ("rank", "keep"), "merged": ("dtype", "max-shard-size"), "bundle": ()}  # options of one form only
KEEP = 0.99
SHARD = "5GB"


Experts = Annotated[
    list[str],
    typer.Argument(metavar="EXPERT", help="An expert; a bundle takes several.", autocompletion=expert_names),
]


def export(
    experts: Experts,
    to: Annotated[Form, typer.Option("--to", help="A PEFT adapter, a transformers checkpoint, or a file of experts.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PATH", help="New folder, or file of a bundle: else the last argument."),
    ] = None,
    rank: Annotated[
        str | None, typer.Option("--rank", metavar="N|auto", help="Rank of the LoRA.", show_default="auto")
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option("--keep", metavar="SHARE", help="With --rank auto: of each layer's change.", show_default="0.99"),
    ] = None,
    dtype: Annotated[
        Precision | None, typer.Option("--dtype", help="Precision of the checkpoint.", show_default="stored")
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option("--max-shard-size", metavar="SIZE", help="Of its files.", show_default=SHARD)
    ] = None,
    allow_foreign: AllowForeign = False,
    base: Base = DEFAULT_BASE,
    registry: RegistryPath = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export an expert to other programs or another machine.

    lora: an adapter that PEFT loads, the best there is of its rank; says how much of each layer's change it keeps.
    merged: the base with the expert folded in, as transformers saves it. bundle: one file for t2 import, with the
    parents of mixes.
    """
    out = Output(json=json, quiet=quiet)
    given = {"rank": rank, "keep": keep, "dtype": dtype, "max-shard-size": max_shard_size}
    _check_options(to, {name for name, value in given.items() if value is not None})
    names, path = _places(experts, to, output)
    if to == "bundle":
        _export_bundle(out, names, path, base, registry)
        return
    from t2cli.export.shards import parse_size

    width, share, shard_bytes = _rank(rank, keep), _share(keep), parse_size(max_shard_size or SHARD)
    source = _source(out, names[0], base, registry, allow_foreign=allow_foreign)
    if to == "lora":
        _export_lora(out, source, path, width, share, device)
    else:
        _export_merged(out, source, path, shard_bytes, dtype or "stored", device)


def _check_options(to: Form, given: set[str]) -> None:
    if wrong := sorted(given - set(SPECIAL[to])):
        owner = next(form for form, options in SPECIAL.items() if wrong[0] in options)
        raise UsageError(f"--{wrong[0]} is for --to {owner}, not for {to}", hint="leave it out")


def _places(experts: list[str], to: Form, output: Path | None) -> tuple[list[str], Path]:
    """Return the experts and where to write; a bundle's file may be the last argument."""
    if output is None and to == "bundle" and len(experts) > 1:
        return experts[:-1], Path(experts[-1]).expanduser()
    if output is None:
        raise UsageError("it is not said where to write", hint="give a new folder or file with -o PATH")
    if to != "bundle" and len(experts) > 1:
        raise UsageError(f"--to {to} takes one expert", hint="t2 mix makes one of several; a bundle takes them all")
    return experts, output.expanduser()


def _rank(rank: str | None, keep: float | None) -> int | None:
    """Return the rank that was asked for, None for auto."""
    if rank is None or rank == "auto":
        return None
    if not rank.isascii() or not rank.isdecimal() or not 1 <= int(rank[:9]) <= 10**6:
        raise UsageError(f"{rank!r} is no rank", hint="give a number such as 16, or auto")
    if keep is not None:
        raise UsageError("--keep is for --rank auto, which chooses the ranks by it", hint="give one of the two")
    return int(rank[:9])


def _share(keep: float | None) -> float:
    if keep is not None and not 0 < keep <= 1:
        raise UsageError(f"{keep:g} of a change cannot be kept", hint="give a share above 0, up to 1")
    return KEEP if keep is None else keep


def _source(out: Output, expert: str, base: str, registry: Path | None, *, allow_foreign: bool) -> Source:
    """Return the expert and the base to export it for."""
    from t2cli.cli.session import for_base
    from t2cli.export.source import Source
    from t2cli.models.catalog import locate
    from t2cli.models.identity import identify
    from t2cli.paths import registry_search_path
    from t2cli.registry.local import LocalRegistry
    from t2cli.registry.resolve import Resolver
    from t2cli.registry.vectors import read_z

    resolver = Resolver(
        LocalRegistry(registry_search_path(registry)), for_base(base, out.quiet), allow_foreign=allow_foreign
    )
    entry = resolver.find(expert)
    for warning in resolver.warnings:
        out.warn(warning)
    z = read_z(entry)
    files = locate(base, quiet=out.quiet)
    return Source(files, identify(files, quiet=out.quiet), entry.manifest, entry.digest, z)


def _export_lora(out: Output, source: Source, path: Path, rank: int | None, keep: float, device: str) -> None:
    from dataclasses import asdict

    from t2cli.export.lora import export_lora
    from t2cli.models.base import resolve_device

    where = str(resolve_device(device))
    made = export_lora(source, path, rank=rank, keep=keep, device=where, quiet=out.quiet)
    layers = [{key: value for key, value in asdict(layer).items() if key != "energy"} for layer in made.layers]
    fields = {"parameters": made.parameters, "kept": made.kept, "error": made.error, "layers": layers}
    out.emit("export", {**_common(source, "lora", path), **fields})
    if 2 * made.parameters > made.adapted:
        out.say(
            f"the adapter has {made.parameters / made.adapted:.0%} as many numbers as the matrices it adapts: "
            "--to merged gives all of the change at no cost in speed"
        )
    out.data(_layer_table(made))
    out.data(
        f"{path}: {source.reference} as a LoRA of {made.parameters:,} numbers, {100 * made.kept:.2f} % of the change "
        f"kept, relative error {made.error:.4f}"
    )


def _layer_table(made: LoraExport) -> str:
    from t2cli.registry.compare import in_order

    rows = [
        [layer.name.removesuffix(".weight"), str(layer.rank), f"{100 * layer.kept:.2f} %", f"{layer.error:.4f}"]
        for layer in sorted(made.layers, key=lambda layer: in_order(layer.name))
    ]
    return table(("MATRIX", "RANK", "KEPT", "ERROR"), rows, right=(1, 2, 3))


def _export_merged(out: Output, source: Source, path: Path, shard_bytes: int, dtype: Precision, device: str) -> None:
    from t2cli.export.merged import export_merged
    from t2cli.models.base import resolve_device
    from t2cli.models.basis_plan import in_bytes

    where = str(resolve_device(device))
    made = export_merged(source, path, max_shard_bytes=shard_bytes, dtype=dtype, device=where, quiet=out.quiet)
    fields = {"dtype": dtype, "shards": list(made.shards), "bytes": made.bytes, "targets": made.targets}
    out.emit("export", {**_common(source, "merged", path), **fields})
    files = "1 file" if len(made.shards) == 1 else f"{len(made.shards)} files"
    out.data(
        f"{path}: {source.identity.name} with {source.reference} folded into {made.targets} of {made.tensors} tensors, "
        f"{in_bytes(made.bytes)} in {files}"
    )


def _common(source: Source, to: Form, path: Path) -> dict[str, object]:
    base = {"base": source.identity.name, "fingerprint": source.identity.weights}
    return {"to": to, "expert": source.reference, "digest": source.digest, **base, "path": str(path)}


def _export_bundle(out: Output, names: list[str], path: Path, base: str, registry: Path | None) -> None:
    from dataclasses import asdict

    from t2cli.export.bundle import write_bundle
    from t2cli.models.catalog import known_fingerprint
    from t2cli.paths import registry_search_path
    from t2cli.registry.local import LocalRegistry
    from t2cli.registry.resolve import shown

    entries, known = LocalRegistry(registry_search_path(registry)), known_fingerprint(base)
    asked = {entry.digest: entry for entry, _ in (shown(entries, name, known) for name in names)}
    made = write_bundle(entries, list(asked.values()), path)
    for reference in made.missing:
        out.warn(f"{reference}, which a mix in it was made from, is not here or damaged, and so not in the bundle")
    out.emit(
        "export",
        {
            "to": "bundle",
            "experts": [asdict(expert) for expert in made.experts],
            "missing": list(made.missing),
            "path": str(path),
            "bytes": made.bytes,
            "sha256": made.sha256,
        },
    )
    for expert in made.experts:
        out.data(expert.path + ("" if expert.asked else "  (a mix in it was made from this)"))
    out.data(f"{path}: {made.bytes:,} bytes, SHA-256 {made.sha256}")
