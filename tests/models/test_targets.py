"""Which weights get a z: every linear layer but the head, by the names that the checkpoint has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel

from t2cli.errors import CorruptArtifactError, T2Error, UsageError
from t2cli.models.base import BaseModel
from t2cli.models.checkpoint import Checkpoint
from t2cli.models.targets import checkpoint_targets, find_targets

ALL_VARIANTS = pytest.mark.parametrize("variant", ["llama", "llama-grouped", "qwen2", "qwen3", "mistral"])


@ALL_VARIANTS
def test_config_alone_tells_what_the_loaded_model_has(
    variant: str, base_folder: Callable[[str], Path], load: Callable[[str], BaseModel]
) -> None:
    targets = checkpoint_targets(base_folder(variant))
    assert targets == find_targets(load(variant).model)
    assert len(targets) == 2 * 7
    checkpoint = Checkpoint(base_folder(variant))
    for target in targets:
        assert tuple(checkpoint.tensor(target.weight).shape) == target.shape
        assert target.rank == min(target.shape)


@ALL_VARIANTS
def test_head_and_embeddings_are_none(variant: str, base_folder: Callable[[str], Path]) -> None:
    assert not [t for t in checkpoint_targets(base_folder(variant)) if "embed" in t.weight or "lm_head" in t.weight]


def test_selections_part_the_targets(base_folder: Callable[[str], Path]) -> None:
    folder = base_folder("llama")
    mlp, attention = (checkpoint_targets(folder, selection) for selection in ("mlp", "attention"))
    assert {t.weight.split(".")[-2] for t in mlp} == {"up_proj", "down_proj", "gate_proj"}
    assert {t.weight.split(".")[-2] for t in attention} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert sorted([*mlp, *attention], key=lambda t: t.weight) == checkpoint_targets(folder)


def test_unknown_selection(base_folder: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="'heads'") as caught:
        checkpoint_targets(base_folder("llama"), "heads")
    assert "mlp" in caught.value.hint


class PlainConfig(PreTrainedConfig):
    model_type = "plain"
    hidden_size = 4


class Plain(PreTrainedModel, GenerationMixin):
    """A language model of an architecture that nobody knows; `layer` is all that it computes with."""

    config_class = PlainConfig

    def __init__(self, config: PlainConfig, layer: nn.Module | None = None) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(10, 4)
        self.mixer = layer
        self.head = nn.Linear(4, 10, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head


class Raw(nn.Module):
    """Keeps its weight as a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(4, 4))


@pytest.mark.parametrize("layer", [Raw(), nn.Conv1d(4, 4, 3)])
def test_unknown_architecture_without_linear_layers_names_what_it_has(layer: nn.Module) -> None:
    with pytest.raises(T2Error, match=r"Plain has no linear layer for the targets 'all'") as caught:
        find_targets(Plain(PlainConfig(), layer))
    assert type(layer).__name__ in caught.value.message
    assert "Linear" in caught.value.hint


def test_unknown_architecture_works_by_its_linear_layers() -> None:
    model = Plain(PlainConfig(), nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4)))
    assert [target.weight for target in find_targets(model)] == ["mixer.0.weight", "mixer.2.weight"]
    with pytest.raises(T2Error, match=r"for the targets 'mlp'"):
        find_targets(model, "mlp")


def test_experts_that_cannot_be_adapted_are_named_and_the_attention_is_found() -> None:
    config = AutoConfig.for_model("nemotron_h", num_hidden_layers=2, layers_block_type=["attention", "moe"])
    model = on_meta(config)
    with pytest.raises(T2Error, match="experts of NemotronHExperts have no gate"):
        find_targets(Plain(PlainConfig(), model.get_submodule("model.layers.1.mixer.experts")))
    assert {t.weight.split(".")[-2] for t in find_targets(model, "all")} >= {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "qwen2_moe", "jetmoe", "olmoe", "granitemoe"])
def test_routers_are_none(kind: str) -> None:
    model = on_meta(AutoConfig.for_model(kind, num_hidden_layers=1, hidden_size=64, num_attention_heads=4))
    routers = [name for name, _ in model.named_modules() if name.endswith((".gate", ".router", "_gate"))]
    assert routers
    modules = {target.module for target in find_targets(model)}
    assert not [name for name in routers for module in modules if f"{module}.".startswith(f"{name}.")]


def on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def broken_config(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "nothing-known"},
        {"model_type": None},
        {"hidden_size": "wide"},
        {"num_attention_heads": 0},
        {"hidden_size": -4},
    ],
)
def test_config_that_makes_no_model_is_refused(changes: dict[str, object], copied: Callable[..., Path]) -> None:
    with pytest.raises(T2Error, match=r"cannot be used|no language model") as caught:
        checkpoint_targets(broken_config(copied(), **changes))
    assert caught.value.hint
    assert len(caught.value.message.splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"model_type": "llama"'])
def test_config_that_is_no_config_is_refused(text: str, copied: Callable[..., Path]) -> None:
    folder = copied()
    (folder / "config.json").write_text(text)
    with pytest.raises(CorruptArtifactError):
        checkpoint_targets(folder)


def test_code_in_the_models_folder_is_not_run(copied: Callable[..., Path], tmp_path: Path) -> None:
    folder = broken_config(
        copied(),
        model_type="custom",
        auto_map={"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.Model"},
    )
    trace = tmp_path / "was-run"
    (folder / "custom.py").write_text(f"from pathlib import Path\nPath({str(trace)!r}).touch()\n")
    with pytest.raises(CorruptArtifactError, match="cannot be used") as caught:
        checkpoint_targets(folder)
    assert "no code from a model's folder" in caught.value.hint
    assert not trace.exists()
