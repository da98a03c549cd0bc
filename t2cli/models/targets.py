"""Which weights of a model get a z: every linear layer outside embeddings, head and routers, however it is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from t2cli.config import SELECTIONS
from t2cli.errors import CorruptArtifactError, T2Error, UsageError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

# parts of a module's dotted name that tell what it belongs to
PARTS: Mapping[str, tuple[str, ...]] = {
    "mlp": ("mlp", "feed_forward", "ffn", "fc1", "fc2", "experts", "block_sparse_moe", "shared_expert", "moe"),
    "attention": ("self_attn", "attn", "attention", "self_attention"),
}
# layers that choose experts or weigh them, which must not move with z: by the last part of the name, and by any
ROUTER_LAYERS = ("gate", "shared_expert_gate", "classifier")
ROUTERS = ("router", "gating")


@dataclass(frozen=True)
class Target:
    """A weight that gets a z, y = W x with W of shape (m, n).

    `weight` is its name, the key of z; `parameter` of `module` holds it, as (n, m) if `transposed`, and as part
    `index` of a 3-D one if that is not None.
    """

    weight: str
    module: str
    shape: tuple[int, int]
    parameter: str = "weight"
    transposed: bool = False
    index: int | None = None

    @property
    def rank(self) -> int:
        """Return r = min(m, n)."""
        return min(self.shape)


def _of_linear(name: str, module: nn.Module) -> list[Target]:
    from torch import nn

    if not isinstance(module, nn.Linear):
        return []
    shape = (module.out_features, module.in_features)
    # a quantised layer is an nn.Linear too, whose weight is packed
    return [Target(f"{name}.weight", name, shape)] if tuple(module.weight.shape) == shape else []


def _of_conv1d(name: str, module: nn.Module) -> list[Target]:
    from transformers.pytorch_utils import Conv1D

    if not isinstance(module, Conv1D):
        return []
    n, m = module.weight.shape
    return [Target(f"{name}.weight", name, (m, n), transposed=True)]


def _of_experts(name: str, module: nn.Module) -> list[Target]:
    from t2cli.svf.experts import PARAMETERS, refusal, slices_of

    if not _holds_experts(module) or refusal(module):
        return []
    found = []
    for parameter in PARAMETERS:
        count, m, n = slices_of(module, parameter)
        transposed = bool(module.is_transposed)
        found += [Target(f"{name}.{parameter}.{e}", name, (m, n), parameter, transposed, e) for e in range(count)]
    return found


def _holds_experts(module: nn.Module) -> bool:
    return any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))


# How a module keeps its weights: each row gives the targets of a module of its kind, and none of any other.
KINDS: tuple[Callable[[str, nn.Module], list[Target]], ...] = (
    _of_linear,  # (m, n), and subclasses that multiply in their own way; fused projections are one matrix
    _of_conv1d,  # (n, m): GPT-2
    _of_experts,  # (E, m, n), or (E, n, m): mixtures of experts
)


def find_targets(model: nn.Module, selection: str = "all") -> list[Target]:
    """Return the targets of a transformers model (which may be on the meta device), sorted by name.

    Raises UsageError for an unknown selection, T2Error for a model that has no such layer.
    """
    if selection not in SELECTIONS:
        raise UsageError(f"unknown targets {selection!r}", hint=f"choose from {', '.join(SELECTIONS)}")
    head = model.get_output_embeddings()  # type: ignore[operator]
    found = [
        target
        for name, module in model.named_modules()
        if module is not head and not _routes(name) and _selected(name, selection)
        for kind in KINDS
        for target in kind(name, module)
    ]
    if not found:
        raise _without_targets(model, selection)
    return sorted(found, key=lambda target: target.weight)


def _without_targets(model: nn.Module, selection: str) -> T2Error:
    from t2cli.svf.experts import refusal

    holders = [m for m in model.modules() if any(p.ndim > 1 for p in m.parameters(recurse=False))]
    refusals = sorted({reason for module in holders if _holds_experts(module) and (reason := refusal(module))})
    reasons = refusals or [f"its weights are in: {', '.join(sorted({type(module).__name__ for module in holders}))}"]
    return T2Error(
        f"{type(model).__name__} has no linear layer for the targets {selection!r} that t2 can adapt; "
        f"{'; '.join(reasons)}",
        hint="t2 adapts torch.nn.Linear, transformers' Conv1D and gated 3-D expert weights; try --targets all",
    )


def _routes(name: str) -> bool:
    parts = name.split(".")
    return parts[-1] in ROUTER_LAYERS or not set(parts).isdisjoint(ROUTERS)


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


def empty_model(folder: Path) -> PreTrainedModel:
    """Return the model in `folder` made from its config alone, on the meta device: names and shapes, no weights."""
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(folder)
    with torch.device("meta"):
        try:
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
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


def checkpoint_targets(folder: Path, selection: str = "all") -> list[Target]:
    """Return the targets of the model in `folder` from its config alone; no weights are read."""
    return find_targets(empty_model(folder), selection)
