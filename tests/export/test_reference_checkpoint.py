"""The files of the paper's code: the same weights as that code composes, and nothing that is not tensors."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t2cli.errors import CorruptArtifactError, IncompatibleBaseError, T2Error
from t2cli.export.reference_checkpoint import adapted_names, convert, effective, is_checkpoint
from t2cli.models.base import BaseModel
from t2cli.models.targets import checkpoint_targets
from t2cli.svf.basis import basis_of, fold
from t2cli.svf.zvector import ZVectors

VARIANT = "llama-grouped"


class Policy(torch.nn.Module):
    """Keeps its numbers as the released code's policy does."""

    def __init__(self, parameters: dict[str, torch.Tensor], dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.learnable_params = {
            name: torch.nn.Parameter((0.1 + torch.randn(min(W.shape), generator=generator)).to(dtype))
            for name, W in parameters.items()
            if "mlp" in name
        }
        self.learnable_params_module_list = torch.nn.ParameterList(list(self.learnable_params.values()))


@pytest.fixture
def base(load: Callable[[str], BaseModel]) -> BaseModel:
    return load(VARIANT)


@pytest.fixture
def policy(base: BaseModel) -> Policy:
    return Policy(base.model.state_dict())


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def converted(path: Path, base: BaseModel) -> ZVectors:
    return convert(path, base.files, base.identity, quiet=True)


def composed(W: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Return W' as the paper's code composes it, in float64."""
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    mask = torch.sigmoid(p.double())
    return (U @ torch.diag(S * mask) @ Vh) * (S.sum() / (S * mask).sum())


@pytest.mark.parametrize("kind", ["policy_params.pt", "learnable_params.pt"])
def test_the_adapted_weights_are_those_of_the_papers_code(
    kind: str, policy: Policy, base: BaseModel, tmp_path: Path
) -> None:
    content = policy.state_dict() if kind == "policy_params.pt" else policy.learnable_params
    z = converted(saved(tmp_path / kind, content), base)
    assert list(z) == sorted(policy.learnable_params)
    for name, p in policy.learnable_params.items():
        W = base.model.get_parameter(name).detach()
        wanted = composed(W, p.detach())
        found = fold(W.double(), basis_of(W), z[name])
        assert float((found - wanted).norm() / wanted.norm()) < 1e-6
        S = torch.linalg.svdvals(W.double())
        assert torch.allclose((S * z[name].double()).sum(), S.sum(), rtol=1e-6)  # the nuclear norm stays


def test_z_is_the_formula_to_the_last_bit_of_float32(policy: Policy, base: BaseModel, tmp_path: Path) -> None:
    z = converted(saved(tmp_path / "policy_params.pt", policy.state_dict()), base)
    for name, p in policy.learnable_params.items():
        S, factor = basis_of(base.model.get_parameter(name).detach()).S, torch.sigmoid(p.detach().double())
        assert torch.equal(z[name], (factor * (S.sum() / (S * factor).sum())).float())


def test_parameters_are_numbered_in_the_order_of_the_model(tmp_path: Path) -> None:
    """Layer 10 comes after layer 9, and gate, up and down as the model has them: no order of names gives that."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from t2cli.models.catalog import BaseFiles

    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=12, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    names = adapted_names(BaseFiles("tiny", tmp_path, "local", ""))
    assert names == list(Policy(model.state_dict()).learnable_params)
    assert names != sorted(names)
    assert len(names) == 36


def test_numbers_decide_and_not_the_order_in_the_file(policy: Policy, base: BaseModel, tmp_path: Path) -> None:
    wanted = converted(saved(tmp_path / "a.pt", policy.state_dict()), base)
    backwards = dict(reversed(policy.state_dict().items()))
    bare = {name.rpartition(".")[2]: p for name, p in backwards.items()}
    listed = list(policy.learnable_params_module_list.parameters())
    for content in (backwards, bare, [p.data for p in listed]):
        z = converted(saved(tmp_path / "b.pt", content), base)
        assert all(torch.equal(z[name], wanted[name]) for name in wanted)


def test_some_weights_by_name_are_enough(policy: Policy, base: BaseModel, tmp_path: Path) -> None:
    name, p = next(iter(policy.learnable_params.items()))
    assert list(converted(saved(tmp_path / "one.pt", {name: p}), base)) == [name]
    attention = "model.layers.0.self_attn.k_proj.weight"
    rank = min(base.model.get_parameter(attention).shape)
    assert list(converted(saved(tmp_path / "one.pt", {attention: torch.zeros(rank)}), base)) == [attention]


def test_equal_numbers_are_the_base(base: BaseModel) -> None:
    S = {"w": torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)}
    assert torch.equal(effective({"w": torch.full((3,), -7.0)}, S)["w"], torch.ones(3))
    with pytest.raises(CorruptArtifactError, match="leave nothing"):
        effective({"w": torch.full((3,), -1e6)}, S)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda state: dict(list(state.items())[:-1]), IncompatibleBaseError, "5 vectors"),
        (lambda state: {**state, "x.9": next(iter(state.values()))}, CorruptArtifactError, "not numbered"),
        (lambda state: {**state, next(iter(state)): torch.zeros(31)}, IncompatibleBaseError, r"shape \(31,\)"),
        (lambda state: {**state, next(iter(state)): torch.zeros(32, 1)}, IncompatibleBaseError, "shape"),
        (lambda state: {**state, next(iter(state)): torch.zeros(1).expand(10**9)}, IncompatibleBaseError, "shape"),
        (lambda state: {**state, next(iter(state)): torch.full((32,), float("nan"))}, CorruptArtifactError, "NaN"),
        (lambda state: {**state, next(iter(state)): torch.zeros(32, dtype=torch.int)}, CorruptArtifactError, "numbers"),
        (lambda state: {**state, next(iter(state)): torch.zeros(32).to_sparse()}, CorruptArtifactError, "numbers"),
        (lambda state: {**state, next(iter(state)): 3}, CorruptArtifactError, "numbers"),
        (lambda state: {"no.such.weight": torch.zeros(32)}, IncompatibleBaseError, "no.such.weight"),
        (lambda state: {}, CorruptArtifactError, "empty"),
        (lambda state: [], CorruptArtifactError, "empty"),
        (lambda state: torch.zeros(3), CorruptArtifactError, "holds a Tensor"),
        (lambda state: {1: torch.zeros(3)}, CorruptArtifactError, "holds a dict"),
    ],
)
def test_what_is_not_this_bases_expert_is_refused(
    change: Callable[[Any], object],
    error: type[T2Error],
    said: str,
    policy: Policy,
    base: BaseModel,
    tmp_path: Path,
) -> None:
    path = saved(tmp_path / "policy_params.pt", change(policy.state_dict()))
    with pytest.raises(error, match=said) as caught:
        converted(path, base)
    assert caught.value.hint


