"""What a decomposition will take: work, disk and time, said before it starts; and refused where the disk is full.

Notation: r = min(m, n) of an (m, n) weight. The Gram matrix takes r^2 (m + n) multiplications, its eigenvectors r^3
more or less; measured from r = 192 to 4096, time is proportional to their sum.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t2cli.config import DecomposeConfig
from t2cli.errors import T2Error
from t2cli.models.basis_files import BasisFiles

if TYPE_CHECKING:
    from t2cli.models.targets import Target

SAMPLE = 512  # rank of the largest matrix that is decomposed to see how fast this machine is


def work(target: Target) -> int:
    """Return a number proportional to the time that a target takes."""
    m, n = target.shape
    return target.rank**2 * (m + n + target.rank)


def require_room(folder: Path, needed: int) -> None:
    """Raise T2Error unless the disk of `folder`, which need not exist yet, has `needed` bytes free."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise T2Error(
            f"the bases take {in_bytes(needed)}, but the disk of {folder} has {in_bytes(free)} free",
            hint="free some space, point T2_HOME at a larger disk, or halve the bases with --basis-dtype bfloat16",
        )


def announcement(files: BasisFiles, targets: Sequence[Target], seconds: float) -> str:
    """Return what making the files of the targets takes: "210 matrices, 209 MB on disk, about 25 s"."""
    count = "1 matrix" if len(targets) == 1 else f"{len(targets)} matrices"
    return f"{count}, {in_bytes(bytes_for(files, targets))} on disk, {in_time(seconds)}"


def bytes_for(files: BasisFiles, targets: Sequence[Target]) -> int:
    """Return the bytes that the files of the targets take."""
    return sum(files.size(target) for target in targets)


def seconds_for(targets: Sequence[Target], config: DecomposeConfig) -> float:
    """Estimate how long the targets take from the time that a few random matrices take side by side."""
    import torch

    from t2cli.models.basis_pool import compute_each, workers_for
    from t2cli.models.targets import Target
    from t2cli.svf.basis import basis_of

    r, workers = min(SAMPLE, max(target.rank for target in targets)), workers_for(config)
    W = torch.randn(r, r, generator=torch.Generator().manual_seed(0))
    sample = [Target(str(place), "", (r, r)) for place in range(2 * workers)]

    def make(target: Target) -> bool:
        basis_of(W, config.device).Q.cpu()  # what is on the CPU is finished
        return True

    times = []
    for _ in range(2):  # the first also starts threads and libraries
        started = time.perf_counter()
        for _ in compute_each(sample, make, workers):
            pass
        times.append(time.perf_counter() - started)
    return min(times) * sum(map(work, targets)) / sum(map(work, sample))


def in_bytes(n: int) -> str:
    """Return a size as people read it: 208 MB, 6.4 GB."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if n >= size:
            return f"{n / size:.3g} {unit}" if n < 1000 * size else f"{n / size:.0f} {unit}"
    return f"{-(-n // 1000)} kB"


def in_time(seconds: float) -> str:
    """Return a rough time: under 1 s, about 25 s, about 12 min, about 3.2 h."""
    if seconds < 1:
        return "under 1 s"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
