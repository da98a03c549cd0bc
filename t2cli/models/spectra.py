"""Singular values of a base from the cache of bases, without torch: S stands at the head of each file."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2cli.models.basis_files import SUFFIX
from t2cli.paths import cache_dir

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Vector = NDArray[numpy.float64]

LONGEST_HEADER = 1 << 16


def cached_singular_values(digest: str, ranks: Mapping[str, int]) -> dict[str, Vector] | None:
    """Return S (r,) of the weights in `ranks` for the base with that digest; None unless all of them are there."""
    for base in sorted((cache_dir() / "bases").glob(f"*-{digest[:12]}")):
        for folder in (base, base / "bfloat16"):  # S is in double precision in both
            found: dict[str, Vector] = {}
            for weight, r in ranks.items():
                if (S := _read(folder / f"{weight}{SUFFIX}", digest, r)) is None:
                    break
                found[weight] = S
            else:
                return found
    return None


def _read(path: Path, digest: str, r: int) -> Vector | None:
    import numpy

    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: Any = json.loads(file.read(min(length, LONGEST_HEADER)))
            if header["__metadata__"]["base"] != digest or header["S"]["dtype"] != "F64" or header["S"]["shape"] != [r]:
                return None
            file.seek(8 + length + int(header["S"]["data_offsets"][0]))
            S = numpy.frombuffer(file.read(8 * r), "<f8")
    except (OSError, ValueError, struct.error, KeyError, TypeError, RecursionError):
        return None
    return S if len(S) == r and bool(numpy.isfinite(S).all()) else None
