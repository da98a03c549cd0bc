"""Read a safetensors checkpoint weight by weight, sharded or not, without loading the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from t2cli.errors import CorruptArtifactError, NotFoundError

if TYPE_CHECKING:
    import torch

    from t2cli.models.stored import Stored
    from t2cli.models.targets import Target

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class TensorHeader(NamedTuple):
    """What a file says of one tensor: `dtype` as safetensors names it ("F32", "BF16"), and its shape."""

    dtype: str
    shape: tuple[int, ...]


class Checkpoint:
    """The tensors of a model folder by name. Files are opened on demand and mapped, not read whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of = self._locate()
        self._stored: dict[str, Stored] | None = None  # found when a weight has another name here

    def _locate(self) -> dict[str, Path]:
        from safetensors import SafetensorError, safe_open

        single, index = self.folder / SINGLE, self.folder / INDEX  # in the order in which transformers looks for them
        if not single.is_file() and index.is_file():
            return self._from_index(index)
        if not single.is_file():
            raise NotFoundError(
                f"{self.folder} has no safetensors weights: neither {SINGLE} nor {INDEX}",
                hint="t2 reads no pickle files: save the model with transformers' save_pretrained",
            )
        try:
            with safe_open(single, framework="numpy") as file:
                return dict.fromkeys(file.keys(), single)
        except (SafetensorError, OSError) as error:
            raise CorruptArtifactError(f"{single} is damaged: {error}", hint="fetch the model again") from error

    def _from_index(self, index: Path) -> dict[str, Path]:
        try:
            weight_map = json.loads(index.read_text())["weight_map"]
            found = {str(name): self.folder / Path(str(shard)).name for name, shard in weight_map.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptArtifactError(f"{index} is not a weight index", hint="fetch the model again") from error
        if missing := sorted({path.name for path in found.values() if not path.is_file()}):
            raise CorruptArtifactError(
                f"the checkpoint in {self.folder} lacks {', '.join(missing)}",
                hint="fetch the missing shards again",
            )
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def headers(self) -> dict[str, TensorHeader]:
        """Return type and shape of every tensor by name; no tensor is read.

        Raises CorruptArtifactError for a damaged file, and where a file lacks a tensor that the index names.
        """
        from safetensors import SafetensorError, safe_open

        found = {}
        for path in sorted(set(self._file_of.values())):
            try:
                with safe_open(path, framework="pt") as file:
                    for name in (name for name, place in self._file_of.items() if place == path):
                        part = file.get_slice(name)
                        found[name] = TensorHeader(str(part.get_dtype()), tuple(part.get_shape()))
            except (SafetensorError, OSError) as error:
                raise CorruptArtifactError(f"{path} is damaged: {error}", hint="fetch the model again") from error
        return found

    def weight(self, target: Target) -> torch.Tensor:
        """Return one target's W (m, n) on the CPU in its stored precision, whatever the checkpoint calls it.

        Raises CorruptArtifactError if it is not there or has another shape, T2Error if its form cannot be read.
        """
        import torch

        parts = [self.tensor(name, index) for name, index in self.parts_of(target)]
        W = parts[0] if len(parts) == 1 else torch.cat(parts, dim=self.axis_of(target))
        W = W.T if target.transposed and W.ndim == 2 else W
        if tuple(W.shape) != target.shape:
            raise CorruptArtifactError(
                f"{target.weight} in {self.folder} has shape {tuple(W.shape)}, not {target.shape} as config.json says",
                hint="fetch the model again",
            )
        return W

    def parts_of(self, target: Target) -> list[tuple[str, int | None]]:
        """Return the tensors, and which part of the first dimension of each, that make one target's weight.

        Raises as `weight` does.
        """
        parameter = f"{target.module}.{target.parameter}"
        if parameter in self:
            return [(parameter, target.index)]
        stored = self._all_stored().get(parameter)
        return [(parameter, target.index)] if stored is None else stored.of(target.index)

    def axis_of(self, target: Target) -> int:
        """Return the dimension along which those are joined where they are several."""
        return self._all_stored()[f"{target.module}.{target.parameter}"].axis(target.index)

    def _all_stored(self) -> dict[str, Stored]:
        if self._stored is None:
            from t2cli.models.stored import find_stored

            self._stored = find_stored(self.folder, self._file_of)
        return self._stored

    def tensor(self, name: str, index: int | None = None) -> torch.Tensor:
        """Return one tensor, or part `index` of its first dimension, on the CPU in its stored precision.

        Raises CorruptArtifactError if it cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        path = self._file_of.get(name)
        if path is None:
            raise CorruptArtifactError(
                f"the checkpoint in {self.folder} has no tensor {name}",
                hint="it is incomplete, or of an architecture that stores this weight otherwise",
            )
        try:
            with safe_open(path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name) if index is None else file.get_slice(name)[index]
                return tensor
        except (SafetensorError, OSError) as error:
            raise CorruptArtifactError(f"{path} is damaged: {error}", hint="fetch the model again") from error
