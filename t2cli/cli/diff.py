"""t2 diff: how two experts differ, from their numbers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from t2cli.cli.completion import expert_names
from t2cli.cli.heatmap import heat_map, save_picture
from t2cli.cli.options import DEFAULT_BASE, Base, Device, Json, Plot, Quiet, RegistryPath
from t2cli.cli.output import Output, one_line, table
from t2cli.cli.pictures import check_picture

if TYPE_CHECKING:
    from t2cli.registry.compare import Comparison, Figures, Vectors
    from t2cli.registry.local import ExpertEntry

HEADER = ("RMS A", "RMS B", "RMS A-B", "COSINE")
ON_WEIGHTS = ("W, A", "W, B", "W, A-B")


def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="An expert.", autocompletion=expert_names)],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.", autocompletion=expert_names)],
    plot: Plot = None,
    base: Base = DEFAULT_BASE,
    registry: RegistryPath = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare two experts: where in the model they differ, and how alike their directions are.

    RMS is the root mean square of z - 1, and of the difference of both; the cosine is that of both
    z - 1. The columns W say how far the weights move, relative to the base's, if its decomposition
    is on this machine.
    """
    from t2cli.models.catalog import known_fingerprint
    from t2cli.paths import registry_search_path
    from t2cli.registry.compare import compare, grid, shifts
    from t2cli.registry.local import LocalRegistry
    from t2cli.registry.resolve import shown
    from t2cli.registry.zfile import read_arrays

    check_picture(plot)
    out = Output(json=json, quiet=quiet)
    entries, known = LocalRegistry(registry_search_path(registry)), known_fingerprint(base)
    pair = [shown(entries, expert, known)[0] for expert in (first, second)]
    z_a, z_b = (read_arrays(entry.z_bytes(), str(entry.path)) for entry in pair)
    moved = shifts(z_a, z_b)
    found = compare(moved, _singular_values(pair, z_a, z_b))
    out.emit("diff", _record(pair, found))
    differences = grid({weight: a - b for weight, (a, b) in moved.items()})
    for line in _lines(pair, found):
        out.data(one_line(line))
    for what, rows in (("MODULE", found.modules), ("SINGULAR VALUES", found.bands)):
        out.data("\n" + _table(what, rows))
    out.data("\nroot mean square of A - B")
    for line in heat_map(differences):
        out.data(line)
    if plot is not None:
        save_picture(differences, plot, " - ".join(entry.reference for entry in pair))
        out.say(f"wrote {plot}")


def _singular_values(pair: list[ExpertEntry], z_a: Vectors, z_b: Vectors) -> Vectors | None:
    """Return S of every matrix that one of the two adapts, None if it is not here or the bases differ."""
    from t2cli.models.spectra import cached_singular_values

    digests = {entry.manifest.base.fingerprint.weights for entry in pair}
    if len(digests) > 1:
        return None
    return cached_singular_values(digests.pop(), {weight: len(z) for weight, z in {**z_a, **z_b}.items()})


def _record(pair: list[ExpertEntry], found: Comparison) -> dict[str, object]:
    a, b = ({"ref": entry.reference, "digest": entry.digest, "base": entry.manifest.base.folder} for entry in pair)
    parts = {
        kind: [{kind.removesuffix("s"): name, **row._asdict()} for name, row in rows.items()]
        for kind, rows in (("layers", found.layers), ("modules", found.modules), ("bands", found.bands))
    }
    matrices = [{"weight": weight, **row._asdict()} for weight, row in found.matrices.items()]
    return {"a": a, "b": b, "total": found.total._asdict(), **parts, "matrices": matrices}


def _lines(pair: list[ExpertEntry], found: Comparison) -> list[str]:
    total = found.total
    head = [
        f"{letter} = {entry.reference} of {entry.manifest.base.folder}"
        for letter, entry in zip("AB", pair, strict=True)
    ]
    if not total.rms_difference:
        return [*head, f"all {total.numbers:,} numbers are equal"]
    layers = [name for name, row in found.layers.items() if row.rms_difference]
    largest = max(layers, key=lambda name: found.layers[name].rms_difference)
    lines = [
        *head,
        f"{total.numbers:,} numbers: z differs by {total.rms_difference:.2g} (root mean square), "
        f"cosine of z - 1 {_number(total.cosine)}",
        f"{len(layers)} of {len(found.layers)} layers differ, layer {largest} the most",
    ]
    if total.weights_difference is None:
        return [*lines, _why_no_weights(pair)]
    moved = f"A moves the weights by {_percent(total.weights_a)}, B by {_percent(total.weights_b)}"
    return [
        *lines,
        f"{moved}, which is {_percent(total.weights_difference)} apart (cosine {_number(total.weights_cosine)})",
    ]


def _why_no_weights(pair: list[ExpertEntry]) -> str:
    bases = {entry.manifest.base.folder: entry.manifest.base.name for entry in pair}
    if len(bases) > 1:
        return "effect on the weights: not comparable, they are for different bases"
    return f"effect on the weights: not known here, run t2 decompose {next(iter(bases.values()))}"


def _table(what: str, rows: dict[str, Figures]) -> str:
    with_weights = all(row.weights_difference is not None for row in rows.values())
    cells = [
        [
            name,
            *(f"{number:.2g}" for number in (row.rms_a, row.rms_b, row.rms_difference)),
            _number(row.cosine),
            *([_percent(x) for x in (row.weights_a, row.weights_b, row.weights_difference)] if with_weights else []),
        ]
        for name, row in rows.items()
        if row.numbers
    ]
    header = (what, *HEADER, *(ON_WEIGHTS if with_weights else ()))
    return table(header, cells, right=range(1, len(header)), shrink=(0,))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2g} %"
