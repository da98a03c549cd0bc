"""z.safetensors, read with suspicion and without torch: the header is checked by hand before it is trusted.

Format: 8 bytes, the length N of the header, little-endian; N bytes of JSON; the numbers of all tensors, back
to back.
"""

from __future__ import annotations

import json
import math
import re
import sys
from array import array
from typing import TYPE_CHECKING, NamedTuple

from t2cli.errors import CorruptArtifactError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Vector = NDArray[numpy.float64]

LENGTH_BYTES = 8
NUMBER_BYTES = 4  # float32
MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 1 << 17

_NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:#+\[\]-]{0,255}")


class _Span(NamedTuple):
    """One tensor: its r numbers are the bytes [begin, end) of the file."""

    name: str
    r: int
    begin: int
    end: int


def max_file_bytes(parameters: int) -> int:
    """Return how large a z.safetensors of that many numbers can be."""
    return LENGTH_BYTES + MAX_HEADER_BYTES + NUMBER_BYTES * parameters


def read_header(blob: bytes, where: str = "z.safetensors") -> dict[str, tuple[int, ...]]:
    """Return the shape (r,) of each tensor of the whole file `blob`, in the order of their bytes.

    Raises CorruptArtifactError, naming `where`, unless the file is exactly one-dimensional float32 tensors
    that follow each other without holes or overlap from the header to the last byte.
    """
    return {span.name: (span.r,) for span in _spans(blob, where)}


def read_arrays(blob: bytes, where: str = "z.safetensors") -> dict[str, Vector]:
    """Return z (r,) of each tensor in double precision, for commands that load no torch; raises as `read_header`."""
    import numpy

    return {span.name: numpy.frombuffer(blob, "<f4", span.r, span.begin).astype("f8") for span in _spans(blob, where)}


def check_finite(blob: bytes, where: str = "z.safetensors") -> None:
    """Raise CorruptArtifactError naming the tensor with a NaN or infinity, or as `read_header` does."""
    for span in _spans(blob, where):
        numbers = array("f", blob[span.begin : span.end])
        if sys.byteorder == "big":
            numbers.byteswap()
        # Finite float32 numbers cannot overflow a sum of doubles, so the sum tells about all of them.
        if not math.isfinite(sum(numbers)):
            raise _corrupt(f"{where}: {span.name} has numbers that are NaN or infinite")


def _corrupt(message: str) -> CorruptArtifactError:
    return CorruptArtifactError(message, hint="restore the file from a copy, or train or fetch the expert again")


def _spans(blob: bytes, where: str) -> list[_Span]:
    length = int.from_bytes(blob[:LENGTH_BYTES], "little")
    start = LENGTH_BYTES + length
    if len(blob) < LENGTH_BYTES or length > MAX_HEADER_BYTES or start > len(blob):
        raise _corrupt(f"{where} is truncated or no safetensors file")
    header = _parse(blob[LENGTH_BYTES:start], where)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _corrupt(f"{where}: the header's __metadata__ must map text to text")
    if not 1 <= len(header) <= MAX_TENSORS:
        raise _corrupt(f"{where} has {len(header)} tensors, expected 1 to {MAX_TENSORS}")
    spans = sorted((_span(name, entry, start, where) for name, entry in header.items()), key=lambda s: s.begin)
    position = start
    for span in spans:
        if span.begin != position:
            raise _corrupt(f"{where}: {span.name} does not begin where the tensor before it ends")
        position = span.end
    if position != len(blob):
        raise _corrupt(f"{where} has {len(blob)} bytes, but its header describes {position}: truncated or edited")
    return spans


def _parse(raw: bytes, where: str) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        mapping = dict(pairs)
        if len(mapping) < len(pairs):
            raise ValueError("a key is there twice")
        return mapping

    try:
        header = json.loads(raw.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _corrupt(f"{where}: the header is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(header, dict):
        raise _corrupt(f"{where}: the header does not describe tensors")
    return header


def _span(name: str, entry: object, start: int, where: str) -> _Span:
    if not _NAME_PATTERN.fullmatch(name) or ".." in name:
        raise _corrupt(f"{where}: {name[:80]!a} cannot be the name of a weight")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _corrupt(f"{where}: {name} must have dtype, shape and data_offsets, nothing else")
    if entry["dtype"] != "F32":
        raise _corrupt(f"{where}: {name} must be float32 (F32), not {str(entry['dtype'])[:40]!a}")
    shape, offsets = _integers(entry["shape"]), _integers(entry["data_offsets"])
    if len(shape) != 1 or shape[0] < 1:
        raise _corrupt(f"{where}: {name} must have one dimension of at least 1")
    if len(offsets) != 2 or offsets[1] - offsets[0] != NUMBER_BYTES * shape[0]:
        raise _corrupt(f"{where}: {name} has offsets that do not fit its shape")
    return _Span(name, shape[0], start + offsets[0], start + offsets[1])


def _integers(value: object) -> list[int]:
    """Return a list of non-negative integers, or an empty list for anything else."""
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        return []
    return value
