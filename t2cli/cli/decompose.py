"""t2 decompose: the bases of a model's weights, made once."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from t2cli.cli.options import DEFAULT_BASE, Device, Json, Quiet, RegistryPath
from t2cli.cli.output import Output
from t2cli.errors import UsageError

BasisDtype = Annotated[
    Literal["float32", "bfloat16"],
    typer.Option(
        "--basis-dtype",
        help="How the matrices are kept: bfloat16 takes half the disk and memory, and what an expert changes is then "
        "off by about 0.24 % (float32: 0.00005 %).",
    ),
]


def decompose(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="Base model: a name, a Hub id or a local folder.", show_default=True)
    ] = DEFAULT_BASE,
    base_option: Annotated[str, typer.Option("--base", metavar="NAME", help="The same as the argument.")] = "",
    targets: Annotated[
        Literal["all", "mlp", "attention"], typer.Option("--targets", help="Which linear layers.")
    ] = "all",
    basis_dtype: BasisDtype = "float32",
    registry: RegistryPath = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Decompose a base model's weights; done once, and by other commands when they need it.

    Writes one orthogonal matrix per linear layer to the cache. What is there already is used, so it may be stopped
    and run again, and several at once share the work. Where both precisions are there, float32 is used.
    """
    from t2cli.cli.memory import peak_memory_bytes
    from t2cli.config import DecomposeConfig
    from t2cli.models.base import resolve_device
    from t2cli.models.basis_cache import decompose as make_bases
    from t2cli.models.catalog import locate
    from t2cli.models.identity import identify

    out = Output(json=json, quiet=quiet)
    where = str(resolve_device(device))
    if base_option and base not in (base_option, DEFAULT_BASE):
        raise UsageError(f"two bases are named, {base} and {base_option}", hint="name one")
    files = locate(base_option or base, quiet=quiet)
    identity = identify(files, quiet=quiet)
    done = make_bases(files, identity, DecomposeConfig(targets, where, basis_dtype), quiet=quiet, asked=True)
    out.emit(
        "decompose",
        {
            "base": identity.name,
            "fingerprint": identity.weights,
            "targets": done.targets,
            "parameters": done.parameters,
            "basis_dtype": done.dtype,
            "seconds": round(done.seconds, 3),
            "peak_memory_bytes": peak_memory_bytes(),
            "cached": done.computed == 0,
            "path": str(done.folder),
        },
    )
    made = "all in the cache" if done.computed == 0 else f"{done.computed} made in {done.seconds:.1f} s"
    out.data(f"{identity.folder_name}: {done.targets} matrices, {done.parameters:,} singular values, {made}")
