"""t2 mix: a new expert from others, by weights."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from t2cli.cli.completion import expert_names
from t2cli.cli.options import (
    DEFAULT_BASE,
    AllowForeign,
    AsReward,
    Base,
    Device,
    Examples,
    Json,
    Quiet,
    RegistryPath,
    Seed,
)
from t2cli.cli.output import Output
from t2cli.config import CEMConfig
from t2cli.errors import UsageError

if TYPE_CHECKING:
    from t2cli.cli.mix_search import Searched
    from t2cli.dispatch.examples import FewShot
    from t2cli.dispatch.mixing import Members
    from t2cli.registry.local import ExpertEntry, LocalRegistry
    from t2cli.registry.manifest import BaseRecord
    from t2cli.registry.resolve import Resolver

LONGEST_LIST = 1000  # characters: half of what a text of a manifest may have

FAR = 1.0  # root mean square of z - 1: answers are noise long before
_WITH_ALPHA = re.compile(
    r"(?P<ref>.*?[^:]):(?P<alpha>[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf|infinity))", re.I
)


PerLayer = Annotated[bool, typer.Option("--per-layer", help="Search a weight for every matrix of every expert.")]
Explain = Annotated[bool, typer.Option("--explain", help="Say what the search found, in full.")]
Force = Annotated[bool, typer.Option("--force", help="Publish the mix that was found even if it is no better.")]
Iterations = Annotated[
    int | None,
    typer.Option(
        "--iterations",
        min=1,
        max=100,
        help="Generations of the search, at most.",
        show_default=str(CEMConfig.iterations),
    ),
]


def mix(
    experts: Annotated[
        list[str],
        typer.Argument(metavar="EXPERT[:ALPHA]", help="Experts, each with its weight.", autocompletion=expert_names),
    ],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="The new expert's name.")],
    examples: Examples = "",
    reward: AsReward = "",
    per_layer: PerLayer = False,
    iterations: Iterations = None,
    explain: Explain = False,
    force: Force = False,
    allow_foreign: AllowForeign = False,
    base: Base = DEFAULT_BASE,
    registry: RegistryPath = None,
    device: Device = "auto",
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Mix experts into a new one: z = 1 + the weighted sum of (z of each - 1).

    Without weights each expert counts equally. Weights need not add up to 1: what is missing is the
    base model's share. A mix is used by its name; pass 1 of t2 chat chooses among trained experts.
    """
    from t2cli.registry.reference import check_new_name

    out = Output(json=json, quiet=quiet)
    check_new_name(name)
    questions = _questions(
        experts, examples, reward, only_with_examples=per_layer or explain or force or bool(iterations)
    )
    weights = parse_weights(experts)
    from t2cli.cli.session import for_base
    from t2cli.dispatch.mixing import find_members
    from t2cli.paths import registry_search_path
    from t2cli.registry.local import LocalRegistry
    from t2cli.registry.resolve import Resolver

    entries = LocalRegistry(registry_search_path(registry))
    resolver = Resolver(entries, for_base(base, quiet), allow_foreign=allow_foreign)
    members = find_members(resolver, weights)
    for warning in resolver.warnings:
        out.warn(warning)
    record, found = _base_of(resolver, members, base, quiet), None
    if questions:
        config = CEMConfig(iterations=iterations or CEMConfig.iterations, per_layer=per_layer, seed=seed)
        found = _searched(out, members, questions, examples, config, base, device, force)
    _report(out, _publish(entries, members, name, record, found), found, explain=explain)


def _questions(experts: list[str], examples: str, reward: str, *, only_with_examples: bool) -> list[FewShot]:
    """Return the examples to search weights with, none where they are given. Raises UsageError for half of each."""
    if not examples:
        if reward or only_with_examples:
            raise UsageError(
                "--reward, --per-layer, --iterations, --explain and --force are of a search",
                hint="add --examples FILE.jsonl, or leave them out",
            )
        return []
    if given := [text for text in experts if _WITH_ALPHA.fullmatch(text) and not _is_digest(text)]:
        raise UsageError(f"{given[0]} has a weight, and --examples searches weights", hint="name the experts only")
    from t2cli.dispatch.examples import read_examples

    return read_examples(examples, reward)


def _searched(
    out: Output,
    members: Members,
    questions: list[FewShot],
    file: str,
    config: CEMConfig,
    base: str,
    device: str,
    force: bool,
) -> Searched:
    from t2cli.cli.mix_search import searched

    return searched(out, members, questions, file, config, base, device, force=force)


def _warn_if_odd(out: Output, entry: ExpertEntry) -> None:
    """Say what is odd about a mix that is published all the same."""
    from t2cli.registry.zfile import read_arrays

    if not any(parent.alpha for parent in entry.manifest.parents):
        out.warn(f"{entry.reference} is the base model itself: every weight is 0")
    squares = [((z - 1) ** 2).mean() for z in read_arrays(entry.z_bytes(), str(entry.path)).values()]
    if (far := max(squares) ** 0.5) > FAR:
        out.warn(
            f"{entry.reference} is far from the base model: singular values change by {far:.2g} times themselves "
            "(root mean square of a matrix), where an expert's change by a few hundredths; are the weights right?"
        )


