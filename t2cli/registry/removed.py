"""Versions that were removed: their numbers are not used again, but the same expert may come back to its place.

<registry>/<base>/<name>/.3.removed        version 3 existed once; holds its digest if that was known
"""

from __future__ import annotations

from pathlib import Path

from t2cli.errors import T2Error
from t2cli.registry.entry import Slot, read_entry
from t2cli.registry.manifest import SHA256_PATTERN
from t2cli.registry.reference import VERSION_PATTERN

REMOVED = ".removed"


def mark_removed(slot: Slot) -> None:
    """Remember, before a version is deleted, that there was one: its number is never given to another expert."""
    try:
        digest = read_entry(slot, "").digest
    except T2Error:  # damaged: what it was cannot be told, unless an earlier mark does
        digest = removed_digest(slot) or ""
    _mark(slot).write_text(digest)


def removed_digest(slot: Slot) -> str | None:
    """Return the digest of what once was in `slot`; None if nothing was, or it is not known what."""
    try:
        digest = _mark(slot).read_text(errors="replace")
    except OSError:
        return None
    return digest if SHA256_PATTERN.fullmatch(digest) else None


def removed_versions(home: Path) -> list[int]:
    """Return the versions that once were in `home`, the folder of all versions of an expert."""
    names = [mark.name[1:].removesuffix(REMOVED) for mark in home.glob(f".*{REMOVED}")]
    return [int(name) for name in names if VERSION_PATTERN.fullmatch(name)]


def _mark(slot: Slot) -> Path:
    return slot.path.with_name(f".{slot.version}{REMOVED}")
