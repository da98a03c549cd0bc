"""t2 list: the experts that are there, from their manifests alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from t2cli.cli.completion import category_names
from t2cli.cli.options import DEFAULT_BASE, Device, Json, OnlyBase, Quiet, RegistryPath
from t2cli.cli.output import Output, table
from t2cli.errors import T2Error, UsageError
from t2cli.lookup import near_matches, require

if TYPE_CHECKING:
    from t2cli.registry.local import ExpertEntry
    from t2cli.registry.manifest import ExpertManifest
    from t2cli.svf.relation import Fingerprint, Relation

    RelationTo = Callable[[ExpertEntry], Relation | None]

HEADER = ("NAME", "VER", "KIND", "CATEGORY", "BASE", "GAIN, POINTS", "AGE", "SOURCE")
SHRINK = (0, 3, 4, 7)  # what may be shortened where the terminal is narrow: never a number
AGES = ((365 * 86400, "y"), (30 * 86400, "mo"), (86400, "d"), (3600, "h"), (60, "min"))


Kind = Annotated[
    Optional[Literal["expert", "dispatcher", "mix"]],  # noqa: UP045
    typer.Option("--kind", help="Only trained experts, dispatchers or mixes.", show_default="all"),
]
Category = Annotated[
    str,
    typer.Option(
        "--category",
        metavar="NAME",
        help="Only experts for questions of this category.",
        autocompletion=category_names,
    ),
]
Remote = Annotated[
    str, typer.Option("--remote", metavar="ORG/REPO", help="The experts of a repository on the Hub instead.")
]
Compatible = Annotated[
    bool,
    typer.Option("--compatible", help=f"Only experts that can be used with --base ({DEFAULT_BASE} if not given)."),
]


def list_experts(
    every: Annotated[bool, typer.Option("--all", help="Every version instead of the newest of each expert.")] = False,
    base: OnlyBase = "",
    kind: Kind = None,
    category: Category = "",
    compatible: Compatible = False,
    remote: Remote = "",
    registry: RegistryPath = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the experts, with what each gains on its task.

    The gain is in points of accuracy over the base alone on held-out examples, with its 95 %
    interval. With --compatible, also those that were made for a close relative of the base: they
    are used with a warning.
    """
    from t2cli.models.catalog import known_fingerprint
    from t2cli.paths import registry_search_path
    from t2cli.registry.listing import remembered
    from t2cli.registry.local import LocalRegistry

    out = Output(json=json, quiet=quiet)
    experts = LocalRegistry(registry_search_path(registry))
    found, problems = _on_hub(remote, every) if remote else (remembered(experts), experts.problems)
    entries = sorted(found, key=_order)
    listed = [entry for entry in _of_category(entries, category) if kind in (None, entry.manifest.kind)]
    listed = listed if every else newest(listed)
    target = base or DEFAULT_BASE
    relation_to = _relations(known_fingerprint(target))
    shown = _of_base(listed, target, bool(base), compatible, relation_to)
    if json:  # thousands of records take time
        out.emit("list", {"experts": [record(entry, relation_to(entry)) for entry in shown]})
    elif shown:
        now = datetime.now(UTC)
        out.data(table(HEADER, [row(entry, now) for entry in shown], right=(1, 6), shrink=SHRINK))
    for problem in problems:
        out.warn(str(problem))
    if not shown:
        folders = remote or " and ".join(str(folder) for folder in experts.search_path)
        which = f"{len(entries)} experts, but none of those," if entries else "no experts"
        out.say(f"there are {which} in {folders}: t2 train --task TASK makes one")
        if base and entries:
            _say_bases(out, entries, base)
    if not compatible:
        _say_relations(out, listed, target, relation_to)
    elif known_fingerprint(target) is None:
        out.say(f"nothing is known of {target} yet: t2 decompose {target} reads its weights")


def _say_bases(out: Output, entries: list[ExpertEntry], base: str) -> None:
    """Say which base models there are experts for, where nothing goes by the name of `base`: it may be mistyped."""
    from t2cli.models.catalog import known_fingerprint
    from t2cli.registry.resolve import is_base

    if known_fingerprint(base) is None and not any(is_base(entry.slot, base) for entry in entries):
        bases = near_matches(base, {entry.manifest.base.name for entry in entries})
        out.say(f"they were made for other base models than {base}: {bases}")


def _of_category(entries: list[ExpertEntry], category: str) -> list[ExpertEntry]:
    """Return the experts of a category however it is written, all for ""; NotFoundError where none has it."""
    from t2cli.registry.dispatcher_record import category_key

    found = [e for e in entries if category_key(category) in ("", category_key(e.manifest.category))]
    if category and not found:
        require(category, {entry.manifest.category for entry in entries}, "category of experts")
    return found


