"""t2 show: everything that is known of one expert, from its own files alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t2cli.cli.completion import expert_names
from t2cli.cli.heatmap import heat_map, save_picture
from t2cli.cli.options import DEFAULT_BASE, Base, Device, Json, Plot, Quiet, RegistryPath
from t2cli.cli.output import Output, one_line
from t2cli.cli.pictures import check_picture

if TYPE_CHECKING:
    from t2cli.registry.compare import Vectors
    from t2cli.registry.local import ExpertEntry, LocalRegistry
    from t2cli.registry.manifest import EvaluationRecord, ExpertManifest
    from t2cli.svf.relation import Relation

Row = tuple[str, str]


def show(
    expert: Annotated[
        str,
        typer.Argument(
            metavar="EXPERT",
            help="An expert: NAME, NAME@VERSION, NAME@sha256:... or hf://ORG/REPO/NAME",
            autocompletion=expert_names,
        ),
    ],
    plot: Plot = None,
    base: Base = DEFAULT_BASE,
    registry: RegistryPath = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show one expert: what it is for, how it was made, what it was measured to do.

    Its base is compared with --base: the same, a close relative (and how far its weights are), or
    foreign. A map shows how far z is from 1 in each layer; the experts that a mix was made from are
    shown as a tree.
    """
    from t2cli.models.catalog import known_fingerprint
    from t2cli.paths import registry_search_path
    from t2cli.registry.local import LocalRegistry
    from t2cli.registry.resolve import shown

    check_picture(plot)
    out = Output(json=json, quiet=quiet)
    entries = LocalRegistry(registry_search_path(registry))
    entry, how = shown(entries, expert, known_fingerprint(base))
    place = {"digest": entry.digest, "path": str(entry.path), "source": entry.source}
    fields = entry.manifest.to_dict()
    fields["manifest_schema"] = fields.pop("schema")  # `schema` names the format of this very output
    z = _numbers(out, entry)
    out.emit("show", {**fields, **place, "relation": asdict(how), "deviation": deviation(z) if z else None})
    rows = [*_what(entry), *_base(entry.manifest, how, base), *_making(entry), *_measured(entry.manifest)]
    rows += _dispatching(entry.manifest)
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        out.data(f"{label:<{width}}  {one_line(text, None)}".rstrip())
    if z:
        _draw(out, entry, z, plot)
    if entry.manifest.parents:
        out.data("made from")
        for line in lineage(entries, entry, set()):
            out.data(line)


def _numbers(out: Output, entry: ExpertEntry) -> Vectors | None:
    """Return z of every matrix; a damaged file is a warning here, for the manifest can still be shown."""
    from t2cli.errors import CorruptArtifactError
    from t2cli.registry.zfile import check_finite, read_arrays

    try:
        blob = entry.z_bytes()
        check_finite(blob, str(entry.path))
        return read_arrays(blob, str(entry.path))
    except CorruptArtifactError as error:
        out.warn(f"{error.message}; t2 verify {entry.reference} checks all of it")
        return None


def deviation(z: Vectors) -> list[dict[str, object]]:
    """Return how far z is from 1 in each matrix: its layer, root mean square and largest shift, for --json."""
    from t2cli.registry.compare import in_order, place_of

    return [
        {
            "weight": weight,
            **place_of(weight)._asdict(),
            "rms": float(((vector - 1) ** 2).mean() ** 0.5),
            "largest": float(abs(vector - 1).max()),
        }
        for weight, vector in sorted(z.items(), key=lambda pair: in_order(pair[0]))
    ]


def _draw(out: Output, entry: ExpertEntry, z: Vectors, plot: Path | None) -> None:
    from t2cli.registry.compare import grid

    shifts = grid({weight: vector - 1 for weight, vector in z.items()})
    out.data("root mean square of z - 1")
    for line in heat_map(shifts):
        out.data(f"  {line}")
    if plot is not None:
        save_picture(shifts, plot, f"{entry.reference}: z - 1")
        out.say(f"wrote {plot}")


def _what(entry: ExpertEntry) -> list[Row]:
    manifest = entry.manifest
    return [
        ("expert", entry.reference),
        ("digest", entry.digest),
        ("kind", manifest.kind),
        ("category", manifest.category),
        ("description", manifest.description),
        *(("example" if index == 0 else "", text) for index, text in enumerate(manifest.examples)),
    ]


def _base(manifest: ExpertManifest, how: Relation, base: str) -> list[Row]:
    theirs = manifest.base
    at = f" at {theirs.revision}" if theirs.revision else ""
    return [
        ("base", f"{theirs.folder}, {theirs.architecture}, from {theirs.source}{at}"),
        ("weights", theirs.fingerprint.weights),
        ("relation", relation_text(manifest, how, base)),
    ]


