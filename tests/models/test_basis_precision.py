"""Bases kept in bfloat16: half the size, near enough, and used where there are no others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from t2cli.config import BASIS_DTYPES, DecomposeConfig
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import BaseModel, load_base
from t2cli.models.basis_cache import basis_files_in_use, basis_folder, decompose
from t2cli.models.basis_files import CODES
from t2cli.svf.basis import basis_of
from t2cli.svf.zvector import ZVectors

BF16 = DecomposeConfig(dtype="bfloat16")


@pytest.fixture
def base(base_folder: Callable[[str], Path]) -> BaseModel:
    return load_base(str(base_folder("qwen3")), device="cpu", quiet=True)


def prepared(base: BaseModel) -> AdaptedModel:
    adapted = AdaptedModel(base)
    adapted.prepare(quiet=True)
    return adapted


def precision(adapted: AdaptedModel) -> set[torch.dtype]:
    return {layer.require_basis().Q.dtype for layer in adapted.layers.values()}


def test_every_precision_has_a_code() -> None:
    assert tuple(CODES) == BASIS_DTYPES


def test_what_is_kept_is_the_rounded_basis_in_half_the_bytes(base: BaseModel) -> None:
    narrow = decompose(base.files, base.identity, BF16, quiet=True)
    wide = decompose(base.files, base.identity, DecomposeConfig(dtype="float32"), quiet=True)
    assert (narrow.dtype, wide.dtype, narrow.computed, wide.computed) == ("bfloat16", "float32", 14, 14)
    weights = load_file(base.files.folder / "model.safetensors")
    for target in AdaptedModel(base).targets:
        wanted = basis_of(weights[target.weight])
        paths = [done.folder / f"{target.weight}.safetensors" for done in (narrow, wide)]
        kept = load_file(paths[0])
        assert torch.equal(kept["Q"], wanted.Q.bfloat16())
        assert torch.equal(kept["S"], wanted.S)
        assert paths[1].stat().st_size - paths[0].stat().st_size == pytest.approx(2 * target.rank**2, abs=16)


def test_float32_is_used_where_it_is_there_and_bfloat16_where_only_that_is(base: BaseModel) -> None:
    decompose(base.files, base.identity, BF16, quiet=True)
    adapted = prepared(base)
    assert precision(adapted) == {torch.bfloat16}
    assert not list(basis_folder(base.identity).glob("*.safetensors")), "nothing was made again in float32"
    adapted.detach()
    decompose(base.files, base.identity, DecomposeConfig(dtype="float32"), quiet=True)
    assert precision(prepared(base)) == {torch.float32}


def test_without_any_bases_float32_is_made(base: BaseModel) -> None:
    assert precision(prepared(base)) == {torch.float32}


def test_an_interrupted_precision_is_completed_and_not_begun_anew_in_the_other(base: BaseModel) -> None:
    folder = decompose(base.files, base.identity, BF16, quiet=True).folder
    for path in sorted(folder.glob("*.safetensors"))[:9]:
        path.unlink()
    adapted = AdaptedModel(base)
    assert basis_files_in_use(base.identity, adapted.targets).dtype == "bfloat16"
    adapted.prepare(quiet=True)
    assert precision(adapted) == {torch.bfloat16}
    assert len(list(folder.glob("*.safetensors"))) == 14


def test_the_error_of_what_an_expert_changes_is_small(base: BaseModel, random_z: Callable[..., ZVectors]) -> None:
    decompose(base.files, base.identity, BF16, quiet=True)
    adapted = prepared(base)
    z = random_z(adapted.ranks, sigma=0.1)
    shutil.rmtree(basis_folder(base.identity))
    adapted.detach()
    exact = prepared(base)
    for name, layer in adapted.layers.items():
        changes = [own.fold(z[name]) - own.weight for own in (layer, exact.layers[name])]
        assert 1e-4 < float((changes[0] - changes[1]).norm() / changes[1].norm()) < 5e-3


def test_invariants_hold(base: BaseModel, random_z: Callable[..., ZVectors]) -> None:
    decompose(base.files, base.identity, BF16, quiet=True)
    ids = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        wanted = base.model(input_ids=ids).logits
        adapted = prepared(base)
        z = random_z(adapted.ranks, sigma=0.1)
        with adapted.use_z(ZVectors({name: torch.ones(r) for name, r in adapted.ranks.items()})):
            assert torch.equal(adapted.model(input_ids=ids).logits, wanted)
        with adapted.use_z(z):
            folded = adapted.model(input_ids=ids).logits
        with adapted.use_z(z, folded=False):
            factored = adapted.model(input_ids=ids).logits
        with adapted.per_row([z]):
            per_row = adapted.model(input_ids=ids).logits
        assert torch.equal(adapted.model(input_ids=ids).logits, wanted)
    assert not torch.allclose(folded, wanted, atol=1e-2)
    assert torch.allclose(factored, folded, atol=1e-3)
    assert torch.allclose(per_row, folded, atol=1e-3)


def test_gradients_reach_z(base: BaseModel, random_z: Callable[..., ZVectors]) -> None:
    decompose(base.files, base.identity, BF16, quiet=True)
    adapted = prepared(base)
    z = random_z(adapted.ranks, sigma=0.1)
    gradients = []
    for trained in (True, False):
        vectors = {name: vector.clone().requires_grad_() for name, vector in z.items()}
        with adapted.trained(z, vectors) if trained else adapted.with_tensors(vectors):
            adapted.model(input_ids=torch.arange(12).unsqueeze(0)).logits.square().mean().backward()
        gradients.append(torch.cat([vectors[name].grad for name in sorted(vectors)]))  # type: ignore[misc]
    closed, autograd = gradients
    assert float((closed - autograd).norm() / autograd.norm()) < 2e-2