def _relations(known: Fingerprint | None) -> RelationTo:
    """Return a function that tells how an expert's base relates to the known one; None if nothing is known of it."""
    from t2cli.svf.relation import relation

    found: dict[str, Relation] = {}  # of thousands of experts most are of one base

    def relation_to(entry: ExpertEntry) -> Relation | None:
        if known is None:
            return None
        weights = _weights(entry)
        if weights not in found:
            found[weights] = relation(known, entry.manifest.base.fingerprint)
        return found[weights]

    return relation_to


def _of_base(
    entries: list[ExpertEntry], base: str, asked: bool, compatible: bool, relation_to: RelationTo
) -> list[ExpertEntry]:
    """Return the entries made for `base` if that was `asked` for; if `compatible`, those that can be used with it."""
    if not asked and not compatible:
        return entries
    from t2cli.registry.resolve import is_base

    def wanted(entry: ExpertEntry) -> bool:
        how = relation_to(entry)
        if how is not None and (how.close if compatible else how.kind == "same"):
            return True
        # the name as the table shows it; of a folder or a Hub id that was never used here it is all there is to compare
        return not compatible and (how is None or "/" not in base) and is_base(entry.slot, base)

    return [entry for entry in entries if wanted(entry)]


def _on_hub(remote: str, every: bool) -> tuple[list[ExpertEntry], list[T2Error]]:
    """Return the experts of a Hub repository, and what could not be read there."""
    from t2cli.registry.hub import HubSource, listed
    from t2cli.registry.hub_client import HubRepo

    source = HubSource.parse(remote)
    if source.expert is not None:
        raise UsageError(f"--remote takes a repository, not {remote}", hint="write it as ORG/REPO or ORG/REPO@REVISION")
    return listed(HubRepo(source.repo), source.revision, every=every)


def newest(entries: Iterable[ExpertEntry]) -> list[ExpertEntry]:
    """Return the newest version of each name and base, in the order given; of equal versions the first."""
    best: dict[tuple[str, str], ExpertEntry] = {}
    for entry in entries:
        key = (entry.manifest.name, _weights(entry))
        if key not in best or entry.manifest.version > best[key].manifest.version:
            best[key] = entry
    return list(best.values())


def record(entry: ExpertEntry, how: Relation | None) -> dict[str, object]:
    """Return the fields of one expert for --json; `how` its base relates to the asked one is None if not known."""
    manifest = entry.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "kind": manifest.kind,
        "category": manifest.category,
        "base": manifest.base.name,
        "fingerprint": _weights(entry),
        "digest": entry.digest,
        "created": manifest.created,
        "evaluation": [asdict(evaluation) for evaluation in manifest.evaluation],
        "source": entry.source,
        "compatible": None if how is None else how.close,
    }


def row(entry: ExpertEntry, now: datetime) -> list[str]:
    """Return the cells of one expert for people."""
    manifest = entry.manifest
    return [
        manifest.name,
        str(manifest.version),
        manifest.kind,
        manifest.category or "-",
        manifest.base.name,
        gain_text(manifest),
        age_text(manifest.created, now),
        entry.source,
    ]


def gain_text(manifest: ExpertManifest) -> str:
    """Return the gain in points, "+21.3 [16.0, 26.4]": on the task trained for, else the first evaluated."""
    task = manifest.training.task if manifest.training else None
    evaluations = sorted(manifest.evaluation, key=lambda evaluation: evaluation.task != task)
    if not evaluations:
        return "-"
    gain, interval = evaluations[0].gain, evaluations[0].gain_ci95
    around = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return f"{100 * gain:+.1f}{around}"


def age_text(created: str, now: datetime) -> str:
    """Return the age of an ISO-8601 time as "3d", "5min" or "now"."""
    seconds = (now - datetime.fromisoformat(created)).total_seconds()
    for size, unit in AGES:
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return "now"


def _order(entry: ExpertEntry) -> tuple[str, str, str, int]:
    manifest = entry.manifest
    return manifest.name, manifest.base.name, _weights(entry), manifest.version


def _weights(entry: ExpertEntry) -> str:
    return entry.manifest.base.fingerprint.weights


def _say_relations(out: Output, listed: Sequence[ExpertEntry], base: str, relation_to: RelationTo) -> None:
    """Say how many of the experts are of other bases than `base`, those of close relatives apart."""
    from t2cli.registry.resolve import percent

    relations = [how for entry in listed if (how := relation_to(entry)) is not None]
    drifts = [how.drift for how in relations if how.kind == "relative" and how.drift is not None]
    if drifts:
        near, far = percent(min(drifts)), percent(max(drifts))
        by = near if near == far else f"{near} to {far}"
        out.say(
            f"{len(drifts)} of {len(listed)} can be used with {base}: made for a close relative, which differs by {by}"
        )
    if foreign := sum(not how.close for how in relations):
        out.say(f"{foreign} of {len(listed)} cannot be used with {base}: made for other weights")