def relation_text(manifest: ExpertManifest, how: Relation, base: str) -> str:
    """Return how the expert's base relates to --base, and what follows for its use."""
    from t2cli.registry.resolve import in_words

    if how.kind == "same":
        return f"{in_words(how)} as {base}"
    if how.kind == "relative":
        return f"to {base}: {in_words(how)}; used with a warning"
    if how.kind == "foreign":
        return f"to {base}: {in_words(how)}; only used with --allow-foreign, where the shapes fit"
    if not manifest.base.fingerprint.probes:
        return f"to {base}: not known, for the manifest has no probes of the weights; treated as foreign"
    return f"to {base}: not known yet, run t2 decompose {base}"


def _making(entry: ExpertEntry) -> Iterator[Row]:
    from t2cli.registry.card import time_of

    manifest = entry.manifest
    targets, training = manifest.targets, manifest.training
    yield "targets", f"{targets.selection}: {targets.count} matrices, {targets.parameters:,} numbers"
    if training is not None:
        what = f"{training.task}, preset {training.preset}, seed {training.seed}"
        yield "training", f"{what}, {training.steps} steps in {time_of(training)}"
        if reward := training.config.get("reward"):
            yield "judged by", f"a reward of its maker's own, {reward}, in training and evaluation"
        settings = {key: value for key, value in training.config.items() if key not in ("data", "reward")}
        yield "settings", ", ".join(f"{key} {value}" for key, value in settings.items())
        yield from (("data", text) for text in _files(training.config.get("data")))
        yield "versions", ", ".join(f"{name} {version}" for name, version in training.versions.items())
    yield "created", manifest.created
    yield "path", str(entry.path)
    yield "source", entry.source


def _files(data: object) -> Iterator[str]:
    """Yield a line for each file an expert was trained on, whatever somebody's manifest holds there."""
    for file in data if isinstance(data, list) else []:
        if isinstance(file, dict):
            place = " ".join(str(file[key]) for key in ("row", "dataset", "revision") if key in file)
            name = f"{place} {file.get('file')}".strip()
            yield f"{file.get('split')}: {name}, sha256:{str(file.get('sha256'))[:12]}"


def _dispatching(manifest: ExpertManifest) -> Iterator[Row]:
    """Yield what a dispatcher asks, and how often it was right about questions of each category."""
    if (record := manifest.dispatcher) is None:
        return
    yield "asks", record.instruction
    yield "answers", ", ".join(f"{label} {name}" for label, name in zip(record.labels, record.categories, strict=True))
    yield "threshold", f"{record.threshold:g}: what is less likely is left to the base"
    yield "confusion", f"of {record.n} held-out questions {record.accuracy:.1%} were told right"
    for name, row in zip(record.categories, record.confusion, strict=True):
        told = (f"{count} {said}" for said, count in zip(record.categories, row, strict=True) if count)
        yield "", f"{name}: {', '.join(told) or 'none'}"


def _measured(manifest: ExpertManifest) -> Iterator[Row]:
    for row in manifest.evaluation:
        yield "evaluation", evaluation_text(row)
    if not manifest.evaluation:
        yield "evaluation", "none"


def evaluation_text(row: EvaluationRecord) -> str:
    """Return what an evaluation found: accuracies, gain in points with its interval, p; lengths where recorded."""
    around = f" [{100 * row.gain_ci95[0]:+.1f}, {100 * row.gain_ci95[1]:+.1f}]" if row.gain_ci95 else ""
    unclear = "" if row.mcnemar_p < 0.05 else ", not distinguishable from the base"
    length = cut = ""
    if row.base_answer_tokens is not None and row.expert_answer_tokens is not None:
        length = f", answers of {row.base_answer_tokens:.1f} -> {row.expert_answer_tokens:.1f} tokens"
    if row.base_cut is not None and row.expert_cut is not None:
        cut = f", {row.base_cut} -> {row.expert_cut} of them cut at the limit"
    return (
        f"{row.task} ({row.split}, {row.n} questions, seed {row.seed}): {row.base_accuracy:.3f} -> "
        f"{row.expert_accuracy:.3f}, gain {100 * row.gain:+.1f}{around} points, McNemar p = {row.mcnemar_p:.2g}"
        f"{unclear}{length}{cut}"
    )


def lineage(registry: LocalRegistry, entry: ExpertEntry, seen: set[str], depth: int = 1) -> Iterator[str]:
    """Yield a line for each expert that a mix was made from, its own parents below it; `seen` are digests so far."""
    from t2cli.registry.lineage import parent_of

    for parent in entry.manifest.parents:
        found, note = parent_of(registry, parent)
        again = found is not None and found.digest in seen and bool(found.manifest.parents)
        if found is not None and found.manifest.base.fingerprint.weights != entry.manifest.base.fingerprint.weights:
            note = f" (made for {found.manifest.base.folder})"
        yield "  " * depth + one_line(f"{parent.alpha:g} {parent.ref}{' (as above)' if again else note}")
        if found is not None and not again:  # a mix of mixes may hold the same one very often
            seen.add(found.digest)
            yield from lineage(registry, found, seen, depth + 1)
