"""The z of several experts of a registry, and the rules for naming them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from t2cli.errors import UsageError
from t2cli.registry.local import ExpertEntry
from t2cli.registry.resolve import Resolver
from t2cli.registry.vectors import read_z
from t2cli.svf.zvector import ZVectors, mix

Members = list[tuple[ExpertEntry, float]]


def find_members(resolver: Resolver, weights: Mapping[str, float]) -> Members:
    """Return the experts that `weights` names, each with its alpha; raises as Resolver.find.

    Raises UsageError for two names of one expert, such as math and math@2, and for a dispatcher.
    """
    members = [(resolver.find(reference), alpha) for reference, alpha in weights.items()]
    for entry, _ in members:
        if entry.manifest.kind == "dispatcher":
            raise UsageError(
                f"{entry.reference} is a dispatcher: it chooses experts, and answers nothing itself",
                hint="t2 list --kind expert shows those that answer; --adapt classifier lets it choose",
            )
    named: dict[str, str] = {}
    for written, (entry, _) in zip(weights, members, strict=True):
        if entry.digest in named:
            raise UsageError(
                f"{named[entry.digest]} and {written} are the same expert, {entry.reference}",
                hint="name it once, with its weights added up",
            )
        named[entry.digest] = written
    return members


def mixed(members: Sequence[tuple[ExpertEntry, float]]) -> ZVectors:
    """Return the z of a mix; a single expert with alpha 1 is that expert's z, bit for bit.

    Raises CorruptArtifactError for a damaged expert, and UsageError where the experts do not fit together or the
    weights are so large that the numbers overflow.
    """
    vectors = [(alpha, read_z(entry)) for entry, alpha in members]
    if [alpha for alpha, _ in vectors] == [1.0]:
        return vectors[0][1]
    try:
        z = mix(vectors)
    except ValueError as error:
        hint = "mix experts of one base, with weights such as 0.5"
        raise UsageError(f"these experts cannot be mixed: {error}", hint=hint) from error
    if not bool(torch.isfinite(z.flat()).all()):
        raise UsageError("the mix has infinite numbers: its weights are too large", hint="use weights such as 0.5")
    return z
