"""A base's identity: of its weights alone, remembered as long as its files stay as they are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from t2cli.models.catalog import identity_path, known_digest, locate, read_identity
from t2cli.models.identity import BaseIdentity, identify
from t2cli.svf.relation import relation

SINGLE = "model.safetensors"


def identity_of(folder: Path) -> BaseIdentity:
    return identify(locate(str(folder)), quiet=True)


def test_same_weights_same_digest_in_any_precision(copied: Callable[..., Path]) -> None:
    low, high = copied(name="low"), copied(name="high")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(low / SINGLE).items()}
    save_file(tensors, low / SINGLE, {"format": "pt"})
    save_file({name: tensor.float() for name, tensor in tensors.items()}, high / SINGLE, {"format": "pt"})
    assert identity_of(low).weights == identity_of(high).weights
    assert identity_of(low).folder_name == f"low-{identity_of(high).weights[:12]}"


def test_same_weights_same_fingerprint_however_many_shards(copied: Callable[..., Path]) -> None:
    from transformers import AutoModelForCausalLM

    folder, sharded = copied(), copied(name="sharded")
    (sharded / SINGLE).unlink()
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    ours, theirs = identity_of(folder), identity_of(sharded)
    assert (ours.weights, ours.probes) == (theirs.weights, theirs.probes)


@pytest.mark.parametrize("size", [1e-3, 1e-2, 5e-2])
def test_drift_is_the_relative_distance_of_the_weights(size: float, copied: Callable[..., Path]) -> None:
    folder, other = copied(name="one"), copied(name="two")
    tensors = load_file(other / SINGLE)
    generator = torch.Generator().manual_seed(1)
    for W in tensors.values():
        W += size * W.norm() * torch.randn(W.shape, generator=generator) / W.numel() ** 0.5
    save_file(tensors, other / SINGLE, {"format": "pt"})
    found = relation(identity_of(folder), identity_of(other))
    assert found.kind == "relative"
    assert found.drift == pytest.approx(size, rel=0.35)  # three standard errors


def test_drift_between_seeds_of_one_recipe_is_that_of_strangers(base_folder: Callable[[str], Path]) -> None:
    ours, theirs = identity_of(base_folder("llama")), identity_of(base_folder("mistral"))
    assert set(ours.probes) == set(theirs.probes)
    found = relation(ours, theirs)
    assert found.kind == "foreign"
    assert found.drift == pytest.approx(2**0.5, rel=0.35)


def test_one_changed_number_changes_the_digest(copied: Callable[..., Path]) -> None:
    folder, other = copied(name="one"), copied(name="two")
    tensors = load_file(other / SINGLE)
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] += 1e-3
    save_file(tensors, other / SINGLE, {"format": "pt"})
    assert identity_of(folder).weights != identity_of(other).weights


def test_weights_that_no_expert_touches_do_not_matter(copied: Callable[..., Path]) -> None:
    folder, other = copied(name="one"), copied(name="two")
    tensors = load_file(other / SINGLE)
    tensors["model.norm.weight"] += 1
    save_file(tensors, other / SINGLE, {"format": "pt"})
    assert identity_of(folder).weights == identity_of(other).weights


def test_is_remembered_and_known_without_loading(copied: Callable[..., Path]) -> None:
    folder = copied()
    assert known_digest(str(folder)) is None
    first = identity_of(folder)
    assert known_digest(str(folder)) == first.weights
    assert identity_of(folder) == first
    assert known_digest("no-such-base") is None


@pytest.mark.parametrize("file", [SINGLE, "config.json"])
def test_changed_files_are_read_again(file: str, copied: Callable[..., Path]) -> None:
    folder = copied()
    identity_of(folder)
    stat = (folder / file).stat()
    os.utime(folder / file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    assert read_identity(folder) is None
    assert known_digest(str(folder)) is None


def test_change_of_the_weights_is_noticed(copied: Callable[..., Path]) -> None:
    folder = copied()
    before = identity_of(folder)
    tensors = load_file(folder / SINGLE)
    tensors["model.layers.0.mlp.up_proj.weight"].mul_(2)
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    stat = (folder / SINGLE).stat()
    os.utime(folder / SINGLE, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # however coarse the file system's clock is
    assert identity_of(folder).weights != before.weights


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"files": {}}'])
def test_damaged_record_is_made_again(text: str, copied: Callable[..., Path]) -> None:
    folder = copied()
    before = identity_of(folder)
    identity_path(folder.resolve()).write_text(text)
    assert identity_of(folder) == before


@pytest.mark.parametrize("lacking", ["weights", "architecture", "probes"])
def test_record_without_a_part_is_made_again(lacking: str, copied: Callable[..., Path]) -> None:
    folder = copied()
    before = identity_of(folder)
    path = identity_path(folder.resolve())
    record = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in record.items() if key != lacking}))
    assert known_digest(str(folder)) is None
    assert identity_of(folder) == before


def test_digest_over_all_targets_whatever_was_decomposed(copied: Callable[..., Path]) -> None:
    from t2cli.models.base import load_base

    folder = copied()
    base = load_base(str(folder), device="cpu")
    assert base.identity == identity_of(folder)
    assert isinstance(base.model.model.layers[0].mlp.up_proj, torch.nn.Linear)
