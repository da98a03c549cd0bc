"""Weights that a checkpoint stores under other names and in other pieces than the model has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from t2cli.errors import CorruptArtifactError, T2Error
from t2cli.models.base import BaseModel, load_base
from t2cli.models.catalog import locate
from t2cli.models.checkpoint import Checkpoint
from t2cli.models.identity import identify
from t2cli.models.stored import Stored, find_stored
from t2cli.models.targets import checkpoint_targets

FILE = "model.safetensors"
MIXTURES = pytest.mark.parametrize(
    ("variant", "piece"),
    [
        ("mixtral", "model.layers.0.block_sparse_moe.experts.2.w3.weight"),
        ("qwen3-moe", "model.layers.0.mlp.experts.2.up_proj.weight"),
    ],
)


def rewritten(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE, {"format": "pt"})
    return folder


def assert_same_weights(folder: Path, base: BaseModel) -> None:
    """Check that the checkpoint in `folder` gives each target of `base`, and the identity of the base."""
    state, checkpoint = base.model.state_dict(), Checkpoint(folder)
    for target in checkpoint_targets(folder):
        wanted = state[f"{target.module}.{target.parameter}"]
        wanted = wanted if target.index is None else wanted[target.index]
        assert torch.equal(checkpoint.weight(target), wanted.T if target.transposed else wanted), target
    assert identify(locate(str(folder), quiet=True), quiet=True).weights == base.identity.weights


@MIXTURES
def test_three_matrices_per_expert_make_two_slices(
    variant: str, piece: str, base_folder: Callable[[str], Path], load: Callable[[str], BaseModel]
) -> None:
    names = load_file(base_folder(variant) / FILE).keys()
    assert piece in names
    assert not any("gate_up_proj" in name for name in names)
    assert_same_weights(base_folder(variant), load(variant))


@MIXTURES
def test_slices_of_stored_3d_tensors(
    variant: str, piece: str, copied: Callable[..., Path], load: Callable[[str], BaseModel]
) -> None:
    base = load(variant)
    folder = rewritten(copied(variant), base.model.state_dict())
    assert piece not in load_file(folder / FILE)
    assert_same_weights(folder, base)
    assert load_base(str(folder), device="cpu").identity.weights == base.identity.weights


@pytest.mark.parametrize(("variant", "prefix"), [("gpt2", "transformer."), ("llama", "model.")])
def test_names_without_the_models_prefix(
    variant: str, prefix: str, copied: Callable[..., Path], load: Callable[[str], BaseModel]
) -> None:
    base = load(variant)
    tensors = base.model.state_dict()
    if "lm_head.weight" in tensors and base.model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    folder = rewritten(copied(variant), {name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    assert_same_weights(folder, base)


def test_more_than_ten_experts_keep_their_order(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, MixtralConfig

    config = MixtralConfig(
        vocab_size=16, hidden_size=8, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2
    )
    config.num_key_value_heads, config.num_local_experts = 2, 12
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    checkpoint, seen = Checkpoint(tmp_path), set()
    for target in checkpoint_targets(tmp_path, "mlp"):
        wanted = getattr(model.get_submodule(target.module), target.parameter)[target.index]
        assert torch.equal(checkpoint.weight(target), wanted)
        seen.add(target.index)
    assert seen == set(range(12))


@MIXTURES
def test_missing_piece_is_an_error_and_no_other_expert(variant: str, piece: str, copied: Callable[..., Path]) -> None:
    folder = copied(variant)
    tensors = load_file(folder / FILE)
    del tensors[piece]
    rewritten(folder, tensors)
    checkpoint = Checkpoint(folder)
    damaged = [t for t in checkpoint_targets(folder) if t.weight.startswith("model.layers.0.mlp.experts.gate_up_proj")]
    assert len(damaged) == 4
    for target in damaged:
        with pytest.raises(CorruptArtifactError, match=r"3 of the 4 tensors .*gate_up_proj"):
            checkpoint.weight(target)
    whole = next(t for t in checkpoint_targets(folder) if t.weight == "model.layers.0.mlp.experts.down_proj.2")
    assert checkpoint.weight(whole).shape == whole.shape
    with pytest.raises(CorruptArtifactError):
        load_base(str(folder), device="cpu")


def test_weight_of_another_shape_is_an_error(copied: Callable[..., Path]) -> None:
    folder = copied("gpt2")
    tensors = load_file(folder / FILE)
    name = "transformer.h.1.mlp.c_fc.weight"
    rewritten(folder, {**tensors, name: tensors[name].T})
    target = next(t for t in checkpoint_targets(folder) if t.weight == name)
    with pytest.raises(CorruptArtifactError, match=r"c_fc\.weight .* has shape \(32, 48\), not \(48, 32\)"):
        Checkpoint(folder).weight(target)


def test_missing_weight_is_named(copied: Callable[..., Path]) -> None:
    folder = copied("phi3")
    tensors = load_file(folder / FILE)
    del tensors["model.layers.1.self_attn.qkv_proj.weight"]
    rewritten(folder, tensors)
    with pytest.raises(CorruptArtifactError, match=r"no tensor model\.layers\.1\.self_attn\.qkv_proj\.weight"):
        load_base(str(folder), device="cpu")


def test_a_form_that_cannot_be_read_is_an_error_for_that_weight_only(base_folder: Callable[[str], Path]) -> None:
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        register_checkpoint_conversion_mapping,
    )
    from transformers.core_model_loading import Chunk, WeightConverter

    before = get_checkpoint_conversion_mapping("llama")
    rule = WeightConverter("mlp.fused.weight", ["mlp.gate_proj.weight", "mlp.up_proj.weight"], [Chunk(dim=0)])
    register_checkpoint_conversion_mapping("llama", [rule], overwrite=True)
    try:
        found = find_stored(base_folder("llama"), ["model.layers.0.mlp.fused.weight", "layers.0.mlp.down_proj.weight"])
    finally:
        register_checkpoint_conversion_mapping("llama", before or [], overwrite=True)
    assert found["model.layers.0.mlp.down_proj.weight"].of(None) == [("layers.0.mlp.down_proj.weight", None)]
    with pytest.raises(T2Error, match="form that t2 does not read") as caught:
        found["model.layers.0.mlp.gate_proj.weight"].of(None)
    assert "Chunk" in caught.value.hint


def test_which_tensors_make_a_slice() -> None:
    pieces = Stored("p", {"w1": ["a.0", "a.1"], "w3": ["b.0", "b.1"]}, stacked=True, joined=1)
    assert pieces.of(1) == [("a.1", None), ("b.1", None)]
    assert pieces.axis(1) == 0
    halves = Stored("p", {"gate": ["g"], "up": ["u"]}, joined=1)
    assert halves.of(2) == [("g", 2), ("u", 2)]
    assert halves.of(None) == [("g", None), ("u", None)]
    assert (halves.axis(2), halves.axis(None)) == (0, 1)
