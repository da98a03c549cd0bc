"""An expert's z between files and tensors. Loads torch, inside its functions only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2cli.errors import CorruptArtifactError

if TYPE_CHECKING:
    from t2cli.registry.entry import ExpertEntry
    from t2cli.svf.zvector import ZVectors


def z_to_bytes(z: ZVectors) -> bytes:
    """Return the content of z.safetensors."""
    from safetensors.torch import save

    return save({name: vector.contiguous() for name, vector in z.items()})


def read_z(entry: ExpertEntry) -> ZVectors:
    """Return an expert's z, its hash, header and numbers checked. Raises CorruptArtifactError if anything is off."""
    from safetensors.torch import load

    from t2cli.registry.zfile import check_finite, read_header
    from t2cli.svf.zvector import ZVectors

    content = entry.z_bytes()
    read_header(content)
    check_finite(content)
    z = ZVectors(load(content))
    targets = entry.manifest.targets
    if len(z) != targets.count or z.parameters != targets.parameters:
        raise CorruptArtifactError(
            f"{entry.reference} holds {len(z)} matrices and {z.parameters} numbers, its manifest says "
            f"{targets.count} and {targets.parameters}",
            hint=f"remove {entry.path} and train or fetch the expert again",
        )
    return z
