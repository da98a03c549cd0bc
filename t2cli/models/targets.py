"""Which weights of a model get a z: every linear layer outside the embeddings and the head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from t2cli.config import SELECTIONS
from t2cli.errors import CorruptArtifactError, T2Error, UsageError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

# parts of a module's dotted name that tell what it belongs to
PARTS: Mapping[str, tuple[str, ...]] = {
    "mlp": ("mlp", "feed_forward", "ffn"),
    "attention": ("self_attn", "attn", "attention", "self_attention"),
}


@dataclass(frozen=True)
class Target:
    """A weight that gets a z: its name in the checkpoint, its module's name, and its shape (m, n)."""

    weight: str
    module: str
    shape: tuple[int, int]

    @property
    def rank(self) -> int:
        """Return r = min(m, n)."""
        return min(self.shape)


def find_targets(model: nn.Module, selection: str = "all") -> list[Target]:
    """Return the targets of a transformers model (which may be on the meta device), sorted by name.

    Raises UsageError for an unknown selection, T2Error for a model that has no such layer.
    """
    from torch import nn

    if selection not in SELECTIONS:
        raise UsageError(f"unknown targets {selection!r}", hint=f"choose from {', '.join(SELECTIONS)}")
    head = model.get_output_embeddings()  # type: ignore[operator]
    found = [
        Target(f"{name}.weight", name, (module.out_features, module.in_features))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and _selected(name, selection)
    ]
    if not found:
        kinds = sorted({type(module).__name__ for module in model.modules() if not list(module.children())})
        raise T2Error(
            f"{type(model).__name__} has no linear layer for the targets {selection!r}; "
            f"its layers are: {', '.join(kinds)}",
            hint="t2 adapts torch.nn.Linear layers; try --targets all",
        )
    return sorted(found, key=lambda target: target.weight)


def _selected(name: str, selection: str) -> bool:
    return selection == "all" or not set(name.split(".")).isdisjoint(PARTS[selection])


def first_line(error: Exception) -> str:
    """Return what an error of another library says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def load_config(folder: Path) -> PreTrainedConfig:
    """Return the model's config from its folder; remote code is never run."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a config can be wrong in any way: validation, types, JSON
        raise CorruptArtifactError(
            f"the model in {folder} cannot be used: {first_line(error)}",
            hint="t2 runs architectures that are part of transformers, and no code from a model's folder",
        ) from error


def checkpoint_targets(folder: Path, selection: str = "all") -> list[Target]:
    """Return the targets of the model in `folder` from its config alone; no weights are read."""
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(folder)
    with torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except ValueError as error:
            raise T2Error(
                f"the model in {folder} is no language model that t2 can adapt: {first_line(error)}",
                hint="use a decoder such as Llama, Mistral, Qwen or SmolLM",
            ) from error
        except Exception as error:  # sizes that make no model, such as 0 heads
            raise CorruptArtifactError(
                f"the model in {folder} cannot be used: its config.json makes no model: {first_line(error)}",
                hint="fetch the model again",
            ) from error
    return find_targets(model, selection)
