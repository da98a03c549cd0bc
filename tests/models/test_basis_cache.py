"""Bases on disk: made once, and never used but made again when they are damaged or of another version."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from decomposed import bases_in, located, run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from t2cli.config import DecomposeConfig
from t2cli.errors import CorruptArtifactError, UsageError
from t2cli.files import claimed
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import load_base
from t2cli.models.basis_cache import (
    basis_folder,
    decompose,
    load_bases,
    singular_values,
)
from t2cli.svf.basis import basis_of, fold

ALL = DecomposeConfig()


def test_only_what_is_asked_for_is_made_and_no_config_is_needed_then(copied: Callable[..., Path]) -> None:
    files, identity, targets = located(copied())
    (files.folder / "config.json").unlink()
    some = targets[3:6]
    done = decompose(files, identity, ALL, some, quiet=True)
    assert (done.targets, done.computed, done.parameters) == (3, 3, sum(target.rank for target in some))
    assert [path.stem for path in bases_in(done.folder)] == [target.weight for target in some]
    assert decompose(files, identity, ALL, targets[:6], quiet=True).computed == 3
    assert decompose(files, identity, ALL, [], quiet=True).targets == 0


def test_second_time_computes_nothing(base_folder: Callable[[str], Path]) -> None:
    folder = base_folder("llama")
    first = run(folder)
    assert (first.targets, first.computed, first.parameters) == (14, 14, 14 * 32)
    times = {path: path.stat().st_mtime_ns for path in bases_in(first.folder)}
    assert len(times) == 14
    second = run(folder)
    assert (second.targets, second.computed, second.folder) == (14, 0, first.folder)
    assert {path: path.stat().st_mtime_ns for path in bases_in(first.folder)} == times


def test_only_what_is_missing_is_computed_again(base_folder: Callable[[str], Path]) -> None:
    folder = base_folder("llama")
    bases = bases_in(run(folder).folder)
    content = {path: load_file(path) for path in bases}
    for path in bases[2:7]:
        path.unlink()
    times = {path: path.stat().st_mtime_ns for path in bases[:2] + bases[7:]}
    assert run(folder).computed == 5
    for path in bases:
        again = load_file(path)
        assert all(torch.equal(again[name], tensor) for name, tensor in content[path].items())
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_selections_share_their_bases(base_folder: Callable[[str], Path]) -> None:
    folder = base_folder("llama")
    assert (run(folder, "mlp").targets, run(folder, "mlp").computed) == (6, 0)
    assert (run(folder, "attention").targets, run(folder).computed) == (8, 0)
    with pytest.raises(UsageError):
        run(folder, "heads")


def test_what_is_loaded_is_what_was_computed(base_folder: Callable[[str], Path]) -> None:
    folder = base_folder("qwen2")
    run(folder)
    files, identity, targets = located(folder)
    weights = load_file(files.folder / "model.safetensors")
    bases = load_bases(identity, targets)
    spectra = singular_values(identity, targets)
    for target in targets:
        wanted = basis_of(weights[target.weight])
        assert torch.equal(bases[target.weight].Q, wanted.Q)
        assert torch.equal(bases[target.weight].S, wanted.S)
        assert bases[target.weight].side == wanted.side
        assert torch.equal(spectra[target.weight], wanted.S)


def test_bases_of_one_digest_are_shared_by_copies_of_a_base(copied: Callable[..., Path]) -> None:
    first, second = copied(name="one"), copied(name="two")
    (second.parent / "elsewhere").mkdir()
    moved = second.rename(second.parent / "elsewhere" / "one")
    assert run(first).computed == 14
    assert run(moved).computed == 0


def test_changed_weights_get_bases_of_their_own(copied: Callable[..., Path]) -> None:
    folder = copied()
    before = run(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] *= 2
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    after = run(folder)
    assert after.folder != before.folder
    assert after.computed == 14


def test_files_are_what_safetensors_reads(base_folder: Callable[[str], Path]) -> None:
    folder = run(base_folder("llama")).folder
    with safe_open(folder / "model.layers.1.self_attn.q_proj.weight.safetensors", framework="pt") as file:
        Q, S = file.get_tensor("Q"), file.get_tensor("S")
        assert file.metadata()["weight"] == "model.layers.1.self_attn.q_proj.weight"
    assert (Q.dtype, Q.shape, S.dtype, S.shape) == (torch.float32, (32, 32), torch.float64, (32,))


def test_leftovers_of_killed_processes_are_cleared(base_folder: Callable[[str], Path]) -> None:
    folder = run(base_folder("llama")).folder
    done, missing = bases_in(folder)[:2]
    missing.unlink()
    (folder / f".{done.name}.k3d_x.tmp").touch()
    (folder / f".{missing.name}.8sda2.tmp").write_bytes(b"half")
    (folder / f".{missing.stem}.lock").touch()
    (folder / ".not-ours").touch()
    assert run(base_folder("llama")).computed == 1
    assert [path.name for path in folder.glob(".*")] == [".not-ours"]


def test_what_others_write_at_the_moment_is_left_alone(base_folder: Callable[[str], Path]) -> None:
    folder = run(base_folder("llama")).folder
    done, missing = bases_in(folder)[:2]
    missing.unlink()
    (writing := folder / f".{done.name}.k3d_x.tmp").touch()
    with claimed(folder / f".{done.stem}.lock"):
        assert run(base_folder("llama")).computed == 1
        assert writing.exists()


def test_config_and_weights_of_other_shapes_are_refused_by_name(copied: Callable[..., Path]) -> None:
    folder = copied()
    files, identity, _ = located(folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "intermediate_size": 40}))
    with pytest.raises(CorruptArtifactError, match=r"down_proj.*\(32, 48\).*\(32, 40\)"):
        decompose(files, identity, ALL, quiet=True)


def test_base_with_numbers_that_are_none_is_refused_by_name(copied: Callable[..., Path]) -> None:
    folder = copied()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CorruptArtifactError, match=r"layers\.1\.mlp\.up_proj\.weight.*NaN"):
        run(folder)


def test_adapted_model_makes_the_bases_it_needs_and_only_once(base_folder: Callable[[str], Path]) -> None:
    base = load_base(str(base_folder("llama")), device="cpu")
    adapted = AdaptedModel(base, "mlp")
    adapted.prepare(quiet=True)
    assert len(bases_in(basis_folder(base.identity))) == 6
    adapted.detach()
    AdaptedModel(base).prepare(quiet=True)
    assert len(bases_in(basis_folder(base.identity))) == 14


def test_workers_change_nothing(base_folder: Callable[[str], Path], tmp_path: Path) -> None:
    files, identity, _ = located(base_folder("llama"))
    one = decompose(files, identity, ALL, quiet=True)
    wanted = {path.name: path.read_bytes() for path in bases_in(one.folder)}
    shutil.rmtree(one.folder)
    assert decompose(files, identity, DecomposeConfig(workers=3), quiet=True).computed == 14
    assert {path.name: path.read_bytes() for path in bases_in(one.folder)} == wanted
    assert not list(one.folder.glob(".*"))


def test_an_error_in_a_worker_is_the_error(copied: Callable[..., Path]) -> None:
    folder = copied()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("-inf")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    files, identity, _ = located(folder)
    with pytest.raises(CorruptArtifactError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        decompose(files, identity, DecomposeConfig(workers=4), quiet=True)
    assert not list(basis_folder(identity).glob(".*"))


def test_what_a_kill_at_the_very_end_left_is_cleared(copied: Callable[..., Path]) -> None:
    files, identity, targets = located(copied())
    folder = decompose(files, identity, DecomposeConfig(), quiet=True).folder
    (folder / f".{targets[-1].weight}.lock").touch()
    assert decompose(files, identity, DecomposeConfig(), quiet=True).computed == 0
    assert not list(folder.glob(".*"))


@pytest.mark.gpu
def test_an_accelerator_computes_the_same(base_folder: Callable[[str], Path]) -> None:
    device = "cuda" if torch.cuda.is_available() else "mps"
    files, identity, targets = located(base_folder("llama"))
    shutil.rmtree(run(base_folder("llama")).folder)
    assert decompose(files, identity, DecomposeConfig(device=device), quiet=True).computed == len(targets)
    weights = load_file(files.folder / "model.safetensors")
    bases = load_bases(identity, targets)
    for target in targets:
        W, z = weights[target.weight], torch.linspace(0.5, 1.5, target.rank)
        assert torch.allclose(bases[target.weight].S, basis_of(W).S, atol=1e-9)
        assert torch.allclose(fold(W, bases[target.weight], z), fold(W, basis_of(W), z), atol=1e-5)
