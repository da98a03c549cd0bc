"""Read a safetensors checkpoint tensor by tensor, sharded or not, without loading the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from t2cli.errors import CorruptArtifactError, NotFoundError

if TYPE_CHECKING:
    import torch

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Checkpoint:
    """The tensors of a model folder by name. Files are opened on demand and mapped, not read whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of = self._locate()

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

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor on the CPU in its stored precision. Raises CorruptArtifactError if it cannot be read."""
        from safetensors import SafetensorError, safe_open

        path = self._file_of.get(name)
        if path is None:
            raise CorruptArtifactError(
                f"the checkpoint in {self.folder} has no tensor {name}",
                hint="it is incomplete, or of an architecture that stores this weight otherwise",
            )
        try:
            with safe_open(path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
                return tensor
        except (SafetensorError, OSError) as error:
            raise CorruptArtifactError(f"{path} is damaged: {error}", hint="fetch the model again") from error
