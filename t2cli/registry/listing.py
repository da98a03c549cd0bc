"""Manifests remembered between calls of `t2 list`, which would otherwise parse the YAML of every expert each time.

    $T2_HOME/cache/listings/<digest of the registry's path>.jsonl        lines <CRC-32 of the rest> <key> <JSON>:
        <CRC-32> - {"place", "stamp", "digest", "base": key, "manifest"}        one version
        <CRC-32> <key> {the manifest's base}                                    what many versions share

A line counts only while its manifest keeps its size, modification time (ns) and inode, and no link leads to it. Lines
are appended; a later line of the same place wins; damaged ones are passed over. Only for showing lists: whatever loads,
verifies or mixes an expert reads its manifest, and this file may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import stat
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2cli.errors import T2Error
from t2cli.files import write_atomic
from t2cli.paths import cache_dir
from t2cli.registry.dispatcher_record import dispatcher_of
from t2cli.registry.entry import MANIFEST_FILE, ExpertEntry, Slot, slots
from t2cli.registry.manifest import (
    BaseRecord,
    EvaluationRecord,
    ExpertManifest,
    FingerprintRecord,
    ParentRecord,
    TargetsRecord,
    TrainingRecord,
    ZRecord,
)

if TYPE_CHECKING:
    from t2cli.registry.local import LocalRegistry

Stamp = list[int]  # size, mtime_ns, inode

INTERVALS = ("ci95", "gain_ci95")
SETTLED_NS = 2_000_000_000  # a file changed this recently might change again within one tick of its clock
SPARE_LINES = 100  # that a cache may have beyond twice the versions in use before it is written anew


@dataclass(frozen=True)
class _Line:
    """What is remembered of one version, and the line that says so."""

    stamp: Stamp
    digest: str
    base: str
    manifest: dict[str, Any]
    text: str


@dataclass
class _Memory:
    """What is remembered of one registry: versions by place, bases and their lines by key, and how many lines."""

    versions: dict[str, _Line] = field(default_factory=dict)
    bases: dict[str, BaseRecord] = field(default_factory=dict)
    base_lines: dict[str, str] = field(default_factory=dict)
    lines: int = 0


def remembered(registry: LocalRegistry) -> list[ExpertEntry]:
    """Return what `registry.list()` returns, and set `registry.problems` as it does, reading only what is new."""
    registry.problems = []
    with _without_collection():
        return [entry for root in registry.search_path for entry in _of_root(registry, root)]


def _of_root(registry: LocalRegistry, root: Path) -> list[ExpertEntry]:
    memory = _load(root)
    entries: list[ExpertEntry] = []
    used: list[_Line] = []
    new: list[str] = []
    real: dict[str, bool] = {}
    bases = set(memory.bases)
    for slot in slots(root, registry.problems):
        stamp = _stamp(slot, real)
        line = memory.versions.get(_place(slot))
        if line is not None and line.stamp == stamp and (manifest := _manifest(line, memory)) is not None:
            entries.append(ExpertEntry(manifest, slot.path, line.digest, root, registry.source(slot)))
            used.append(line)
            continue
        try:
            entry = registry.read(slot)
        except T2Error as error:
            if os.path.lexists(slot.path):  # else another process removed it in the meantime
                registry.problems.append(error)
            continue
        entries.append(entry)
        if stamp is not None and time.time_ns() - stamp[1] > SETTLED_NS and stamp == _stamp(slot, {}):
            new += _written(stamp, entry, bases)
    _save(root, memory, used, new)
    return entries


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Let no garbage be collected in the block: with 10,000 manifests that took a third of the time, and found none."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def remember(entry: ExpertEntry) -> None:
    """Remember a version that was just published, so that the next list need not parse it."""
    if (stamp := _stamp(entry.slot, {})) is not None:
        _append(entry.registry, _written(stamp, entry, set()))


def cache_path(root: Path) -> Path:
    """Return the cache of the registry in the folder `root`."""
    return cache_dir() / "listings" / f"{hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:24]}.jsonl"


def _place(slot: Slot) -> str:
    return f"{slot.base}/{slot.name}/{slot.version}"


def _stamp(slot: Slot, real: dict[str, bool]) -> Stamp | None:
    """Return what changes with a manifest, None if a link leads to it; `real` remembers the folders seen so far."""
    folder = str(slot.registry)
    try:
        for part in (slot.base, slot.name, str(slot.version)):
            folder = f"{folder}/{part}"
            if folder not in real:
                real[folder] = stat.S_ISDIR(os.lstat(folder).st_mode)
            if not real[folder]:
                return None
        found = os.lstat(f"{folder}/{MANIFEST_FILE}")
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ino] if stat.S_ISREG(found.st_mode) else None


def _manifest(line: _Line, memory: _Memory) -> ExpertManifest | None:
    """Return the manifest that was remembered, None if an older t2 wrote the line.

    It was checked when it was read from its file, and the line's checksum guards it since.
    """
    fields = line.manifest
    try:
        rows = (row | {key: row[key] and tuple(row[key]) for key in INTERVALS} for row in fields["evaluation"])
        return ExpertManifest(
            **fields
            | {
                "base": memory.bases[line.base],
                "targets": TargetsRecord(**fields["targets"]),
                "z": ZRecord(**fields["z"]),
                "examples": tuple(fields["examples"]),
                "training": TrainingRecord(**fields["training"]) if fields["training"] else None,
                "evaluation": tuple(EvaluationRecord(**row) for row in rows),
                "parents": tuple(ParentRecord(**parent) for parent in fields["parents"]),
                "dispatcher": dispatcher_of(fields["dispatcher"]) if fields.get("dispatcher") else None,
            }
        )
    except (KeyError, TypeError, AttributeError):
        return None


def _written(stamp: Stamp, entry: ExpertEntry, known: set[str]) -> list[str]:
    """Return the line of a version, after that of its base unless its key is `known`; it is then."""
    manifest = entry.manifest.to_dict()
    base = json.dumps(manifest.pop("base"))
    key = hashlib.sha256(base.encode()).hexdigest()[:16]
    fields = {"place": _place(entry.slot), "stamp": stamp, "digest": entry.digest, "base": key, "manifest": manifest}
    version = _checked(f"- {json.dumps(fields)}")
    if key in known:
        return [version]
    known.add(key)
    return [_checked(f"{key} {base}"), version]


def _checked(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x} {text}"


def _load(root: Path) -> _Memory:
    """Return what the cache of a registry holds, of each place the newest line."""
    memory = _Memory()
    try:
        raw = cache_path(root).read_bytes()
    except OSError:
        return memory
    for line in raw.split(b"\n"):
        checksum, _, rest = line.partition(b" ")
        key, _, text = rest.partition(b" ")
        memory.lines += bool(line)
        try:
            if (name := key.decode()) in memory.bases or int(checksum, 16) != zlib.crc32(rest):
                continue
            fields = json.loads(text)
            if name == "-":
                known = _Line(fields["stamp"], fields["digest"], fields["base"], fields["manifest"], line.decode())
                memory.versions[fields["place"]] = known
            else:
                fingerprint = FingerprintRecord(**fields["fingerprint"])
                memory.bases[name] = BaseRecord(**fields | {"fingerprint": fingerprint})
                memory.base_lines[name] = line.decode()
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return memory


def _save(root: Path, memory: _Memory, used: list[_Line], new: list[str]) -> None:
    """Append what is new, or write the cache anew where most of it is of no use any more."""
    if memory.lines > 2 * len(used) + SPARE_LINES:
        texts = [*memory.base_lines.values(), *(line.text for line in used), *new]
        with contextlib.suppress(T2Error):
            write_atomic(cache_path(root), "".join(f"{text}\n" for text in texts))
    elif new:
        _append(root, new)


def _append(root: Path, lines: Iterable[str]) -> None:
    """Append lines in one write; a line that was cut short before them stays alone."""
    path = cache_path(root)
    with contextlib.suppress(OSError):  # a home that cannot be written to is no reason not to list
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            file.write(("\n" + "".join(f"{line}\n" for line in lines)).encode())
