"""Experts that were published elsewhere, taken over as they are: the same version, the same bytes, the same digest.

One rule for pulls and imports, for mixes know their parents by a digest, and it contains the version:

an expert of this digest is here             nothing is written
its version is free                          it is put there
its version is, or was, another digest's     it is refused, and can be had under another name or in another registry
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from t2cli.errors import CorruptArtifactError, T2Error
from t2cli.registry.card import model_card
from t2cli.registry.checks import check_z
from t2cli.registry.entry import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    ExpertEntry,
    Slot,
    check_inside,
    decode_manifest,
    write_version,
)
from t2cli.registry.local import LocalRegistry
from t2cli.registry.manifest import ExpertManifest
from t2cli.registry.removed import removed_digest

ASK_AGAIN = "fetch the file again, or let its author write it anew"
ELSEWHERE = "take it into a registry of its own with --registry PATH, and copy it from there by t2 copy EXPERT NEW --to"


class Taken(NamedTuple):
    """An expert that is in the registry; `new`: it was not before."""

    entry: ExpertEntry
    new: bool


def check_manifest(raw: bytes, where: str) -> ExpertManifest:
    """Return the manifest in the bytes of an expert.yaml; CorruptArtifactError, naming `where`, if it is none."""
    if len(raw) > MAX_MANIFEST_BYTES:
        raise CorruptArtifactError(f"{where} is larger than a manifest can be", hint=ASK_AGAIN)
    return decode_manifest(raw, where, ASK_AGAIN)


def check_numbers(manifest: ExpertManifest, z: bytes, where: str, hint: str = "") -> None:
    """Raise CorruptArtifactError, naming `where`, unless `z` is the sound file that the manifest describes."""
    if hashlib.sha256(z).hexdigest() != manifest.z.sha256:
        raise CorruptArtifactError(
            f"{where} is not the file that {MANIFEST_FILE} describes: its SHA-256 differs", hint=hint
        )
    check_z(z, manifest.targets, where)


def present(
    registry: LocalRegistry, manifest: ExpertManifest, digest: str, origin: str, *, instead: str = ELSEWHERE
) -> ExpertEntry | None:
    """Return the expert of this digest on the search path; None where its version is free.

    Raises T2Error if the version is another expert's: `origin` names the one that was to come, `instead` says what
    can be done. CorruptArtifactError if what is there is damaged.
    """
    weights = manifest.base.fingerprint.weights
    taken = (slot for slot in registry.slots(manifest.name) if slot.version == manifest.version)
    others = [slot for slot in taken if slot.is_for(weights)]
    for slot in others:
        entry = registry.read(slot)
        if entry.digest != digest:
            continue
        if problems := registry.verify(entry):
            hint = f"remove it with t2 rm {slot.reference}, then try again"
            raise CorruptArtifactError(f"{slot.reference} is here but damaged: {problems[0]}", hint=hint)
        return entry
    reference = f"{manifest.name}@{manifest.version}"
    never = "and a published version never changes"
    if others:
        raise T2Error(f"{reference} here is another expert than {origin}, {never}", hint=instead)
    if removed_digest(_own(registry, manifest)) not in (None, digest):
        raise T2Error(f"{reference} here was another expert than {origin}, {never}", hint=instead)
    return None


def take_in(
    registry: LocalRegistry, raw: bytes, z: bytes, origin: str, *, instead: str = ELSEWHERE, broken: str = ASK_AGAIN
) -> Taken:
    """Put an expert of these bytes, `raw` its expert.yaml, into the registry; safe among several processes.

    It appears whole and verified or not at all. The model card is made from the manifest: never a stranger's text.
    Raises as `present`, CorruptArtifactError with the hint `broken` for what `verify` would refuse, and T2Error if
    writing fails.
    """
    manifest = check_manifest(raw, f"{origin} ({MANIFEST_FILE})")
    check_numbers(manifest, z, f"z.safetensors of {origin}", broken)
    slot = _own(registry, manifest)
    check_inside(slot.registry, slot.path.parent)
    with registry.lock():
        there = present(registry, manifest, hashlib.sha256(raw).hexdigest(), origin, instead=instead)
        if there is not None:  # another process may have taken it in meanwhile
            return Taken(there, False)
        write_version(slot, raw, z, model_card(manifest))
        return Taken(registry.read(slot), True)


def _own(registry: LocalRegistry, manifest: ExpertManifest) -> Slot:
    """Return the manifest's place in the folder that is written to."""
    return Slot(registry.writable(), manifest.base.folder, manifest.name, manifest.version)
