"""What can be wrong with an expert on disk, in words: its manifest, its numbers, its shapes. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from t2cli.errors import CorruptArtifactError, T2Error
from t2cli.registry.entry import MANIFEST_FILE, RESTORE, ExpertEntry, Slot, read_entry
from t2cli.registry.manifest import Z_FILE, TargetsRecord
from t2cli.registry.zfile import check_finite, read_header

Lines = list[str]


def check_z(blob: bytes, targets: TargetsRecord, where: str) -> None:
    """Raise CorruptArtifactError unless `blob` is a sound z.safetensors of the stated size."""
    shapes = read_header(blob, where)
    count, parameters = len(shapes), sum(r for (r,) in shapes.values())
    if (count, parameters) != (targets.count, targets.parameters):
        raise CorruptArtifactError(
            f"{where} has {count} matrices and {parameters} numbers, but the manifest says"
            f" {targets.count} and {targets.parameters}",
            hint=RESTORE,
        )
    check_finite(blob, where)


def problems_at(slot: Slot, known: ExpertEntry | None = None) -> Lines:
    """Return everything that is wrong with what lies in `slot`, nothing if it is sound.

    Checks the manifest and, if there is a `known` entry, that it is still that one; the hash of z.safetensors, its
    header, that all numbers are finite, and that matrices and numbers are as many as the manifest says.
    """
    found: Lines = []
    entry = known
    try:
        entry = read_entry(slot, "")
        if known is not None and known.digest != entry.digest:
            found.append(f"{slot.path / MANIFEST_FILE} has changed: its SHA-256 is not {known.digest}")
    except T2Error as error:
        found.append(error.message)
    if entry is None:
        return found
    try:
        check_z(entry.z_bytes(), entry.manifest.targets, str(slot.path / Z_FILE))
    except T2Error as error:
        found.append(error.message)
    return found


def misfit(entry: ExpertEntry, ranks: Mapping[str, int], label: str) -> str:
    """Return what of an expert's shapes is not those of the base `label`, "" if all are.

    `ranks`: weight name -> r of the base. Raises CorruptArtifactError for a damaged expert.
    """
    for name, (r,) in read_header(entry.z_bytes(), str(entry.path)).items():
        if name not in ranks:
            return f"{label} has no {name}"
        if ranks[name] != r:
            return f"{name} has {ranks[name]} singular values in {label}, not {r}"
    return ""
