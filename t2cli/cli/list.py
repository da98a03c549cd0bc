"""t2 list: the experts that are there, from their manifests alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t2cli.cli.options import DEFAULT_BASE, Base, Device, Json, Quiet, RegistryPath
from t2cli.cli.output import Output, table
from t2cli.errors import T2Error, UsageError
from t2cli.lookup import require

if TYPE_CHECKING:
    from t2cli.registry.local import ExpertEntry
    from t2cli.registry.manifest import ExpertManifest
    from t2cli.svf.relation import Fingerprint

HEADER = ("NAME", "VER", "KIND", "CATEGORY", "BASE", "GAIN, POINTS", "AGE", "SOURCE")
SHRINK = (0, 3, 4, 7)  # what may be shortened where the terminal is narrow: never a number
AGES = ((365 * 86400, "y"), (30 * 86400, "mo"), (86400, "d"), (3600, "h"), (60, "min"))


def list_experts(
    every: Annotated[bool, typer.Option("--all", help="Every version instead of the newest of each expert.")] = False,
    category: Annotated[
        str, typer.Option("--category", metavar="NAME", help="Only experts for questions of this category.")
    ] = "",
    remote: Annotated[
        str, typer.Option("--remote", metavar="ORG/REPO", help="The experts of a repository on the Hub instead.")
    ] = "",
    base: Base = DEFAULT_BASE,
    registry: RegistryPath = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the experts, with what each gains on its task.

    The gain is in points of accuracy over the base alone on held-out examples, with its 95 %
    interval. Experts of every base are listed; those of --base can be used with it, and with a
    warning those of a close relative.
    """
    from t2cli.models.catalog import known_fingerprint
    from t2cli.paths import registry_search_path
    from t2cli.registry.local import LocalRegistry

    out = Output(json=json, quiet=quiet)
    search_path = registry_search_path(registry)
    experts = LocalRegistry(search_path)
    found, problems = _on_hub(remote, every) if remote else (experts.list(), experts.problems)
    entries = sorted(found, key=_order)
    if category:
        require(category, {entry.manifest.category for entry in entries}, "category of experts")
        entries = [entry for entry in entries if entry.manifest.category == category]
    shown = entries if every else newest(entries)
    known = known_fingerprint(base)
    out.emit("list", {"experts": [record(entry, known.weights if known else None) for entry in shown]})
    if shown:
        now = datetime.now(UTC)
        out.data(table(HEADER, [row(entry, now) for entry in shown], right=(1, 6), shrink=SHRINK))
    _say_the_rest(out, shown, problems, base, known, [remote] if remote else search_path)


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


def record(entry: ExpertEntry, digest: str | None) -> dict[str, object]:
    """Return the fields of one expert for --json; `digest` is that of --base, None if not known yet."""
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
        "evaluation": manifest.to_dict()["evaluation"],
        "source": entry.source,
        "compatible": None if digest is None else _weights(entry) == digest,
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


def _say_the_rest(
    out: Output,
    shown: Sequence[ExpertEntry],
    problems: Iterable[Exception],
    base: str,
    known: Fingerprint | None,
    search_path: Iterable[Path | str],
) -> None:
    """Say on stderr what the table leaves out: unreadable experts, other bases, an empty registry."""
    for problem in problems:
        out.warn(str(problem))
    if not shown:
        folders = " and ".join(str(folder) for folder in search_path)
        out.say(f"there are no experts in {folders}: t2 train --task TASK makes one")
    if known is not None:
        _say_relations(out, shown, base, known)


def _say_relations(out: Output, shown: Sequence[ExpertEntry], base: str, known: Fingerprint) -> None:
    """Say how many of the experts are of other bases, those of close relatives apart."""
    from t2cli.registry.resolve import percent
    from t2cli.svf.relation import relation

    relations = [relation(known, entry.manifest.base.fingerprint) for entry in shown]
    drifts = [how.drift for how in relations if how.kind == "relative" and how.drift is not None]
    if drifts:
        near, far = percent(min(drifts)), percent(max(drifts))
        by = near if near == far else f"{near} to {far}"
        out.say(
            f"{len(drifts)} of {len(shown)} can be used with {base}: made for a close relative, which differs by {by}"
        )
    if foreign := sum(not how.close for how in relations):
        out.say(f"{foreign} of {len(shown)} cannot be used with {base}: made for other weights")
