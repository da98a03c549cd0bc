"""Bases on disk: made once, whole or absent, shared by processes, and never used when they are damaged."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from t2cli.config import DecomposeConfig
from t2cli.errors import CorruptArtifactError, UsageError
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import load_base
from t2cli.models.basis_cache import Decomposition, basis_folder, decompose, load_bases, load_basis, singular_values
from t2cli.models.catalog import BaseFiles, locate
from t2cli.models.identity import BaseIdentity, identify
from t2cli.models.targets import Target, checkpoint_targets
from t2cli.svf.basis import basis_of

ALL = DecomposeConfig()
SCRIPT = """
import sys
from t2cli.config import DecomposeConfig
from t2cli.models.basis_cache import decompose
from t2cli.models.catalog import locate
from t2cli.models.identity import identify
files = locate(sys.argv[1])
identity = identify(files, quiet=True)
print("ready", flush=True)
sys.stdin.readline()
print(decompose(files, identity, DecomposeConfig()).computed, flush=True)
"""


def located(folder: Path) -> tuple[BaseFiles, BaseIdentity, list[Target]]:
    files = locate(str(folder))
    return files, identify(files, quiet=True), checkpoint_targets(files.folder)


def run(folder: Path, selection: str = "all") -> Decomposition:
    files, identity, _ = located(folder)
    return decompose(files, identity, DecomposeConfig(selection=selection), quiet=True)


def started(folder: Path) -> subprocess.Popen[str]:
    """Return a process that loads everything, says so, and decomposes when it is sent a line."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def go(*processes: subprocess.Popen[str]) -> None:
    """Let processes decompose at once, when all of them have loaded everything."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def bases_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.safetensors"))


@pytest.fixture(scope="module")
def many_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a base whose decomposition takes long enough to be interrupted."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=64, intermediate_size=96, num_hidden_layers=16, num_attention_heads=4
    )
    folder = tmp_path_factory.mktemp("many") / "layers"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


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


def test_bases_whose_names_have_dots_do_not_share_a_lock(copied: Callable[..., Path]) -> None:
    for name in ("tiny-0.5b", "tiny-0.6b"):
        run(copied(name=name))
    folder = basis_folder(located(copied(name="tiny-0.7b"))[1]).parent
    locks = sorted(path.name for path in folder.glob("*.lock"))
    assert [name.rsplit("-", 1)[0] for name in locks] == ["tiny-0.5b", "tiny-0.6b"]


def test_killed_in_the_middle_leaves_whole_files_that_are_used(many_layers: Path) -> None:
    files, identity, targets = located(many_layers)
    folder = basis_folder(identity)
    process = started(many_layers)
    go(process)
    deadline = time.monotonic() + 30
    while len(bases_in(folder)) < 4 and time.monotonic() < deadline:
        time.sleep(0.0005)
    (folder / ".q_proj.weight.safetensors.0.tmp").touch()  # the kill may leave such a file, or come at another moment
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = bases_in(folder)
    assert 4 <= len(done) < len(targets)
    for target in targets:
        if (folder / f"{target.weight}.safetensors") in done:
            load_basis(identity, target)
    assert decompose(files, identity, ALL, quiet=True).computed == len(targets) - len(done)
    assert len(load_bases(identity, targets)) == len(targets)
    assert not list(folder.glob(".*")), "what the killed process was writing is cleared away"


def test_two_processes_at_once_make_each_basis_once(many_layers: Path) -> None:
    _, identity, targets = located(many_layers)
    processes = [started(many_layers) for _ in range(2)]
    go(*processes)
    computed = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(computed) == len(targets)
    assert len(load_bases(identity, targets)) == len(targets)


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
    else:
        tensors, metadata = load_file(path), {"format": "t2.basis/1", "side": "input"}
        if how == "other format":
            metadata["format"] = "t2.basis/0"
        elif how == "no format":
            metadata = {}
        elif how == "other side":
            metadata["side"] = "output"
        elif how == "other shape":
            tensors["Q"] = tensors["Q"][:-1].contiguous()
        elif how == "other precision":
            tensors["Q"] = tensors["Q"].half()
        elif how == "no S":
            del tensors["S"]
        save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "empty",
        "noise",
        "missing",
        "other format",
        "no format",
        "other side",
        "other shape",
        "other precision",
        "no S",
    ],
)
def test_damaged_basis_is_refused_by_its_path(how: str, base_folder: Callable[[str], Path]) -> None:
    run(base_folder("llama"))
    _, identity, targets = located(base_folder("llama"))
    target = next(target for target in targets if "up_proj" in target.weight)  # 48 x 32: the input side
    path = basis_folder(identity) / f"{target.weight}.safetensors"
    damage(path, how)
    with pytest.raises(CorruptArtifactError, match=re.escape(str(path))) as caught:
        load_bases(identity, targets)
    assert caught.value.exit_code == 5
    assert "t2 decompose" in caught.value.hint


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
