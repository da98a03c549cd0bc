"""Experts and the bases they were not made for: other copies of the same weights, close relatives, foreign bases."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from t2cli.models.base import BaseModel
from t2cli.models.catalog import locate
from t2cli.models.identity import BaseIdentity, identify
from t2cli.models.targets import find_targets
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.vectors import read_z
from t2cli.svf.zvector import ZVectors

SHORT = ("--max-new-tokens", "8")
SIZE = 0.02  # of the relative's difference from the base of the experts


def identity_of(folder: Path) -> BaseIdentity:
    return identify(locate(str(folder)), quiet=True)


@pytest.fixture
def change(base_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a changed copy of a tiny base under a new name."""
    from transformers import AutoModelForCausalLM

    def save(name: str, alter: Callable[[torch.nn.Module], Any] | None = None, **how: Any) -> Path:
        folder = Path(shutil.copytree(base_folder("llama"), tmp_path / name))
        (folder / "model.safetensors").unlink()
        model = AutoModelForCausalLM.from_pretrained(base_folder("llama"))
        if alter is not None:
            with torch.no_grad():
                alter(model)
        model.save_pretrained(folder, **how)
        return folder

    return save


def perturbed(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for W in model.parameters():
        W += SIZE * W.norm() * torch.randn(W.shape, generator=generator) / W.numel() ** 0.5


def redrawn(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for W in model.parameters():
        W.copy_(0.25 * torch.randn(W.shape, generator=generator))


@pytest.fixture
def relative(change: Callable[..., Path]) -> Path:
    return change("relative", perturbed)


@pytest.fixture
def stranger(change: Callable[..., Path]) -> Path:
    """Return a base of the same recipe and other random numbers."""
    return change("stranger", redrawn)


@pytest.fixture
def experts(
    tmp_path: Path,
    load: Callable[[str], BaseModel],
    publish: Callable[..., ExpertEntry],
    random_z: Callable[..., ZVectors],
) -> dict[str, ExpertEntry]:
    """Return two experts for the tiny base."""
    model = load("llama")
    ranks = {target.weight: target.rank for target in find_targets(model.model)}
    asked = {"math": ("What is 1 + 2?",), "story": ("Who likes cats?",)}
    return {
        name: publish(tmp_path / "experts", model.identity, name, random_z(ranks, seed=seed, sigma=0.5), examples=shown)
        for seed, (name, shown) in enumerate(asked.items())
    }


@pytest.fixture
def t2(run: Callable, experts: dict[str, ExpertEntry], tmp_path: Path) -> Callable:
    """Return a function that runs a command on a base with these experts."""
    return lambda *words, base: run(*words, "--base", base, "--registry", tmp_path / "experts")


def test_copies_of_the_same_numbers_are_one_base(change: Callable[..., Path], t2: Callable) -> None:
    low = change("low", lambda model: model.bfloat16())
    high = change("high", lambda model: model.bfloat16().float())
    sharded = change("sharded", lambda model: model.bfloat16(), max_shard_size="10KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    found = [identity_of(folder) for folder in (low, high, sharded)]
    assert len({identity.weights for identity in found}) == 1
    assert found[0].probes == found[1].probes == found[2].probes
    assert "(weights differ by 0.1" in t2("show", "math", base=low).stdout  # rounding is a difference, of 0.1 to 0.2 %


def test_the_base_itself_is_the_same_in_words(t2: Callable, base_folder: Callable[[str], Path]) -> None:
    folder = base_folder("llama")
    before = t2("show", "math", base=folder).stdout
    assert f"not known yet, run t2 decompose {folder}" in before or f"the same base as {folder}" in before
    assert t2("chat", "What is 2 + 2?", *SHORT, "--expert", "math", base=folder).stderr == "[math@1]\n"
    assert f"the same base as {folder}" in t2("show", "math", base=folder).stdout


def test_a_close_relative_is_used_with_one_warning(
    t2: Callable, relative: Path, base_folder: Callable[[str], Path]
) -> None:
    result = t2("chat", "What is 2 + 2?", *SHORT, "--expert", "math", base=relative)
    assert result.exit_code == 0, result.stderr
    warning, decision = result.stderr.splitlines()
    assert warning.startswith("warning: math@1 was made for llama-")
    assert "a close relative (weights differ by" in warning
    assert decision == "[math@1]"
    plain = t2("chat", "What is 2 + 2?", *SHORT, "--adapt", "none", base=relative)
    assert plain.stderr == "[base model]\n"
    assert plain.stdout != result.stdout


def test_pass_1_uses_the_experts_of_a_relative_for_categories_without_own_ones(
    t2: Callable, relative: Path, publish: Callable[..., ExpertEntry], experts: dict[str, ExpertEntry], tmp_path: Path
) -> None:
    result = t2("chat", "What is 2 + 2?", *SHORT, "--json", base=relative)
    assert set(json.loads(result.stdout)["dispatch"]["probabilities"]) == {"math", "story", "other"}
    (warning,) = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert "math@1 and story@1 were made for llama-" in warning
    own = publish(tmp_path / "experts", identity_of(relative), "sums", read_z(experts["math"]), category="math")
    assert own.reference == "sums@1"
    result = t2("chat", "What is 2 + 2?", *SHORT, "--json", base=relative)
    assert set(json.loads(result.stdout)["dispatch"]["probabilities"]) == {"math", "story", "other"}
    (warning,) = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert "story@1" in warning


def test_a_foreign_base_is_refused_in_words_and_used_when_asked_for(
    t2: Callable, stranger: Path, refused: Callable
) -> None:
    ask = ("chat", "What is 2 + 2?", *SHORT)
    refused(t2(*ask, "--expert", "math", base=stranger), 4, "a foreign base (weights differ by 1", "--allow-foreign")
    refused(t2(*ask, "--mix", "math:1,story:1", base=stranger), 4, "a foreign base", "--allow-foreign")
    unaided = t2(*ask, "--json", base=stranger)  # pass 1 leaves foreign experts alone
    assert json.loads(unaided.stdout)["dispatch"]["weights"] == {}
    assert "warning" not in unaided.stderr
    allowed = t2(*ask, "--expert", "math", "--allow-foreign", base=stranger)
    assert allowed.exit_code == 0, allowed.stderr
    warning, decision = allowed.stderr.splitlines()
    assert "a foreign base (weights differ by 1" in warning
    assert decision == "[math@1]"
    chosen = t2(*ask, "--json", "--allow-foreign", base=stranger)
    assert set(json.loads(chosen.stdout)["dispatch"]["probabilities"]) == {"math", "story", "other"}


def test_other_shapes_are_refused_even_when_asked_for(
    t2: Callable, base_folder: Callable[[str], Path], refused: Callable
) -> None:
    folder = base_folder("llama-grouped")
    result = t2("chat", "x", *SHORT, "--expert", "math", base=folder)
    refused(result, 4, "foreign", "its shapes are others")
    assert "--allow-foreign" not in result.stderr
    refused(t2("chat", "x", *SHORT, "--expert", "math", "--allow-foreign", base=folder), 4, "singular values")
    refused(t2("mix", "math", "--name", "m", "--allow-foreign", base=folder), 4, "singular values")
    answered = t2("chat", "x", *SHORT, "--json", "--allow-foreign", base=folder)
    assert json.loads(answered.stdout)["dispatch"]["weights"] == {}


def test_a_mix_records_the_base_it_was_made_with(
    t2: Callable, relative: Path, stranger: Path, refused: Callable, tmp_path: Path
) -> None:
    result = t2("mix", "math", "story", "--name", "both", base=relative)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith("warning: math@1 and story@1 were made for llama-")
    entry = LocalRegistry([tmp_path / "experts"]).find("both")
    identity = identity_of(relative)
    fingerprint = entry.manifest.base.fingerprint
    assert entry.manifest.base.folder == identity.folder_name
    assert (fingerprint.weights, fingerprint.probes) == (identity.weights, identity.probes)
    assert "made for llama-" in entry.manifest.description
    named = t2("chat", "What is 2 + 2?", *SHORT, "--expert", "both", base=relative)
    assert named.stderr == "[both@1]\n"  # it is the relative's own now
    tree = t2("show", "both", base=relative).stdout.partition("made from\n")[2].splitlines()
    assert [line.partition(" (made for llama-")[0] for line in tree] == ["  0.5 math@1", "  0.5 story@1"]

    refused(t2("mix", "math", "--name", "alien", base=stranger), 4, "a foreign base", "--allow-foreign")
    assert t2("mix", "math", "--name", "alien", "--allow-foreign", base=stranger).exit_code == 0
    alien = LocalRegistry([tmp_path / "experts"]).find("alien")
    assert alien.manifest.base.fingerprint.weights == identity_of(stranger).weights


def test_list_says_which_are_of_a_relative_and_which_are_foreign(t2: Callable, relative: Path, stranger: Path) -> None:
    identity_of(relative)
    identity_of(stranger)
    near = t2("list", "--json", base=relative)
    assert json.loads(near.stdout)["experts"] == []  # none was made for it
    assert f"2 of 2 can be used with {relative}: made for a close relative, which differs by" in near.stderr
    usable = t2("list", "--json", "--compatible", base=relative)
    assert [item["compatible"] for item in json.loads(usable.stdout)["experts"]] == [True, True]
    assert f"2 of 2 cannot be used with {stranger}" in t2("list", base=stranger).stderr
    assert json.loads(t2("list", "--json", "--compatible", base=stranger).stdout)["experts"] == []
