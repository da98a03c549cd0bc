"""Experts that were published elsewhere: taken in as they are, so that their digests stay what mixes know them by.

new          the place by its version was free: the same bytes of expert.yaml and z.safetensors are there now
there        an expert of this digest was on the search path already
renumbered   another expert has, or had, that version here: it became the next one, and so has another digest
"""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple

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
    read_entry,
    write_version,
)
from t2cli.registry.local import LocalRegistry
from t2cli.registry.manifest import ExpertManifest

ASK_AGAIN = "fetch the file again, or let its author write it anew"


class Taken(NamedTuple):
    """An expert that is in the registry, and how it came there."""

    entry: ExpertEntry
    how: Literal["new", "there", "renumbered"]


def check_manifest(raw: bytes, where: str) -> ExpertManifest:
    """Return the manifest in the bytes of an expert.yaml; CorruptArtifactError, naming `where`, if it is none."""
    if len(raw) > MAX_MANIFEST_BYTES:
        raise CorruptArtifactError(f"{where} is larger than a manifest can be", hint=ASK_AGAIN)
    return decode_manifest(raw, where, ASK_AGAIN)


def check_numbers(manifest: ExpertManifest, z: bytes, where: str) -> None:
    """Raise CorruptArtifactError, naming `where`, unless `z` is the sound file that the manifest describes."""
    if hashlib.sha256(z).hexdigest() != manifest.z.sha256:
        raise CorruptArtifactError(f"{where} is not the file that {MANIFEST_FILE} describes: its SHA-256 differs")
    check_z(z, manifest.targets, where)


def take_in(registry: LocalRegistry, raw: bytes, z: bytes, where: str) -> Taken:
    """Put an expert of these bytes, `raw` its expert.yaml, into the registry; safe among several processes.

    It appears whole and verified or not at all. Raises CorruptArtifactError, naming `where`, for what `verify` would
    refuse, and as LocalRegistry.put.
    """
    manifest = check_manifest(raw, where)
    check_numbers(manifest, z, where)
    digest = hashlib.sha256(raw).hexdigest()
    if there := _held(registry, manifest, digest):
        return Taken(there, "there")
    root = registry.writable()
    slot = Slot(root, manifest.base.folder, manifest.name, manifest.version)
    check_inside(root, slot.path)
    with registry.lock():
        if there := _held(registry, manifest, digest):  # another process took it in meanwhile
            return Taken(there, "there")
        if _is_free(registry, manifest, slot):
            write_version(slot, raw, z, model_card(manifest))  # never a stranger's text
            return Taken(registry.read(slot), "new")
    return Taken(registry.put(manifest, z), "renumbered")


def _held(registry: LocalRegistry, manifest: ExpertManifest, digest: str) -> ExpertEntry | None:
    """Return the sound expert of this digest on the search path, if there is one."""
    for slot in _same_name(registry, manifest):
        if slot.version != manifest.version:
            continue
        try:
            found = read_entry(slot, "").digest == digest
            entry = registry.find(f"{manifest.name}@sha256:{digest}") if found else None
        except T2Error:
            continue
        if entry is not None and not registry.verify(entry):
            return entry
    return None


def _is_free(registry: LocalRegistry, manifest: ExpertManifest, slot: Slot) -> bool:
    removed = slot.path.with_name(f".{slot.version}.removed").exists()  # its number is never used again
    return not removed and all(other.version != slot.version for other in _same_name(registry, manifest))


def _same_name(registry: LocalRegistry, manifest: ExpertManifest) -> list[Slot]:
    """Return the places on the search path that have a version of this name for this base."""
    return [slot for slot in registry.slots(manifest.name) if slot.is_for(manifest.base.fingerprint.weights)]
