"""Reading checkpoints tensor by tensor: sharded or not, and what is damaged or unsafe is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from t2cli.errors import CorruptArtifactError, NotFoundError
from t2cli.models.base import BaseModel, load_base
from t2cli.models.checkpoint import INDEX, Checkpoint

SINGLE = "model.safetensors"


def shard(folder: Path) -> list[str]:
    """Cut the only weight file into three shards with an index; return their names."""
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names = [f"model-{part + 1:05}-of-00003.safetensors" for part in range(3)]
    weight_map = {name: names[place % 3] for place, name in enumerate(sorted(tensors))}
    for file in names:
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return names


def test_sharded_and_whole_hold_the_same(copied: Callable[..., Path], load: Callable[[str], BaseModel]) -> None:
    folder = copied()
    tensors = load_file(folder / SINGLE)
    shard(folder)
    checkpoint = Checkpoint(folder)
    for name, tensor in tensors.items():
        assert name in checkpoint
        assert torch.equal(checkpoint.tensor(name), tensor)
    assert "no.such" not in checkpoint
    ours, theirs = load_base(str(folder), device="cpu"), load("llama")
    assert ours.identity.weights == theirs.identity.weights
    state = theirs.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.model.state_dict().items())


@pytest.mark.parametrize("sharded", [False, True])
def test_headers_say_what_the_tensors_are(sharded: bool, copied: Callable[..., Path]) -> None:
    folder = copied()
    tensors = load_file(folder / SINGLE)
    names = shard(folder) if sharded else []
    checkpoint = Checkpoint(folder)
    assert set(checkpoint) == set(tensors)
    assert checkpoint.headers() == {name: ("F32", tuple(tensor.shape)) for name, tensor in tensors.items()}
    damaged = folder / (names[2] if sharded else SINGLE)
    damaged.write_bytes(damaged.read_bytes()[:-4])
    with pytest.raises(CorruptArtifactError, match=damaged.name):
        checkpoint.headers()


def test_what_transformers_would_load_is_read_where_both_are_there(copied: Callable[..., Path]) -> None:
    folder = copied()
    whole = (folder / SINGLE).read_bytes()
    for file in shard(folder):
        tensors = load_file(folder / file)
        save_file({name: torch.zeros_like(t) for name, t in tensors.items()}, folder / file, {"format": "pt"})
    (folder / SINGLE).write_bytes(whole)
    base = load_base(str(folder), device="cpu")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(Checkpoint(folder).tensor(name), base.model.state_dict()[name])


def test_other_safetensors_files_beside_the_weights_are_ignored(copied: Callable[..., Path]) -> None:
    folder = copied()
    name = "model.layers.0.mlp.up_proj.weight"
    wanted = load_file(folder / SINGLE)[name]
    save_file({name: torch.zeros_like(wanted)}, folder / "z-adapter.safetensors")
    assert torch.equal(Checkpoint(folder).tensor(name), wanted)


def test_missing_shard_is_named(copied: Callable[..., Path]) -> None:
    folder = copied()
    names = shard(folder)
    (folder / names[1]).unlink()
    with pytest.raises(CorruptArtifactError, match=names[1]) as caught:
        load_base(str(folder), device="cpu")
    assert caught.value.hint


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
@pytest.mark.parametrize("sharded", [False, True])
def test_truncated_file_is_named(keep: int, sharded: bool, copied: Callable[..., Path]) -> None:
    folder = copied()
    path = folder / (shard(folder)[0] if sharded else SINGLE)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptArtifactError, match=path.name):
        load_base(str(folder), device="cpu")


def test_truncated_file_that_holds_no_target(copied: Callable[..., Path]) -> None:
    folder = copied()
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    place = {name: "b.safetensors" if "norm" in name or "embed" in name else "a.safetensors" for name in tensors}
    for file in ("a.safetensors", "b.safetensors"):
        save_file({n: t for n, t in tensors.items() if place[n] == file}, folder / file, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"weight_map": place}))
    (folder / "b.safetensors").write_bytes((folder / "b.safetensors").read_bytes()[:-9])
    with pytest.raises(CorruptArtifactError):
        load_base(str(folder), device="cpu")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": []}', "null", "\x00"])
def test_index_that_is_none(text: str, copied: Callable[..., Path]) -> None:
    folder = copied()
    shard(folder)
    (folder / INDEX).write_text(text)
    with pytest.raises(CorruptArtifactError, match="index"):
        Checkpoint(folder)


def test_index_cannot_point_outside_the_folder(copied: Callable[..., Path], tmp_path: Path) -> None:
    folder = copied()
    outside = tmp_path / "outside.safetensors"
    (folder / SINGLE).rename(outside)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": f"../{outside.name}"}}))
    with pytest.raises(CorruptArtifactError, match=r"lacks outside\.safetensors"):
        Checkpoint(folder)


def test_folder_without_safetensors(copied: Callable[..., Path]) -> None:
    folder = copied()
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    with pytest.raises(NotFoundError, match="no safetensors weights") as caught:
        Checkpoint(folder)
    assert "pickle" in caught.value.hint


def test_absent_tensor_is_named(base_folder: Callable[[str], Path]) -> None:
    with pytest.raises(CorruptArtifactError, match=r"no tensor no\.such"):
        Checkpoint(base_folder("llama")).tensor("no.such")


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_incomplete_checkpoint_is_refused_not_filled_with_random_numbers(
    name: str, copied: Callable[..., Path]
) -> None:
    folder = copied()
    tensors = load_file(folder / SINGLE)
    del tensors[name]
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    with pytest.raises(CorruptArtifactError, match=name.replace(".", r"\.")):
        load_base(str(folder), device="cpu")


def test_tensor_of_another_shape_is_refused(copied: Callable[..., Path]) -> None:
    folder = copied()
    tensors = load_file(folder / SINGLE)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(3, 4)
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    with pytest.raises(CorruptArtifactError):
        load_base(str(folder), device="cpu")
