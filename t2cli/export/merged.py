"""An expert folded into its base: a plain checkpoint of transformers that needs no t2.

The weights go tensor by tensor from the base's checkpoint into the new one, under the names and in the pieces that the
base has them, so that there are never two models in memory, nor one. W' is computed as for a folded model on the CPU
(svf/basis.py fold), so that in float32 both have the same bits.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from t2cli.errors import CorruptArtifactError, T2Error
from t2cli.export.cards import merged_card
from t2cli.export.folders import new_folder
from t2cli.export.shards import FLOATS, Shard, plan, write_index, write_shard
from t2cli.export.source import Source, bases_of, changed_targets
from t2cli.models.checkpoint import INDEX, Checkpoint, TensorHeader

if TYPE_CHECKING:
    import torch

    from t2cli.models.basis_files import BasisFiles
    from t2cli.models.targets import Target

COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*", "USE_POLICY*")
LARGEST_COPIED = 1 << 28  # of tokenizers and configurations: more is no such file
AT_ONCE = 2  # folded weights in memory: gate and up of an expert are one weight, and down is between them in the file


@dataclass(frozen=True)
class MergedExport:
    """A written checkpoint: its `shards`, the `bytes` of its tensors, and in how many of its weights the expert is."""

    path: Path
    shards: tuple[str, ...]
    bytes: int
    targets: int
    tensors: int


class Piece(NamedTuple):
    """Where a part of a target goes: its `place`-th into a stored tensor, into `slice` of that (None: all)."""

    target: Target
    place: int
    slice: int | None


def export_merged(
    source: Source, path: Path, *, max_shard_bytes: int, dtype: str = "stored", device: str = "cpu", quiet: bool = False
) -> MergedExport:
    """Write the base with the expert folded in to the new folder `path`, with tokenizer, configuration and templates.

    `dtype` is "stored" or a key of FLOATS. Raises UsageError if `path` is there already, T2Error for what the disk
    does not take.
    """
    from tqdm import tqdm

    with new_folder(path) as folder:
        targets = changed_targets(source)
        checkpoint = Checkpoint(source.files.folder)
        headers = {name: _as_written(header, dtype) for name, header in _in_order(checkpoint).items()}
        shards = plan(headers, max_shard_bytes)
        _require_room(folder, sum(shard.bytes for shard in shards))
        bases = bases_of(source, targets, device, None, quiet=quiet)
        writer = _Merger(source, checkpoint, targets, bases)
        hidden = quiet or not sys.stderr.isatty()
        with tqdm(total=len(headers), desc="export", unit="tensor", leave=False, disable=hidden) as bar:
            for shard in shards:
                for _ in write_shard(folder / shard.name, shard, writer.tensor):
                    bar.update()
        write_index(folder, shards)
        _copy_the_rest(source, folder, dtype)
    return _report(path, shards, targets)


def _report(path: Path, shards: Sequence[Shard], targets: Sequence[Target]) -> MergedExport:
    tensors, total = sum(len(shard.tensors) for shard in shards), sum(shard.bytes for shard in shards)
    return MergedExport(path, tuple(shard.name for shard in shards), total, len(targets), tensors)


def _in_order(checkpoint: Checkpoint) -> dict[str, TensorHeader]:
    """Return the headers of all tensors with layer 2 before layer 10."""
    from transformers.core_model_loading import dot_natural_key

    headers = checkpoint.headers()
    return {name: headers[name] for name in sorted(headers, key=dot_natural_key)}


def _as_written(header: TensorHeader, dtype: str) -> TensorHeader:
    changes = dtype != "stored" and header.dtype in FLOATS.values()
    return header._replace(dtype=FLOATS[dtype]) if changes else header


def _require_room(folder: Path, needed: int) -> None:
    from t2cli.models.basis_plan import in_bytes

    free = shutil.disk_usage(folder).free
    if needed > free:
        raise T2Error(
            f"the merged model takes {in_bytes(needed)}, but the disk of {folder.parent} has {in_bytes(free)} free",
            hint="free some space, give an -o on a larger disk, or halve it with --dtype bfloat16",
        )


class _Merger:
    """Gives the tensors of the new checkpoint by name."""

    def __init__(self, source: Source, checkpoint: Checkpoint, targets: Sequence[Target], bases: BasisFiles) -> None:
        self._z, self._checkpoint, self._bases = source.z, checkpoint, bases
        self._folded: OrderedDict[str, list[torch.Tensor]] = OrderedDict()  # by target, in pieces as stored
        self._pieces: dict[str, list[Piece]] = {}  # by stored tensor
        for target in targets:
            for place, (name, index) in enumerate(checkpoint.parts_of(target)):
                self._pieces.setdefault(name, []).append(Piece(target, place, index))

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor of the base's checkpoint with the expert in it."""
        import torch

        tensor = self._checkpoint.tensor(name)
        pieces = self._pieces.get(name, [])
        if not pieces:
            return tensor
        # W' is computed in float32 at least, and only rounded if the stored precision is kept
        wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
        for piece in pieces:
            part = self._parts(piece.target)[piece.place]
            if piece.slice is None:
                wide = part
            else:
                wide[piece.slice] = part
        return wide

    def _parts(self, target: Target) -> list[torch.Tensor]:
        """Return W' of a target cut into the pieces that the checkpoint stores."""
        if target.weight not in self._folded:
            self._folded[target.weight] = self._fold(target)
            if len(self._folded) > AT_ONCE:
                self._folded.popitem(last=False)
        return self._folded[target.weight]

    def _fold(self, target: Target) -> list[torch.Tensor]:
        import torch

        from t2cli.svf.basis import fold

        places = self._checkpoint.parts_of(target)
        W = self._checkpoint.weight(target)
        # a copy in memory as a loaded model has it: mapped files begin anywhere, and products may round otherwise then
        wide = W.to(torch.promote_types(W.dtype, torch.float32), copy=True)
        folded = fold(wide, self._bases.load(target), self._z[target.weight])
        folded = folded.T if target.transposed else folded
        if len(places) == 1:
            return [folded]
        axis = self._checkpoint.axis_of(target)
        lengths = [self._checkpoint.tensor(name, index).shape[axis] for name, index in places]
        return list(torch.split(folded, lengths, dim=axis))


def _copy_the_rest(source: Source, folder: Path, dtype: str) -> None:
    """Copy what makes a folder of weights a model, never code; write the card."""
    for file in sorted({file for pattern in COPIED for file in source.files.folder.glob(pattern)}):
        if file.name != INDEX and file.is_file() and file.stat().st_size <= LARGEST_COPIED:
            shutil.copyfile(file, folder / file.name)
    if dtype != "stored":
        _change_config(folder / "config.json", dtype)
    (folder / "README.md").write_text(merged_card(source, dtype), encoding="utf-8")


def _change_config(path: Path, dtype: str) -> None:
    """Let config.json name the new precision, by which transformers' dtype="auto" loads it."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        for key in {"dtype", "torch_dtype"} & set(config) or {"dtype"}:
            config[key] = dtype
    except (ValueError, TypeError) as error:
        raise CorruptArtifactError(
            f"{path.name} of the base is no configuration", hint="fetch the base again"
        ) from error
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
