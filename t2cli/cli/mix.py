"""t2 mix: a new expert from others, by weights."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated

import typer

from t2cli.cli.completion import expert_names
from t2cli.cli.options import DEFAULT_BASE, AllowForeign, Base, Device, Json, Quiet, RegistryPath, Seed
from t2cli.cli.output import Output
from t2cli.errors import UsageError

if TYPE_CHECKING:
    from t2cli.dispatch.mixing import Members
    from t2cli.registry.local import ExpertEntry, LocalRegistry
    from t2cli.registry.manifest import BaseRecord
    from t2cli.registry.resolve import Resolver

_WITH_ALPHA = re.compile(
    r"(?P<ref>.*?[^:]):(?P<alpha>[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf|infinity))", re.I
)


def mix(
    experts: Annotated[
        list[str],
        typer.Argument(metavar="EXPERT[:ALPHA]", help="Experts, each with its weight.", autocompletion=expert_names),
    ],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="The new expert's name.")],
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
    from t2cli.registry.reference import check_name

    out = Output(json=json, quiet=quiet)
    check_name(name)
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
    entry = _publish(entries, members, name, _base_of(resolver, members, base, quiet))
    parents = [{"ref": parent.reference, "digest": parent.digest, "alpha": alpha} for parent, alpha in members]
    out.emit(
        "mix",
        {
            "expert": entry.reference,
            "digest": entry.digest,
            "path": str(entry.path),
            "parents": parents,
            "search": None,
        },
    )
    out.data(f"{entry.reference} = " + " + ".join(f"{alpha:g} {parent.reference}" for parent, alpha in members))


def parse_weights(experts: list[str]) -> dict[str, float]:
    """Return reference -> alpha from arguments such as math:0.5; equal shares where none has a weight.

    Raises UsageError when only some have one, for a weight that is not a finite number, and for an expert named twice.
    """
    parsed: dict[str, float | None] = {}
    for text in experts:
        match = _WITH_ALPHA.fullmatch(text)
        # math@sha256:123456789012 is a reference whose digest looks like a number
        if match is None or match["ref"].endswith("@sha256"):
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


def _publish(registry: LocalRegistry, members: Members, name: str, base: BaseRecord) -> ExpertEntry:
    from t2cli.dispatch.mixing import mixed
    from t2cli.registry.manifest import ExpertManifest, ParentRecord, TargetsRecord, ZRecord, timestamp
    from t2cli.registry.vectors import z_to_bytes

    z = mixed(members)
    manifests = [parent.manifest for parent, _ in members]
    selections = sorted({part for manifest in manifests for part in manifest.targets.selection.split("+")})
    categories = sorted({part for manifest in manifests for part in manifest.category.split("+")})
    return registry.put(
        ExpertManifest(
            name=name,
            version=1,  # the registry assigns the real one
            kind="mix",
            category="+".join(categories),
            description="mix of " + ", ".join(_described(parent, alpha, base) for parent, alpha in members),
            base=base,
            targets=TargetsRecord("+".join(selections), len(z), z.parameters),
            z=ZRecord("z.safetensors", "0" * 64, "linear"),
            created=timestamp(),
            parents=tuple(ParentRecord(parent.reference, parent.digest, alpha) for parent, alpha in members),
        ),
        z_to_bytes(z),
    )


def _described(parent: ExpertEntry, alpha: float, base: BaseRecord) -> str:
    """Return a member for people, with the base it was made for if that is not the mix's."""
    theirs = parent.manifest.base
    origin = "" if theirs.fingerprint.weights == base.fingerprint.weights else f" (made for {theirs.folder})"
    return f"{alpha:g} {parent.reference}{origin}"
