"""Bases on disk: one file per matrix, streamed from the checkpoint, atomic, resumable, shared by processes.

    <cache>/bases/<base>-<digest>/<weight>.safetensors              float32
    <cache>/bases/<base>-<digest>/bfloat16/<weight>.safetensors     half the size, if that was asked for

A killed decomposition loses at most the matrix at hand: what is there is whole, and is used; what is damaged or of
another version is made again. Processes claim one matrix each, so that several share the work. Where both precisions
are there, float32 is used.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from t2cli.config import BASIS_DTYPES, DecomposeConfig
from t2cli.errors import CorruptArtifactError, T2Error
from t2cli.files import claimed
from t2cli.models.basis_files import SUFFIX, BasisFiles
from t2cli.models.basis_plan import announcement, bytes_for, require_room, seconds_for, work
from t2cli.models.basis_pool import compute_each, workers_for
from t2cli.models.catalog import BaseFiles
from t2cli.models.identity import BaseIdentity
from t2cli.paths import cache_dir

if TYPE_CHECKING:
    import torch

    from t2cli.models.checkpoint import Checkpoint
    from t2cli.models.targets import Target
    from t2cli.svf.basis import Basis

PATIENCE = 0.1  # seconds between looks at what other processes are making


@dataclass(frozen=True)
class Decomposition:
    """What `decompose` did: `computed` of the `targets` were missing, the others were there or made by others."""

    folder: Path
    dtype: str
    targets: int
    parameters: int
    computed: int
    seconds: float


def basis_folder(identity: BaseIdentity, dtype: str = "float32") -> Path:
    """Return where the bases of this base model are."""
    folder = cache_dir() / "bases" / identity.folder_name
    return folder if dtype == "float32" else folder / dtype


def basis_files(identity: BaseIdentity, dtype: str) -> BasisFiles:
    """Return the files of this base model's bases in one precision."""
    return BasisFiles(basis_folder(identity, dtype), identity.weights, dtype)


def basis_files_in_use(identity: BaseIdentity, targets: Sequence[Target]) -> BasisFiles:
    """Return the files of the precision that lacks the fewest of the targets; float32 if in doubt."""
    fewest, chosen = len(targets) + 1, None
    for dtype in BASIS_DTYPES:
        files = basis_files(identity, dtype)
        if (missing := len(files.missing(targets))) < fewest:
            fewest, chosen = missing, files
        if not missing:
            break
    assert chosen is not None
    return chosen


def decompose(
    files: BaseFiles,
    identity: BaseIdentity,
    config: DecomposeConfig,
    targets: Sequence[Target] | None = None,
    *,
    quiet: bool = False,
    asked: bool = False,
) -> Decomposition:
    """Make the bases that are missing or damaged, reading one weight at a time.

    They are those of `targets` if these are given, else of `config.selection`, which the model's config tells.
    What it will take is said on stderr before it starts, unless `quiet`; under a second only if it was `asked` for.
    Raises T2Error before anything is computed if the disk has no room.
    """
    from t2cli.models.targets import checkpoint_targets

    if targets is None:
        targets = checkpoint_targets(files.folder, config.selection)
    cache = basis_files(identity, config.dtype) if config.dtype else basis_files_in_use(identity, targets)
    started = time.monotonic()
    computed = 0
    if missing := cache.missing(targets):
        require_room(cache.folder, bytes_for(cache, missing))
        if not quiet and ((seconds := seconds_for(missing, config)) >= 1 or asked):
            print(f"decomposing {identity.name}: {announcement(cache, missing, seconds)}", file=sys.stderr)
        _clear_leftovers(cache)
        computed = _make_all(files, cache, missing, config, quiet)
        _clear_leftovers(cache)
    else:
        # a process that was killed at the very end left a lock; where nobody may write it stays
        with contextlib.suppress(T2Error):
            _clear_leftovers(cache)
    parameters = sum(target.rank for target in targets)
    seconds = time.monotonic() - started
    return Decomposition(cache.folder, cache.dtype, len(targets), parameters, computed, seconds)


def _clear_leftovers(cache: BasisFiles) -> None:
    """Remove what killed processes were writing; what a living one writes is claimed by it."""
    for leftover in cache.folder.glob(".*"):
        if leftover.suffix not in (".tmp", ".lock"):
            continue
        weight = leftover.name[1:].partition(f"{SUFFIX}.")[0].removesuffix(".lock")
        with claimed(cache.claim(weight)) as held:
            if held:
                leftover.unlink(missing_ok=True)


def _make_all(
    files: BaseFiles, cache: BasisFiles, missing: Sequence[Target], config: DecomposeConfig, quiet: bool
) -> int:
    """Make what is missing, together with any other process that does the same; returns how many were made here."""
    from tqdm import tqdm

    from t2cli.models.checkpoint import Checkpoint

    make = partial(_make, Checkpoint(files.folder), cache, config.device)
    computed = 0
    pending = list(missing)
    with tqdm(
        total=sum(map(work, missing)),  # not matrices: the time left holds for matrices of different sizes
        desc="decompose",
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left",
        dynamic_ncols=True,
        leave=False,
        disable=quiet or not sys.stderr.isatty(),
    ) as bar:
        while pending:
            elsewhere = []
            for target, made in compute_each(pending, make, workers_for(config)):
                if made is None:
                    elsewhere.append(target)
                    continue
                computed += made
                bar.update(work(target))
            if len(elsewhere) == len(pending):  # all that is left is being made by others, and is ours if they die
                time.sleep(PATIENCE)
            pending = elsewhere
    return computed


def _make(checkpoint: Checkpoint, cache: BasisFiles, device: str, target: Target) -> bool | None:
    """Make one basis; tell whether it was made here, or None where another process is making it."""
    import torch

    from t2cli.svf.basis import basis_of

    if not cache.problem(target):
        return False
    with claimed(cache.claim(target.weight)) as held:
        if not held:
            return None
        if not cache.problem(target):  # made just before it was claimed
            return False
        try:
            basis = basis_of(checkpoint.weight(target), device)  # nothing here keeps its file mapped
        except ValueError as error:
            raise CorruptArtifactError(
                f"{target.weight} cannot be decomposed: {error}",
                hint="fetch the model again, or leave it out",
            ) from error
        except torch.OutOfMemoryError as error:
            raise T2Error(
                f"{target.weight} of shape {target.shape} does not fit in the memory of {device}",
                hint="free some of it, or use --device cpu",
            ) from error
        cache.save(target, basis)
    return True


def load_basis(identity: BaseIdentity, target: Target, dtype: str = "float32") -> Basis:
    """Return the basis of one target, mapped from disk. Raises CorruptArtifactError if it is damaged."""
    return basis_files(identity, dtype).load(target)


def load_bases(identity: BaseIdentity, targets: Sequence[Target], dtype: str = "") -> dict[str, Basis]:
    """Return the bases of all `targets` by weight name, in the precision in use if `dtype` names none.

    Raises CorruptArtifactError if one is missing or damaged.
    """
    files = basis_files(identity, dtype) if dtype else basis_files_in_use(identity, targets)
    return {target.weight: files.load(target) for target in targets}


def singular_values(identity: BaseIdentity, targets: Sequence[Target]) -> dict[str, torch.Tensor]:
    """Return S (r,) of all `targets` by weight name."""
    return {weight: basis.S for weight, basis in load_bases(identity, targets).items()}
