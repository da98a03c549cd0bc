"""Experts for bundles, and bundles taken apart and put together by hand."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy
import safetensors.numpy

from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.manifest import (
    BaseRecord,
    ExpertManifest,
    FingerprintRecord,
    ParentRecord,
    TargetsRecord,
    ZRecord,
)

NUMBERS = safetensors.numpy.save({"w": numpy.full(6, 1.25, numpy.float32)})


def put(registry: LocalRegistry, name: str, **changes: object) -> ExpertEntry:
    manifest = ExpertManifest(
        name=name,
        version=1,
        kind="expert",
        category=name,
        description=f"questions of {name}",
        base=BaseRecord("tiny", "local", "", "LlamaForCausalLM", FingerprintRecord("a" * 64, {"w": [1.0]})),
        targets=TargetsRecord("all", 1, 6),
        z=ZRecord("z.safetensors", "0" * 64, "linear"),
        created="2026-11-23T10:00:00Z",
    )
    return registry.put(replace(manifest, **changes), NUMBERS)  # type: ignore[arg-type]


def parents(*entries: ExpertEntry) -> tuple[ParentRecord, ...]:
    return tuple(ParentRecord(entry.reference, entry.digest, 0.5) for entry in entries)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def members(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path, "r:") as archive:
        return [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]


def packed(path: Path, content: list[tuple[tarfile.TarInfo, bytes]], **how: int) -> Path:
    with tarfile.open(path, "w", **{"format": tarfile.USTAR_FORMAT, **how}) as archive:  # type: ignore[call-overload]
        for member, raw in content:
            archive.addfile(member, io.BytesIO(raw))
    return path
