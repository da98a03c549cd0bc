"""Damaged bases on disk are refused by their path, and made again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from decomposed import bases_in, located, run
from safetensors.torch import load_file, save_file

from t2cli.errors import CorruptArtifactError
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import load_base
from t2cli.models.basis_cache import (
    load_bases,
    load_basis,
)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[:-7])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "noise":
        path.write_bytes(bytes(range(256)) * 8)
    elif how == "missing":
        path.unlink()
    elif how == "another weight":
        shutil.copy(path.with_name(path.name.replace("layers.1", "layers.0")), path)
    elif how == "longer":
        path.write_bytes(content + bytes(8))
    else:
        length = int.from_bytes(content[:8], "little")
        tensors, metadata = load_file(path), json.loads(content[8 : 8 + length])["__metadata__"]
        if how == "other format":
            metadata["format"] = "t2.basis/1"
        elif how == "no format":
            metadata = {}
        elif how == "other base":
            metadata["base"] = "0" * 64
        elif how == "other side":
            metadata["side"] = "output"
        elif how == "other shape":
            tensors["Q"] = tensors["Q"][:-1].contiguous()
        elif how == "other precision":
            tensors["Q"] = tensors["Q"].half()
        elif how == "no S":
            del tensors["S"]
        save_file(tensors, path, metadata)


DAMAGES = [
    "truncated",
    "empty",
    "noise",
    "missing",
    "longer",
    "another weight",
    "other format",
    "no format",
    "other base",
    "other side",
    "other shape",
    "other precision",
    "no S",
]


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_basis_is_refused_by_its_path_and_made_again(how: str, base_folder: Callable[[str], Path]) -> None:
    folder = run(base_folder("llama")).folder
    whole = {path: path.read_bytes() for path in bases_in(folder)}
    _, identity, targets = located(base_folder("llama"))
    path = folder / "model.layers.1.mlp.up_proj.weight.safetensors"  # 48 x 32: the input side
    damage(path, how)
    with pytest.raises(CorruptArtifactError, match=re.escape(str(path))) as caught:
        load_bases(identity, targets)
    assert caught.value.exit_code == 5
    assert "t2 decompose" in caught.value.hint
    assert run(base_folder("llama")).computed == 1
    assert {path: path.read_bytes() for path in bases_in(folder)} == whole


def test_a_model_makes_damaged_bases_again(base_folder: Callable[[str], Path]) -> None:
    folder = run(base_folder("llama")).folder
    paths = bases_in(folder)
    whole = {path: path.read_bytes() for path in paths}
    damage(paths[3], "truncated")
    damage(paths[8], "other format")
    adapted = AdaptedModel(load_base(str(base_folder("llama")), device="cpu"))
    adapted.prepare(quiet=True)
    assert {path: path.read_bytes() for path in paths} == whole
    for target in adapted.targets:
        assert torch.equal(adapted.layers[target.weight].require_basis().S, load_basis(adapted.base.identity, target).S)