class Attack:
    """Unpickles to a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_is_not_run(base: BaseModel, tmp_path: Path) -> None:
    path = saved(tmp_path / "policy_params.pt", {"0": Attack(tmp_path / "broken-in")})
    with pytest.raises(CorruptArtifactError, match="nothing else is read"):
        converted(path, base)
    assert not (tmp_path / "broken-in").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "broken-in").exists()  # it would have been


def test_a_compressed_file_is_refused_before_it_is_read(policy: Policy, base: BaseModel, tmp_path: Path) -> None:
    path = saved(tmp_path / "policy_params.pt", policy.state_dict())
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    with pytest.raises(CorruptArtifactError, match="compressed"):
        converted(tmp_path / "bomb.pt", base)


def test_other_files_are_no_checkpoints(policy: Policy, tmp_path: Path) -> None:
    assert is_checkpoint(saved(tmp_path / "a.pt", policy.state_dict()))
    torch.save(policy.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "empty").touch()
    assert not is_checkpoint(tmp_path / "old.pt")
    assert not is_checkpoint(tmp_path / "empty")


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_end_in_an_error_or_in_an_expert(
    policy: Policy, base: BaseModel, tmp_path: Path, data: st.DataObject
) -> None:
    buffer = io.BytesIO()
    torch.save(policy.state_dict(), buffer)
    content = bytearray(buffer.getvalue())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position : position + data.draw(st.integers(0, 300))] = data.draw(st.binary(max_size=8))
    (tmp_path / "policy_params.pt").write_bytes(content)
    ranks = {target.weight: target.rank for target in checkpoint_targets(base.files.folder)}
    with contextlib.suppress(CorruptArtifactError, IncompatibleBaseError):
        z = converted(tmp_path / "policy_params.pt", base)
        assert all(ranks[name] == vector.numel() for name, vector in z.items())
        assert bool(torch.isfinite(z.flat()).all())
