"""Write safetensors tensor by tensor, in shards of a limited size: no shard is ever whole in memory."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from t2cli.errors import T2Error, UsageError
from t2cli.models.checkpoint import INDEX, SINGLE, TensorHeader

if TYPE_CHECKING:
    import torch

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
FLOATS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# safetensors' names of types -> bytes per number
WIDTHS = {
    **{"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2},
    **{"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1},
}

Make = Callable[[str], "torch.Tensor"]  # a tensor's name -> the tensor


@dataclass(frozen=True)
class Shard:
    """One file: the tensors in it, in the order of their bytes."""

    name: str
    tensors: Mapping[str, TensorHeader]

    @property
    def bytes(self) -> int:
        """Return how many bytes the tensors take."""
        return sum(size_of(header) for header in self.tensors.values())


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 5GB, 500MB or 2GiB; UsageError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?B)", text.strip().upper())
    if match is None or not (size := int(float(match[1]) * UNITS[match[2]])):
        raise UsageError(f"{text!r} is no size of a shard", hint="write it as in 5GB or 500MB")
    return size


def size_of(header: TensorHeader) -> int:
    """Return the bytes of a tensor; T2Error for a type that is not known here."""
    if header.dtype not in WIDTHS:
        raise T2Error(f"t2 cannot write tensors of the type {header.dtype}", hint="use a base in float32 or bfloat16")
    count = 1
    for length in header.shape:
        count *= length
    return count * WIDTHS[header.dtype]


def plan(headers: Mapping[str, TensorHeader], limit: int) -> list[Shard]:
    """Return the shards for the tensors, in the given order, none over `limit` bytes unless one tensor alone is."""
    groups: list[dict[str, TensorHeader]] = [{}]
    filled = 0
    for name, header in headers.items():
        size = size_of(header)
        if groups[-1] and filled + size > limit:
            groups.append({})
            filled = 0
        groups[-1][name] = header
        filled += size
    if len(groups) == 1:
        return [Shard(SINGLE, _aligned(groups[0]))]
    return [
        Shard(f"model-{number:05}-of-{len(groups):05}.safetensors", _aligned(group))
        for number, group in enumerate(groups, start=1)
    ]


def _aligned(tensors: Mapping[str, TensorHeader]) -> dict[str, TensorHeader]:
    """Return wide types first, else in the given order: each tensor then starts at a multiple of its own width."""
    return dict(sorted(tensors.items(), key=lambda item: -WIDTHS[item[1].dtype]))


def write_shard(path: Path, shard: Shard, make: Make) -> Iterator[str]:
    """Write one shard, asking `make` for one tensor at a time; yields each name as it is written.

    A tensor is converted to the type in its header; ValueError if it has another shape than that.
    """
    import torch

    types = {code: getattr(torch, name) for name, code in FLOATS.items()}
    with path.open("wb") as file:
        file.write(_header(shard))
        for name, header in shard.tensors.items():
            tensor = make(name)
            if tuple(tensor.shape) != header.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {header.shape}")
            tensor = tensor.to(types.get(header.dtype, tensor.dtype)).contiguous()
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            yield name


def _header(shard: Shard) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, header in shard.tensors.items():
        end = position + size_of(header)
        entries[name] = {"dtype": header.dtype, "shape": list(header.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_index(folder: Path, shards: list[Shard]) -> None:
    """Write the index that says which shard has which tensor; nothing for a single file, which needs none."""
    if len(shards) == 1:
        return
    weight_map = {name: shard.name for shard in shards for name in shard.tensors}
    index = {"metadata": {"total_size": sum(shard.bytes for shard in shards)}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
