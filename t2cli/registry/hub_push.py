"""Publish an expert in a repository on the Hugging Face Hub: one commit and a tag, or nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from t2cli.errors import CorruptArtifactError, T2Error
from t2cli.registry.card import model_card
from t2cli.registry.entry import CARD_FILE, MANIFEST_FILE, MAX_MANIFEST_BYTES, ExpertEntry, Slot, read_inside
from t2cli.registry.hub import newest, places, read_published
from t2cli.registry.hub_card import hub_card
from t2cli.registry.hub_client import HubConflictError, HubRepo, Snapshot
from t2cli.registry.local import LocalRegistry
from t2cli.registry.manifest import Z_FILE, ExpertManifest

TRIES = 2  # a conflict means that somebody else pushed: once more, after theirs
MAX_CARD_BYTES = 1 << 20
MAX_CARD_EXPERTS = 200  # each costs a request


@dataclass(frozen=True)
class Pushed:
    """What became of a push: the commit that holds the expert, its tag, and whether this push made it."""

    commit: str
    tag: str
    new: bool


def push(
    entry: ExpertEntry, repo: HubRepo, registry: LocalRegistry, *, private: bool = False, license_id: str = ""
) -> Pushed:
    """Publish `entry` under its base, name and version, after checking it; the repository is created if need be.

    The same expert again changes nothing. Raises CorruptArtifactError for a damaged expert, T2Error if another one has
    its version there, HubConflictError if others keep committing, and as HubRepo.
    """
    if problems := registry.verify(entry):
        raise CorruptArtifactError(f"{entry.reference} is damaged: {problems[0]}", hint="nothing was published")
    repo.create(private=private)
    tried = 0
    while True:
        tried += 1
        try:
            return _pushed_once(entry, repo, license_id, tried > 1)
        except HubConflictError:
            if tried == TRIES:
                raise


def tag_of(manifest: ExpertManifest, *, others: bool) -> str:
    """Return the tag of a version, as in math-v2; with the base where `others` share name and version."""
    tag = f"{manifest.name}-v{manifest.version}"
    return f"{tag}-{manifest.base.folder}" if others else tag


def _pushed_once(entry: ExpertEntry, repo: HubRepo, license_id: str, again: bool) -> Pushed:
    """Publish after the newest commit; `again` tells that this push may have made it already."""
    manifest = entry.manifest
    snapshot = repo.snapshot()
    slot = Slot(entry.registry, manifest.base.folder, manifest.name, manifest.version)
    there = places(snapshot)
    twins = [other for other in there if (other.name, other.version) == (slot.name, slot.version)]
    others = any(other.base != slot.base for other in twins)
    same = next((other for other in twins if other.base == slot.base), None)
    if same is None:
        files = _files(entry, slot) | {CARD_FILE: _card(entry, repo, snapshot, license_id)}
        commit = repo.commit(files, f"Add {entry.manifest.name}@{manifest.version} for {slot.base}", snapshot.commit)
        tag = tag_of(manifest, others=others)
        repo.tag(tag, commit)
        return Pushed(commit, tag, new=True)
    published = read_published(repo, snapshot, same)
    if published.digest != entry.digest:
        raise T2Error(
            f"{repo.name} has another {same.reference} for {slot.base}, and a published version never changes",
            hint="publish this one under another name: t2 mix EXPERT:1 --name NAME makes a copy",
        )
    tags = repo.tags()
    known = [tag for tag in (tag_of(manifest, others=False), tag_of(manifest, others=True)) if tag in tags]
    if not known:  # a push that was cut off between its commit and its tag
        known = [tag_of(manifest, others=others)]
        repo.tag(known[0], snapshot.commit)
    return Pushed(snapshot.commit, known[0], new=again)


def _files(entry: ExpertEntry, slot: Slot) -> dict[str, bytes]:
    """Return the files of a version by their paths in the repository, exactly the ones that were verified."""
    text = read_inside(entry.registry, entry.path / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    if hashlib.sha256(text).hexdigest() != entry.digest:
        raise CorruptArtifactError(f"{entry.path / MANIFEST_FILE} changed while it was read", hint="try again")
    folder = f"{slot.base}/{slot.name}/{slot.version}"
    card = model_card(entry.manifest).encode()
    return {f"{folder}/{MANIFEST_FILE}": text, f"{folder}/{Z_FILE}": entry.z_bytes(), f"{folder}/{CARD_FILE}": card}


def _card(entry: ExpertEntry, repo: HubRepo, snapshot: Snapshot, license_id: str) -> bytes:
    """Return the repository's README.md with this expert and the newest of the others."""
    own = entry.manifest
    mine = Slot(entry.registry, own.base.folder, own.name, own.version)
    experts = [own]
    for slot in newest(places(snapshot))[:MAX_CARD_EXPERTS]:
        if (slot.base, slot.name) == (mine.base, mine.name):
            if slot.version < mine.version:
                continue
            experts.remove(own)  # an older version, published late
        try:
            experts.append(read_published(repo, snapshot, slot).manifest)
        except CorruptArtifactError:  # somebody's broken expert must not keep others from publishing
            continue
    before = b""
    if CARD_FILE in snapshot.files:
        before = repo.read(snapshot, CARD_FILE, MAX_CARD_BYTES)
    experts.sort(key=lambda expert: (expert.name, expert.base.folder))
    return hub_card(repo.name, experts, license_id=license_id, before=before.decode(errors="replace")).encode()
