"""Experts on the Hugging Face Hub: what a repository holds, and how it gets here whole and checked, or not at all.

A repository has the tree of a registry, <base>/<name>/<version>/, with a README.md above it, and may hold many experts.
Two ways lead here, and both keep version and digest: `pull` puts experts into the registry, where they are experts
like any other; a reference such as hf://org/repo/math@2 fetches into a registry of that repository's own below the
cache (paths.hub_experts), so that it cannot collide with math@2 of this machine. Nothing is believed: sizes are
checked before a byte is fetched, hashes and contents before anything appears.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from t2cli import paths
from t2cli.errors import CorruptArtifactError, NotFoundError, T2Error, UsageError
from t2cli.lookup import near_matches
from t2cli.registry.entry import MANIFEST_FILE, MAX_MANIFEST_BYTES, ExpertEntry, Slot, parse_manifest
from t2cli.registry.hub_client import BROKEN, HubRepo, Snapshot
from t2cli.registry.intake import present, take_in
from t2cli.registry.local import LocalRegistry
from t2cli.registry.manifest import Z_FILE, ExpertManifest
from t2cli.registry.reference import HUB_SCHEME, REPO_PATTERN, ExpertRef
from t2cli.registry.zfile import NUMBER_BYTES, max_file_bytes

MAX_MANIFESTS = 1000  # that are read at once: each costs a request

_PLACE = re.compile(
    rf"([A-Za-z0-9][A-Za-z0-9._-]{{0,111}})/([a-z0-9][a-z0-9._-]{{0,63}})/([1-9][0-9]{{0,8}})/{re.escape(MANIFEST_FILE)}"
)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class HubSource:
    """What `t2 pull` is told: a repository, a revision of it (None: the newest), and one of its experts (None: all)."""

    repo: str
    revision: str | None = None
    expert: ExpertRef | None = None

    @classmethod
    def parse(cls, text: str) -> HubSource:
        """Return what ORG/REPO[@REVISION][/NAME[@VERSION]] says, with or without hf://; UsageError if malformed."""
        organisation, _, rest = text.strip().removeprefix(HUB_SCHEME).partition("/")
        middle, slash, expert = rest.partition("/")
        name, at, revision = middle.partition("@")
        repo = f"{organisation}/{name}"
        if not REPO_PATTERN.fullmatch(repo) or (at and not _REVISION.fullmatch(revision)) or (slash and not expert):
            raise UsageError(
                f"{text[:160]!r} names nothing on the Hub",
                hint="write it as ORG/REPO, ORG/REPO@REVISION or ORG/REPO/NAME@2",
            )
        return cls(repo, revision or None, ExpertRef.parse(expert) if slash else None)


@dataclass(frozen=True)
class Published:
    """One version of an expert in a repository: where, its manifest with the bytes of it, and their SHA-256."""

    slot: Slot
    manifest: ExpertManifest
    text: bytes
    digest: str
    origin: str  # its reference, as in hf://org/repo/math@2


@dataclass(frozen=True)
class Pulled:
    """What became of one expert of a pull; `new`: it was not here already; `commit`: that of the repository."""

    entry: ExpertEntry
    new: bool
    commit: str


def places(snapshot: Snapshot) -> list[Slot]:
    """Return where a repository has experts, known from file names alone."""
    matches = (_PLACE.fullmatch(path) for path in snapshot.files)
    # `registry` is the repository itself, so that `path` is the path in it
    found = [Slot(Path(), match[1], match[2], int(match[3])) for match in matches if match]
    return sorted(found, key=lambda slot: (slot.name, slot.base, slot.version))


def newest(slots: Sequence[Slot]) -> list[Slot]:
    """Return the newest version of each name and base."""
    best = {(slot.base, slot.name): slot for slot in sorted(slots, key=lambda slot: slot.version)}
    return [slot for slot in slots if best[slot.base, slot.name] == slot]


def read_published(repo: HubRepo, snapshot: Snapshot, slot: Slot) -> Published:
    """Fetch and check a manifest. Raises CorruptArtifactError for one that is not what its place says."""
    origin = f"{HUB_SCHEME}{repo.name}/{slot.reference}"
    text = repo.read(snapshot, f"{slot.path.as_posix()}/{MANIFEST_FILE}", MAX_MANIFEST_BYTES)
    manifest = parse_manifest(text, slot, f"{origin} ({MANIFEST_FILE})")
    return Published(slot, manifest, text, hashlib.sha256(text).hexdigest(), origin)


def wanted(repo: HubRepo, snapshot: Snapshot, expert: ExpertRef | None, *, every: bool = False) -> Iterator[Published]:
    """Yield the experts of a repository that are asked for: the newest of each base, unless a version says which.

    Raises NotFoundError with what there is, CorruptArtifactError for one that is damaged.
    """
    there = places(snapshot)
    if not there:
        raise NotFoundError(
            f"{repo.name} holds no experts of t2", hint="they lie in <base>/<name>/<version>/expert.yaml"
        )
    named = [slot for slot in there if expert is None or slot.name == expert.name]
    if expert is not None and not named:
        hint = near_matches(expert.name, {slot.name for slot in there})
        raise NotFoundError(f"{repo.name} has no expert named {expert.name!r}", hint=hint)
    if expert is None or (expert.version is None and expert.digest is None):
        chosen = _bounded(named if every else newest(named))
        yield from (read_published(repo, snapshot, slot) for slot in chosen)
        return
    found = False
    for slot in _bounded([slot for slot in named if expert.version in (None, slot.version)]):
        published = read_published(repo, snapshot, slot)
        if expert.digest is None or published.digest.startswith(expert.digest):
            found = True
            yield published
    if not found:
        known = ", ".join(dict.fromkeys(slot.reference for slot in named))
        raise NotFoundError(f"{repo.name} has no {expert}, but others of that name", hint=f"known: {known}")


