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
from t2cli.export.source import Source, bases_of, changed_targets

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

    from t2cli.models.checkpoint import Checkpoint

    with new_folder(path) as folder:
        targets = changed_targets(source)
        _refuse_slices(source, targets)
        bases = bases_of(source, targets, device, "float32", quiet=quiet)  # bfloat16 would blur the stated error
        checkpoint, tensors, layers = Checkpoint(source.files.folder), {}, []
        hidden = quiet or not sys.stderr.isatty()
        for target in tqdm(targets, desc="export", unit="matrix", leave=False, disable=hidden):
            layer, pair = _layer(source, checkpoint.weight(target), target, bases, rank, keep)
            layers.append(layer)
            tensors.update(pair)
        modules = {target.module: layer.rank for target, layer in zip(targets, layers, strict=True) if layer.rank}
        if not modules:
            raise T2Error(f"{source.reference} changes no singular value that is not 0", hint="export the base itself")
        transposed = any(target.transposed for target in targets)
        parameters, adapted = sum(t.numel() for t in tensors.values()), sum(math.prod(t.shape) for t in targets)
        made = LoraExport(path, tuple(layers), parameters, adapted)
        _write(folder, source, tensors, adapter_config(source, modules, fan_in_fan_out=transposed), made)
    return made


def _refuse_slices(source: Source, targets: Sequence[Target]) -> None:
    sliced = sum(target.index is not None for target in targets)
    if sliced:
        raise T2Error(
            f"{source.reference} changes {sliced} matrices inside 3-D weights of a mixture of experts, each in its own "
            "way: a LoRA has one pair of factors per module, and none for these",
            hint="use --to merged, which works for every base; or train with --targets attention",
        )


def _layer(
    source: Source, W: torch.Tensor, target: Target, bases: BasisFiles, rank: int | None, keep: float
) -> tuple[LoraLayer, dict[str, torch.Tensor]]:
    """Return what is kept of one matrix W (m, n), and its factors under PEFT's names; none where rank 0 is enough."""
    from t2cli.svf.lowrank import factors, strength, strongest, truncate

    basis, z = bases.load(target), source.z[target.weight]
    cut = truncate(z, basis.S, math.sqrt(1 - keep)) if rank is None else strongest(z, basis.S, rank)
    energy = float(strength(z, basis.S).square().sum())
    layer = LoraLayer(target.weight, cut.kept, 1 - cut.error**2, cut.error, energy)
    if not cut.kept:
        return layer, {}
    A, B = factors(W, basis, cut.z)
    prefix = f"base_model.model.{target.module}"
    return layer, {f"{prefix}.lora_A.weight": A, f"{prefix}.lora_B.weight": B}


def adapter_config(source: Source, modules: Mapping[str, int], *, fan_in_fan_out: bool) -> dict[str, object]:
    """Return adapter_config.json for module name -> rank; the largest rank is the adapter's r."""
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
        "fan_in_fan_out": fan_in_fan_out,
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


def _write(
    folder: Path, source: Source, tensors: Mapping[str, torch.Tensor], config: dict[str, object], made: LoraExport
) -> None:
    from safetensors.torch import save_file

    save_file(dict(tensors), folder / WEIGHTS_FILE, {"format": "pt"})
    (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors makes files that only their owner can read
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(lora_card(source, made.kept, made.error), encoding="utf-8")
