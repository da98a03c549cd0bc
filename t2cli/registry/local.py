"""The registry on this machine: a search path of folders of experts. Only the first is written to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from t2cli import paths
from t2cli.errors import IncompatibleBaseError, NotFoundError, T2Error, UsageError
from t2cli.files import clear_temporaries, disk_error, locked, remove_whole
from t2cli.lookup import near_matches
from t2cli.registry.card import model_card
from t2cli.registry.checks import check_z, problems_at
from t2cli.registry.entry import MANIFEST_FILE, ExpertEntry, Slot, check_inside, read_entry, slots, write_version
from t2cli.registry.listing import remember
from t2cli.registry.manifest import BASE_NAME_PATTERN, Z_FILE, ExpertManifest
from t2cli.registry.reference import ExpertRef, check_name
from t2cli.registry.removed import mark_removed, removed_versions

__all__ = ["ExpertEntry", "LocalRegistry"]

# Inside the class `list` is the method.
Entries = list[ExpertEntry]
Slots = list[Slot]
Problems = list[T2Error]
Lines = list[str]


class LocalRegistry:
    """The experts in the folders of `search_path`; None means the one the environment gives.

    `source` is what entries say of where they are from, else "local", "shipped" or the folder.
    `problems` holds why versions were passed over by the latest `list`.
    """

    def __init__(self, search_path: Sequence[Path] | None = None, *, source: str | None = None) -> None:
        given = paths.registry_search_path() if search_path is None else search_path
        folders: dict[str, Path] = {}
        for path in given:  # the same folder twice would list every expert twice
            folders.setdefault(os.path.realpath(path), path)
        self.search_path = tuple(folders.values())
        self.problems: Problems = []
        known = {paths.shipped_registry(): "shipped", paths.t2_home() / "registry": "local"}
        self._sources = known if source is None else dict.fromkeys(self.search_path, source)

    def list(self, *, base_digest: str | None = None) -> Entries:
        """Return every version of every expert; with `base_digest` only those for the base of these weights.

        In the order of the search path, then by base, name and version. Reads manifests only. What cannot be
        read is left out and added to `problems`.
        """
        entries: Entries = []
        self.problems = []
        for slot in self.slots(problems=self.problems):
            if base_digest is not None and not slot.is_for(base_digest):
                continue
            try:
                entry = self.read(slot)
            except T2Error as error:
                if slot.path.is_dir():  # else another process removed it in the meantime
                    self.problems.append(error)
                continue
            if base_digest in (None, entry.manifest.base.fingerprint.weights):
                entries.append(entry)
        return entries

    def find(self, ref: ExpertRef | str, *, base_digest: str | None = None) -> ExpertEntry:
        """Return the expert that `ref` names: by digest, by version, or the newest on the search path.

        Where two folders have the same version, the first on the search path wins. With `base_digest` only
        experts for the base with these weights count; without it versions of all bases are compared.

        Raises NotFoundError with near matches, IncompatibleBaseError if there are such experts for other
        bases only, CorruptArtifactError if the expert is damaged (an older version is never returned
        instead), and UsageError for a malformed reference. One to the Hub is fetched first: see hub.fetched.
        """
        ref, pulled = self._fetched(ref, base_digest)
        if pulled is not None:
            return pulled.find(ref, base_digest=base_digest)
        candidates = self.candidates(ref)
        ours = [slot for slot in candidates if base_digest is None or slot.is_for(base_digest)]
        found = self._matching(ref, ours, base_digest)
        if found:
            return found[0]
        others = self.find_each(ref) if base_digest else []
        if base_digest and others:
            raise self._incompatible(others[0], base_digest)
        raise NotFoundError(
            f"there is no expert {ref}, but others of that name",
            hint=f"known: {', '.join(dict.fromkeys(slot.reference for slot in self.slots(ref.name)))}",
        )

    def find_each(self, ref: ExpertRef | str) -> Entries:
        """Return what `ref` means for each base that has such an expert; bases in the order of the search path.

        What cannot be read is passed over as long as another base has one. Raises as `find`.
        """
        ref, pulled = self._fetched(ref)
        if pulled is not None:
            return pulled.find_each(ref)
        homes: dict[str, Slots] = {}
        for slot in self.candidates(ref):
            homes.setdefault(slot.base, []).append(slot)
        found: Entries = []
        problems: Problems = []
        for places in homes.values():
            try:
                found += self._matching(ref, places, None)[:1]
            except T2Error as error:
                problems.append(error)
        if problems and not found:
            raise problems[0]
        return found

    def put(self, manifest: ExpertManifest, z: bytes) -> ExpertEntry:
        """Publish an expert as the next version of its name and return it; safe among several processes.

        `z` is the content of z.safetensors; the manifest's version, z.file and z.sha256 are set here. The
        version follows the newest on the whole search path, so that a reference means one expert only, and
        the number of a removed version is not used again. A version appears whole or not at all.

        Raises UsageError for a name that cannot be, CorruptArtifactError for a manifest or z that `verify`
        would refuse, T2Error if writing fails (disk full, no permission).
        """
        check_name(manifest.name)
        if not BASE_NAME_PATTERN.fullmatch(manifest.base.name):
            raise UsageError(f"{manifest.base.name!r} cannot be a base's short name", hint="leave out slashes")
        check_z(z, manifest.targets, Z_FILE)
        root = self.writable()
        home = root / manifest.base.folder / manifest.name
        check_inside(root, home)
        record = replace(manifest.z, file=Z_FILE, sha256=hashlib.sha256(z).hexdigest())
        with self.lock():
            slot = Slot(root, manifest.base.folder, manifest.name, self._next_version(manifest, home))
            manifest = replace(manifest, version=slot.version, z=record)
            text = manifest.to_yaml()
            ExpertManifest.from_yaml(text, MANIFEST_FILE)  # nothing is published that could not be read
            card = model_card(manifest)
            write_version(slot, text.encode(), z, card)
            entry = self.read(slot)  # before anybody else can remove it
        remember(entry)
        return entry

    def remove(self, ref: ExpertRef | str, *, base_digest: str | None = None) -> ExpertRef:
        """Delete the one version that `ref` names, damaged or not, and return its exact reference.

        Raises as `removable` and `remove_at`.
        """
        slot = self.removable(ref, among=lambda slot: base_digest is None or slot.is_for(base_digest))
        self.remove_at(slot)
        return ExpertRef(slot.name, version=slot.version)

    def removable(self, ref: ExpertRef | str, *, among: Callable[[Slot], bool] = lambda slot: True) -> Slot:
        """Return the place of the one version that `ref` names `among` some, damaged or not.

        Raises UsageError if several versions or bases fit or it lies in a folder that is not written to,
        NotFoundError if there is none.
        """
        ref = ExpertRef.parse(ref) if isinstance(ref, str) else ref
        if ref.repo is not None:
            raise UsageError(f"{ref} is on the Hub: only experts in a registry can be removed", hint="leave out hf://")
        candidates = [slot for slot in self.candidates(ref) if among(slot)]
        if ref.digest is not None:
            digests = {entry.path for entry in self._matching(ref, candidates, None)}
            candidates = [slot for slot in candidates if slot.path in digests]
        if not candidates:
            raise NotFoundError(f"there is no expert {ref} to remove", hint="see what there is with: t2 list --all")
        root = self.writable()
        own = [slot for slot in candidates if slot.registry == root]
        if len(own) > 1:
            places = ", ".join(f"{slot.reference} ({slot.base})" for slot in own)
            raise UsageError(f"{ref} could be any of: {places}", hint="name one version, and its base")
        if not own:
            raise UsageError(
                f"{ref} is in {candidates[0].registry}, which is not written to",
                hint=f"only experts in {root} can be removed",
            )
        return own[0]

    def remove_at(self, slot: Slot) -> None:
        """Delete what lies in `slot`; its version is not used again.

        Raises NotFoundError if it is gone, CorruptArtifactError if a link leads out of the registry, T2Error if it
        cannot be deleted.
        """
        check_inside(slot.registry, slot.path.parent)
        with self.lock():
            clear_temporaries(slot.path.parent)
            if not os.path.lexists(slot.path):
                raise NotFoundError(f"{slot.reference} was removed by another process")
            doomed = slot.path.with_name(f".{slot.version}.tmp")
            try:
                mark_removed(slot)
                slot.path.rename(doomed)
                remove_whole(doomed)
            except OSError as error:
                raise disk_error(slot.path, error) from error

    def verify(self, entry: ExpertEntry) -> Lines:
        """Return everything that is wrong with an expert on disk, nothing if it is sound.

        Checks the manifest and that it is still the one in `entry`, the hash of z.safetensors, its header,
        that all numbers are finite, and that matrices and numbers are as many as the manifest says.
        """
        return problems_at(entry.slot, entry)

    def _fetched(self, ref: ExpertRef | str, base: str | None = None) -> tuple[ExpertRef, LocalRegistry | None]:
        """Return a reference without its Hub repository, and the registry of what was fetched from there, if any."""
        ref = ExpertRef.parse(ref) if isinstance(ref, str) else ref
        if ref.repo is None:
            return ref, None
        from t2cli.registry.hub import fetched

        return replace(ref, repo=None), fetched(ref, base)

    def slots(self, name: str | None = None, problems: Problems | None = None) -> Slots:
        """Return every place on the search path that looks like a version of `name` (of any expert).

        Nothing is read. Folders that cannot be listed are added to `problems`.
        """
        problems = [] if problems is None else problems
        return [slot for registry in self.search_path for slot in slots(registry, problems, name)]

    def candidates(self, ref: ExpertRef) -> Slots:
        """Return the places `ref` may mean, best first; NotFoundError if there are none of that name."""
        named = self.slots(ref.name)
        if not named:
            hint = near_matches(ref.name, {slot.name for slot in self.slots()})
            raise NotFoundError(
                f"there is no expert named {ref.name!r}", hint=hint or "there are no experts yet: train one"
            )
        fitting = [slot for slot in named if ref.version in (None, slot.version)]
        # A stable sort: the search path decides between equal versions.
        return sorted(fitting, key=lambda slot: -slot.version)

    def _matching(self, ref: ExpertRef, places: Slots, base_digest: str | None) -> Entries:
        """Return the entries in `places` that `ref` names: all of them for a digest, else the first only.

        A place that cannot be read raises its error, unless a digest is sought and another place has it.
        """
        found: Entries = []
        problems: Problems = []
        for slot in places:
            try:
                entry = self.read(slot)
            except T2Error as error:
                if not os.path.lexists(slot.path):  # another process removed it in the meantime
                    continue
                if ref.digest is None:
                    raise
                problems.append(error)
                continue
            if base_digest not in (None, entry.manifest.base.fingerprint.weights):
                continue
            if ref.digest is None:
                return [entry]
            if entry.digest.startswith(ref.digest):
                found.append(entry)
        if problems and not found:
            raise problems[0]
        return found

    def _incompatible(self, entry: ExpertEntry, base_digest: str) -> IncompatibleBaseError:
        known = {slot.base for slot in self.slots() if slot.is_for(base_digest)}
        theirs, wanted = entry.manifest.base.folder, min(known, default=base_digest[:12])
        return IncompatibleBaseError(
            f"the expert {entry.manifest.name} is for the base {theirs}, not for {wanted}",
            hint=f"see t2 list, pass --base {entry.manifest.base.name}, or train one for this base",
        )

    def read(self, slot: Slot) -> ExpertEntry:
        """Read and check the manifest in `slot`, nothing else. Raises CorruptArtifactError if it is damaged."""
        return read_entry(slot, self.source(slot))

    def source(self, slot: Slot) -> str:
        """Return what people call the registry that `slot` is in: "local", "shipped" or its path."""
        return self._sources.get(slot.registry, str(slot.registry))

    def writable(self) -> Path:
        """Return the folder that new experts are written to; UsageError if there is none."""
        if not self.search_path:
            raise UsageError("there is no registry to write to", hint="set T2_REGISTRY or pass --registry")
        return self.search_path[0]

    def lock(self) -> AbstractContextManager[None]:
        """Hold the registry's lock against other processes that write to it."""
        return locked(self.writable() / ".lock", waiting="waiting for another process that uses this registry")

    def _next_version(self, manifest: ExpertManifest, home: Path) -> int:
        weights = manifest.base.fingerprint.weights
        used = [slot.version for slot in self.slots(manifest.name) if slot.is_for(weights)]
        return 1 + max([*used, *removed_versions(home)], default=0)