def pull(
    repo: HubRepo,
    source: HubSource,
    registry: LocalRegistry,
    *,
    every: bool = False,
    expect: Callable[[int], None] = lambda total: None,
) -> Iterator[Pulled]:
    """Bring experts into the first folder of `registry`, and yield each when it is there, complete and verified.

    `expect` is told how many bytes of files will have come, once the manifests say what is to be fetched.
    Manifests come first: where one is damaged, or its place is taken by another expert, nothing is written.
    Raises as HubRepo, `wanted` and `take_in`.
    """
    snapshot = repo.snapshot(source.revision)
    experts = list(wanted(repo, snapshot, source.expert, every=every))
    here = [present(registry, one.manifest, one.digest, one.origin, instead=_instead(one.origin)) for one in experts]
    needed = [_z_size(snapshot, one) for one, entry in zip(experts, here, strict=True) if entry is None]
    expect(sum(needed) + sum(len(one.text) for one in experts))
    for one, entry in zip(experts, here, strict=True):
        if entry is not None:
            yield Pulled(entry, False, snapshot.commit)
        else:
            z = _read_z(repo, snapshot, one)
            made = take_in(registry, one.text, z, one.origin, instead=_instead(one.origin), broken=BROKEN)
            yield Pulled(made.entry, made.new, snapshot.commit)


def hub_registry(repo: str) -> LocalRegistry:
    """Return the registry of what references to a repository fetched so far; nothing is asked of the Hub."""
    return LocalRegistry([paths.hub_experts(repo)], source=f"{HUB_SCHEME}{repo}")


def fetched(ref: ExpertRef, base_digest: str | None = None) -> LocalRegistry:
    """Return the registry of what was fetched from the repository of `ref`, after fetching what `ref` means if need be.

    An exact version that is here (for the base with these weights, if they are given) is used without asking the Hub,
    also offline; without a version the Hub says which is the newest. Raises as `pull` if nothing is here.
    """
    if ref.repo is None:
        raise UsageError(f"{ref} is not on the Hub", hint=f"write {HUB_SCHEME}ORG/REPO/NAME")
    registry = hub_registry(ref.repo)
    local = replace(ref, repo=None)
    here = _known(registry, local) if ref.version or ref.digest else []
    if any(base_digest in (None, entry.manifest.base.fingerprint.weights) for entry in here):
        return registry
    try:
        for _ in pull(HubRepo(ref.repo), HubSource(ref.repo, expert=local), registry):
            pass
    except CorruptArtifactError:
        raise
    except T2Error:
        if not here:  # else it is here for another base, and whoever asks decides about that one
            raise
    return registry


def listed(repo: HubRepo, revision: str | None, *, every: bool = False) -> tuple[list[ExpertEntry], list[T2Error]]:
    """Return the experts of a repository, from their manifests alone, and why others could not be read."""
    snapshot = repo.snapshot(revision)
    there = places(snapshot)
    entries: list[ExpertEntry] = []
    problems: list[T2Error] = []
    for slot in _bounded(there if every else newest(there)):
        try:
            one = read_published(repo, snapshot, slot)
        except CorruptArtifactError as error:
            problems.append(error)
        else:
            source = f"{HUB_SCHEME}{repo.name}"
            entries.append(ExpertEntry(one.manifest, slot.path, one.digest, slot.registry, source))
    return entries, problems


def _instead(origin: str) -> str:
    return f"give it another name with t2 copy {origin} NEW, or pull it into a registry of its own with --registry PATH"


def _bounded(slots: list[Slot]) -> list[Slot]:
    if len(slots) > MAX_MANIFESTS:
        raise UsageError(f"these are {len(slots)} experts, more than {MAX_MANIFESTS}", hint="name one of them")
    return slots


def _known(registry: LocalRegistry, ref: ExpertRef) -> list[ExpertEntry]:
    try:
        return registry.find_each(ref)
    except NotFoundError:
        return []


def _read_z(repo: HubRepo, snapshot: Snapshot, published: Published) -> bytes:
    """Fetch z.safetensors if it has the size that the manifest makes it have, else CorruptArtifactError."""
    parameters = published.manifest.targets.parameters
    size = _z_size(snapshot, published)
    if not NUMBER_BYTES * parameters < size <= max_file_bytes(parameters):
        raise CorruptArtifactError(
            f"{Z_FILE} of {published.origin} has {size} bytes, which cannot be {parameters} numbers", hint=BROKEN
        )
    return repo.read(snapshot, _z_path(published), max_file_bytes(parameters))


def _z_path(published: Published) -> str:
    return f"{published.slot.path.as_posix()}/{Z_FILE}"


def _z_size(snapshot: Snapshot, published: Published) -> int:
    """Return the bytes that the Hub says z.safetensors has, 0 if there is none."""
    path = _z_path(published)
    return snapshot.files[path].size if path in snapshot.files else 0
