"""One basis in one safetensors file: how it is written, and what makes a file unusable.

    S (r,) float64, Q (r, r) float32 or bfloat16; metadata: format, base, weight, side

A file is used only if its metadata, types, shapes and length are those it must have. Equal bases give equal files.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2cli.errors import CorruptArtifactError
from t2cli.files import writing

if TYPE_CHECKING:
    from t2cli.models.targets import Target
    from t2cli.svf.basis import Basis

FORMAT = "t2.basis/2"
CODES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}  # basis dtype -> safetensors' name, bytes
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class BasisFiles:
    """The files of one base in one precision: `weights` is the base's digest, `dtype` a key of CODES."""

    folder: Path
    weights: str
    dtype: str

    def path(self, target: Target) -> Path:
        """Return the file of one target."""
        return self.folder / f"{target.weight}{SUFFIX}"

    def claim(self, weight: str) -> Path:
        """Return the lock file that is held while the basis of a weight is made."""
        return self.folder / f".{weight}.lock"

    def missing(self, targets: Sequence[Target]) -> list[Target]:
        """Return the targets that have no usable file."""
        return [target for target in targets if self.problem(target)]

    def problem(self, target: Target) -> str:
        """Return why the file of a target cannot be used, "" if it can; only its header is read."""
        try:
            with self.path(target).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                (length,) = struct.unpack("<Q", file.read(8))
                if length > size - 8:
                    return "it was cut short"
                header = json.loads(file.read(length))
        except OSError as error:
            return error.strerror or str(error)
        except (struct.error, ValueError, RecursionError):
            return "it is no safetensors file"
        if header != self._header(target):
            return "it was written by another version of t2, or for another weight or in another precision"
        return "" if size == 8 + length + header["Q"]["data_offsets"][1] else "it was cut short"

    def save(self, target: Target, basis: Basis) -> None:
        """Write a basis, whole or not at all. Raises T2Error where the disk does not take it."""
        import torch

        text = json.dumps(self._header(target)).encode()
        text += b" " * (-len(text) % 8)
        # written without safetensors, whose order of metadata differs from run to run and which copies the tensors
        Q = basis.Q.to(device="cpu", dtype=getattr(torch, self.dtype)).contiguous()
        S = basis.S.to(device="cpu", dtype=torch.float64).contiguous()
        with writing(self.path(target)) as temporary, temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.write(S.numpy().data)
            file.write(Q.view(torch.uint8).numpy().data)

    def load(self, target: Target) -> Basis:
        """Return the basis of one target, mapped from disk. Raises CorruptArtifactError if it is damaged."""
        from safetensors import SafetensorError, safe_open

        from t2cli.svf.basis import Basis, side_of

        path = self.path(target)
        if problem := self.problem(target):
            raise _damaged(path, problem)
        try:
            with safe_open(path, framework="pt") as file:
                return Basis(file.get_tensor("Q"), file.get_tensor("S"), side_of(*target.shape))
        except (SafetensorError, OSError) as error:
            raise _damaged(path, str(error)) from error

    def size(self, target: Target) -> int:
        """Return the bytes of a target's file, with the last block of the disk."""
        return -(-(target.rank * (target.rank * CODES[self.dtype][1] + 8) + 512) // 4096) * 4096

    def _header(self, target: Target) -> dict[str, Any]:
        from t2cli.svf.basis import side_of

        side, r = side_of(*target.shape), target.rank
        code, width = CODES[self.dtype]
        middle, end = 8 * r, 8 * r + width * r * r
        return {  # S first: each tensor is then aligned to its own type
            "__metadata__": {"format": FORMAT, "base": self.weights, "weight": target.weight, "side": side},
            "S": {"dtype": "F64", "shape": [r], "data_offsets": [0, middle]},
            "Q": {"dtype": code, "shape": [r, r], "data_offsets": [middle, end]},
        }


def _damaged(path: Path, why: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"the basis {path} cannot be used: {why}", hint=f"delete {path} and run `t2 decompose` again"
    )