def _is_digest(text: str) -> bool:
    """Tell whether what looks like a weight is the digest of a reference, as in math@sha256:123456789012."""
    match = _WITH_ALPHA.fullmatch(text)
    return match is not None and match["ref"].endswith("@sha256")


def _report(out: Output, entry: ExpertEntry, found: Searched | None, *, explain: bool) -> None:
    _warn_if_odd(out, entry)
    parents = [asdict(parent) for parent in entry.manifest.parents]
    search = None if found is None else found.json
    path = str(entry.path)
    out.emit(
        "mix",
        {"expert": entry.reference, "digest": entry.digest, "path": path, "parents": parents, "search": search},
    )
    out.data(
        f"{entry.reference} = " + " + ".join(f"{parent.alpha:g} {parent.ref}" for parent in entry.manifest.parents)
    )
    for line in found.lines if found is not None and explain else ():
        out.data(line)


def parse_weights(experts: list[str]) -> dict[str, float]:
    """Return reference -> alpha from arguments such as math:0.5; equal shares where none has a weight.

    Raises UsageError when only some have one, for a weight that is not a finite number, and for an expert named twice.
    """
    parsed: dict[str, float | None] = {}
    for text in experts:
        match = _WITH_ALPHA.fullmatch(text)
        if match is None or _is_digest(text):
            reference, alpha = text, None
        else:
            reference, alpha = match["ref"], float(match["alpha"])
        if ":" in reference.removeprefix("hf://").replace("@sha256:", ""):
            raise UsageError(f"{text!r} does not end in a weight", hint="write it as in math:0.5")
        if alpha is not None and not math.isfinite(alpha):
            raise UsageError(f"the weight of {reference} is not a finite number", hint="write it as in math:0.5")
        if reference in parsed:
            raise UsageError(f"{reference} is named twice", hint="add its weights up")
        parsed[reference] = alpha
    given = [alpha for alpha in parsed.values() if alpha is not None]
    if given and len(given) < len(parsed):
        without = next(reference for reference, alpha in parsed.items() if alpha is None)
        raise UsageError(f"{without} has no weight, others have", hint="give every expert a weight, or none")
    return {reference: 1 / len(parsed) if alpha is None else alpha for reference, alpha in parsed.items()}


def _base_of(resolver: Resolver, members: Members, base: str, quiet: bool) -> BaseRecord:
    """Return what the mix's manifest says of its base: the one it was made with, whatever its members' bases are."""
    for parent, _ in members:
        if resolver.relation(parent).kind == "same":
            return parent.manifest.base
    from t2cli.models.catalog import locate
    from t2cli.models.identity import identify
    from t2cli.registry.manifest import BaseRecord, FingerprintRecord

    identity = identify(locate(base, quiet=quiet), quiet=quiet)
    fingerprint = FingerprintRecord(identity.weights, {}, identity.probes)  # its spectrum would need the decomposition
    return BaseRecord(identity.name, identity.source, identity.revision, identity.architecture, fingerprint)


def _publish(
    registry: LocalRegistry, members: Members, name: str, base: BaseRecord, found: Searched | None
) -> ExpertEntry:
    from t2cli.dispatch.mixing import mixed
    from t2cli.registry.manifest import ExpertManifest, ParentRecord, TargetsRecord, ZRecord, timestamp
    from t2cli.registry.vectors import z_to_bytes

    members = members if found is None else found.members
    z = mixed(members) if found is None else found.z
    note = "" if found is None else f" ({found.note})"
    manifests = [parent.manifest for parent, _ in members]
    selections = sorted({part for manifest in manifests for part in manifest.targets.selection.split("+")})
    categories = sorted({part for manifest in manifests for part in manifest.category.split("+")})
    return registry.put(
        ExpertManifest(
            name=name,
            version=1,  # the registry assigns the real one
            kind="mix",
            category=_shortened(categories, "+"),
            description=_description(members, base) + note,
            base=base,
            targets=TargetsRecord("+".join(selections), len(z), z.parameters),
            z=ZRecord("z.safetensors", "0" * 64, "linear"),
            created=timestamp(),
            training=None if found is None else found.training,
            evaluation=() if found is None else (found.evaluation,),
            parents=tuple(ParentRecord(parent.reference, parent.digest, alpha) for parent, alpha in members),
        ),
        z_to_bytes(z),
    )


def _description(members: Members, base: BaseRecord) -> str:
    """Return a mix for people; of many members the first, for the manifest's parents have all."""
    return "mix of " + _shortened([_described(parent, alpha, base) for parent, alpha in members], ", ")


def _shortened(parts: Sequence[str], between: str) -> str:
    """Return the parts joined, as many of them as LONGEST_LIST characters hold, and how many more there are."""
    kept = len(parts)
    while kept > 1 and len(between.join(parts[:kept])) > LONGEST_LIST:
        kept -= 1
    more = [f"{len(parts) - kept} more"] if kept < len(parts) else []
    return between.join([*parts[:kept], *more])


def _described(parent: ExpertEntry, alpha: float, base: BaseRecord) -> str:
    """Return a member for people, with the base it was made for if that is not the mix's."""
    theirs = parent.manifest.base
    origin = "" if theirs.fingerprint.weights == base.fingerprint.weights else f" (made for {theirs.folder})"
    return f"{alpha:g} {parent.reference}{origin}"
