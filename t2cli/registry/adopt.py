"""Take over a published expert as it is: the same version, the same bytes, hence the same digest."""

from __future__ import annotations

import hashlib

from t2cli.errors import CorruptArtifactError, T2Error
from t2cli.registry.card import model_card
from t2cli.registry.checks import check_z
from t2cli.registry.entry import ExpertEntry, Slot, check_inside, parse_manifest, write_version
from t2cli.registry.local import LocalRegistry


def present(registry: LocalRegistry, slot: Slot, digest: str, origin: str) -> ExpertEntry | None:
    """Return the expert of this digest if the registry has it at this place, sound; None where the place is free.

    Raises T2Error if another expert has the place: `origin` names the one that was to come. CorruptArtifactError if
    what is there is damaged.
    """
    places = (place for place in registry.slots(slot.name) if (place.base, place.version) == (slot.base, slot.version))
    entry = next((registry.read(place) for place in places), None)
    if entry is None:
        return None
    if entry.digest != digest:
        raise T2Error(
            f"{slot.reference} here is another expert than {origin}, and a published version never changes",
            hint=f"use it as {origin} without pulling it, or pull it into a registry of its own with --registry PATH",
        )
    if problems := registry.verify(entry):
        raise CorruptArtifactError(f"{slot.reference} is here but damaged: {problems[0]}", hint=f"delete {entry.path}")
    return entry


def adopt(registry: LocalRegistry, slot: Slot, text: bytes, z: bytes, origin: str) -> ExpertEntry:
    """Put the expert with the manifest `text` into the registry at its own base, name and version.

    It appears when both files are checked and complete; one that is there already is returned. The model card is made
    again from the manifest. Raises as `present`, CorruptArtifactError for files that do not belong together, T2Error
    if writing fails.
    """
    manifest = parse_manifest(text, slot, origin)
    if hashlib.sha256(z).hexdigest() != manifest.z.sha256:
        raise CorruptArtifactError(
            f"z.safetensors of {origin} is not the file that its expert.yaml describes: its SHA-256 differs",
            hint="do not use it; tell the owner of the repository",
        )
    check_z(z, manifest.targets, f"z.safetensors of {origin}")
    root = registry.writable()
    own = Slot(root, slot.base, slot.name, slot.version)
    check_inside(root, own.path.parent)
    with registry.lock():
        there = present(registry, slot, hashlib.sha256(text).hexdigest(), origin)
        if there is None:
            write_version(own, text, z, model_card(manifest))
    return there or registry.read(own)
