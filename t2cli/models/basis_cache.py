"""Bases on disk: one file per matrix, streamed from the checkpoint, atomic, resumable, shared by processes.

    <cache>/bases/<base>-<digest>/<weight>.safetensors    Q (r, r) float32, S (r,) float64

A killed decomposition loses at most the matrix at hand: what is there is whole, and is used.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from t2cli.config import DecomposeConfig
from t2cli.errors import CorruptArtifactError, T2Error
from t2cli.files import disk_error, locked, writing
from t2cli.models.catalog import BaseFiles
from t2cli.models.identity import BaseIdentity
from t2cli.paths import cache_dir

if TYPE_CHECKING:
    import torch

    from t2cli.models.targets import Target
    from t2cli.svf.basis import Basis

FORMAT = "t2.basis/1"


@dataclass(frozen=True)
class Decomposition:
    """What `decompose` did: `computed` of the `targets` were missing, the others were there."""

    folder: Path
    targets: int
    parameters: int
    computed: int
    seconds: float


def basis_folder(identity: BaseIdentity) -> Path:
    """Return where the bases of this base model are."""
    return cache_dir() / "bases" / identity.folder_name


def decompose(
    files: BaseFiles, identity: BaseIdentity, config: DecomposeConfig, *, quiet: bool = False
) -> Decomposition:
    """Make the bases that are missing for `config.selection`, reading one weight at a time."""
    from t2cli.models.targets import checkpoint_targets

    targets = checkpoint_targets(files.folder, config.selection)
    folder = basis_folder(identity)
    started = time.monotonic()
    missing = [target for target in targets if not _path(folder, target.weight).is_file()]
    computed = 0
    if missing:
        waiting = f"another process is decomposing {identity.name}; waiting for it"
        with locked(folder.parent / f"{folder.name}.lock", waiting="" if quiet else waiting):
            for leftover in folder.glob(".*.tmp"):  # of a process that was killed: who writes holds the lock
                leftover.unlink(missing_ok=True)
            missing = [target for target in targets if not _path(folder, target.weight).is_file()]
            computed = _decompose_missing(files, folder, missing, config, quiet)
    parameters = sum(target.rank for target in targets)
    return Decomposition(folder, len(targets), parameters, computed, time.monotonic() - started)


def _decompose_missing(
    files: BaseFiles, folder: Path, missing: list[Target], config: DecomposeConfig, quiet: bool
) -> int:
    from tqdm import tqdm

    from t2cli.models.checkpoint import Checkpoint
    from t2cli.svf.basis import basis_of

    checkpoint = Checkpoint(files.folder)
    show = not quiet and sys.stderr.isatty()
    for target in tqdm(missing, desc="decompose", unit="matrix", disable=not show):
        try:
            basis = basis_of(checkpoint.weight(target), config.device)
        except ValueError as error:
            raise CorruptArtifactError(
                f"{target.weight} cannot be decomposed: {error}",
                hint="fetch the model again, or leave it out",
            ) from error
        _save(_path(folder, target.weight), basis)
    return len(missing)


def _path(folder: Path, weight: str) -> Path:
    return folder / f"{weight}.safetensors"


def _save(path: Path, basis: Basis) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with writing(path) as temporary:
        try:
            save_file({"Q": basis.Q.cpu(), "S": basis.S.cpu()}, temporary, {"format": FORMAT, "side": basis.side})
        except SafetensorError as error:  # how safetensors reports a failed write
            if "os error 28" in str(error).lower() or "no space" in str(error).lower():
                raise disk_error(path, OSError(28, "No space left on device")) from error
            raise T2Error(f"{path} could not be written: {error}", hint="check the folder of T2_HOME") from error


def load_basis(identity: BaseIdentity, target: Target) -> Basis:
    """Return the basis of one target, mapped from disk. Raises CorruptArtifactError if it is damaged."""
    import torch
    from safetensors import SafetensorError, safe_open

    from t2cli.svf.basis import Basis, side_of

    path = _path(basis_folder(identity), target.weight)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            Q, S = file.get_tensor("Q"), file.get_tensor("S")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error
    side = side_of(*target.shape)
    if metadata.get("format") != FORMAT or metadata.get("side") != side:
        raise _damaged(path, "it was written by another version of t2")
    if Q.shape != (target.rank, target.rank) or S.shape != (target.rank,):
        raise _damaged(path, f"its shape {tuple(Q.shape)} is not that of {target.weight}")
    if (Q.dtype, S.dtype) != (torch.float32, torch.float64):
        raise _damaged(path, f"it holds {Q.dtype} and {S.dtype}")
    return Basis(Q, S, side)


def _damaged(path: Path, why: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"the basis {path} cannot be used: {why}", hint=f"delete {path} and run `t2 decompose` again"
    )


def load_bases(identity: BaseIdentity, targets: list[Target]) -> dict[str, Basis]:
    """Return the bases of all `targets` by weight name."""
    return {target.weight: load_basis(identity, target) for target in targets}


def singular_values(identity: BaseIdentity, targets: list[Target]) -> dict[str, torch.Tensor]:
    """Return S (r,) of all `targets` by weight name."""
    return {weight: basis.S for weight, basis in load_bases(identity, targets).items()}
