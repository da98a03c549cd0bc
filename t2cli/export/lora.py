"""An expert as a LoRA adapter that PEFT loads, in closed form: nothing is fitted, and the error is known.

Source: math.md 7. W' - W has the singular values |S (z - 1)| with the base's own singular vectors, so that the k
largest of them are the best adapter of rank k there is (Eckart and Young), at a relative Frobenius error of

    sqrt( sum of the dropped (S (z - 1))^2 / sum of all )

Each layer's scale, lora_alpha / r, is 1. A layer whose rank is not the adapter's r has its own in rank_pattern and
alpha_pattern. PEFT itself is not needed here.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from t2cli.errors import T2Error
from t2cli.export.cards import lora_card
from t2cli.export.folders import new_folder
from t2cli.export.shards import Shard, write_shard
from t2cli.export.source import Source, bases_of, changed_targets
from t2cli.models.checkpoint import TensorHeader

if TYPE_CHECKING:
    import torch

    from t2cli.models.basis_files import BasisFiles
    from t2cli.models.targets import Target

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
KEEP = 0.99  # of each layer's change, where the rank is not given


@dataclass(frozen=True)
class LoraLayer:
    """One adapted matrix: `kept` is the share of ||W' - W||_F^2 in the adapter, `error` the relative error of W' - W.

    `energy` is ||W' - W||_F^2.
    """

    name: str
    rank: int
    kept: float
    error: float
    energy: float


@dataclass(frozen=True)
class LoraExport:
    """A written adapter of `parameters` numbers, for matrices of `adapted` numbers.

    `kept` and `error` are those of all matrices together.
    """

    path: Path
    layers: tuple[LoraLayer, ...]
    parameters: int
    adapted: int

    @property
    def kept(self) -> float:
        """Return the share of the summed squared changes that the adapter holds."""
        return sum(layer.kept * layer.energy for layer in self.layers) / sum(layer.energy for layer in self.layers)

    @property
    def error(self) -> float:
        """Return the relative error of all changes together."""
        lost = sum(layer.error**2 * layer.energy for layer in self.layers)
        return math.sqrt(lost / sum(layer.energy for layer in self.layers))


def export_lora(
    source: Source, path: Path, *, rank: int | None, keep: float = KEEP, device: str = "cpu", quiet: bool = False
) -> LoraExport:
    """Write the expert to the new folder `path` as a PEFT adapter of `rank`, one layer's weight in memory at a time.

    Without a rank each layer has the smallest that keeps the share `keep` of its change, above 0 to 1. Raises T2Error
    for experts inside 3-D weights, UsageError if `path` is there already.
    """
    from tqdm import tqdm

    with new_folder(path) as folder:
        targets = changed_targets(source)
        _refuse_slices(source, targets)
        bases = bases_of(source, targets, device, "float32", quiet=quiet)  # bfloat16 would blur the stated error
        layers = [_layer(source, target, bases, rank, keep) for target in targets]
        ranked = {target: layer.rank for target, layer in zip(targets, layers, strict=True) if layer.rank}
        if not ranked:
            raise T2Error(f"{source.reference} changes no singular value that is not 0", hint="export the base itself")
        shard = _shard(ranked)
        numbers = sum(math.prod(header.shape) for header in shard.tensors.values())
        made = LoraExport(path, tuple(layers), numbers, sum(math.prod(target.shape) for target in targets))
        hidden = quiet or not sys.stderr.isatty()
        with tqdm(total=len(shard.tensors), desc="export", unit="tensor", leave=False, disable=hidden) as bar:
            for _ in write_shard(folder / shard.name, shard, _Factors(source, ranked, bases).tensor):
                bar.update()
        config = json.dumps(adapter_config(source, ranked), indent=2) + "\n"
        (folder / CONFIG_FILE).write_text(config, encoding="utf-8")
        (folder / "README.md").write_text(lora_card(source, made.kept, made.error), encoding="utf-8")
    return made


def _refuse_slices(source: Source, targets: Sequence[Target]) -> None:
    sliced = sum(target.index is not None for target in targets)
    if sliced:
        raise T2Error(
            f"{source.reference} changes {sliced} matrices inside 3-D weights of a mixture of experts, each in its own "
            "way: a LoRA has one pair of factors per module, and none for these",
            hint="use --to merged, which works for every base; or train with --targets attention",
        )


def _layer(source: Source, target: Target, bases: BasisFiles, rank: int | None, keep: float) -> LoraLayer:
    """Return what is kept of one matrix; the weights themselves are not needed for that."""
    from t2cli.svf.lowrank import strength, strongest, truncate

    S, z = bases.load(target).S, source.z[target.weight]
    cut = truncate(z, S, math.sqrt(1 - keep)) if rank is None else strongest(z, S, rank)
    energy = float(strength(z, S).square().sum())
    return LoraLayer(target.weight, cut.kept, 1 - cut.error**2, cut.error, energy)


def _shard(ranked: Mapping[Target, int]) -> Shard:
    """Return the names that PEFT expects, A (k, n) and B (m, k) of each module one after the other."""
    headers = {}
    for target, rank in ranked.items():
        (m, n), prefix = target.shape, _prefix(target)
        headers[f"{prefix}.lora_A.weight"] = TensorHeader("F32", (rank, n))
        headers[f"{prefix}.lora_B.weight"] = TensorHeader("F32", (m, rank))
    return Shard(WEIGHTS_FILE, headers)


def _prefix(target: Target) -> str:
    return f"base_model.model.{target.module}"


class _Factors:
    """Gives the adapter's tensors by name, those of one matrix in memory at a time."""

    def __init__(self, source: Source, ranked: Mapping[Target, int], bases: BasisFiles) -> None:
        from t2cli.models.checkpoint import Checkpoint

        self._checkpoint, self._bases, self._z = Checkpoint(source.files.folder), bases, source.z
        self._targets = {_prefix(target): (target, rank) for target, rank in ranked.items()}
        self._made: dict[str, torch.Tensor] = {}

    def tensor(self, name: str) -> torch.Tensor:
        """Return A or B of a module."""
        from t2cli.svf.lowrank import factors, strongest

        if name not in self._made:
            prefix = name.removesuffix(".lora_A.weight").removesuffix(".lora_B.weight")
            target, rank = self._targets[prefix]
            basis = self._bases.load(target)
            cut = strongest(self._z[target.weight], basis.S, rank).z
            A, B = factors(self._checkpoint.weight(target), basis, cut)
            self._made = {f"{prefix}.lora_A.weight": A, f"{prefix}.lora_B.weight": B}
        return self._made[name]


def adapter_config(source: Source, ranked: Mapping[Target, int]) -> dict[str, object]:
    """Return adapter_config.json for the targets and their ranks, the largest of which is the adapter's r."""
    modules = {target.module: rank for target, rank in ranked.items()}
    r = max(modules.values())
    others = {name: rank for name, rank in modules.items() if rank != r}
    name, revision = _base_of(source)
    return {
        "base_model_name_or_path": name,
        "revision": revision,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": r,
        "lora_alpha": r,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(target.transposed for target in ranked),
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _base_of(source: Source) -> tuple[str, str | None]:
    """Return what from_pretrained finds the base by: its Hub id and revision, else its folder."""
    if source.files.source.startswith("hub:"):
        return source.files.source.removeprefix("hub:"), source.files.revision or None
    return str(source.files.folder), None
