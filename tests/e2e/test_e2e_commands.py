"""The commands as a user runs them: real processes, the real default base, the experts that come with t2."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import t2cli
from t2cli.models.base import BaseModel
from t2cli.paths import shipped_registry
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.training.checkpoint import RunFolder

T2 = Callable[..., subprocess.CompletedProcess[str]]

QUESTION = "What is 17 + 25?"
QUESTIONS = [QUESTION, "Name a colour of the rainbow.", "What is the capital of Italy?"]
TOKENS = 24
SHORT = ("--max-new-tokens", str(TOKENS))


@pytest.fixture
def home(isolated: None, default_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test a home of its own, whose cache of base weights and bases is the shared one."""
    home = tmp_path / "home"
    home.mkdir()
    (default_home / "cache").mkdir(parents=True, exist_ok=True)
    (home / "cache").symlink_to(default_home / "cache")
    monkeypatch.setenv("T2_HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", str(Path(t2cli.__file__).parents[1]))
    return home


@pytest.fixture
def t2(home: Path) -> T2:
    """Return a function that runs t2 as a process, with `stdin` in a pipe."""

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "t2cli", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=600, check=False)

    return run


@pytest.fixture
def experts(default_base: BaseModel) -> dict[str, ExpertEntry]:
    """Return the newest of each expert that comes with t2, by name."""
    entries = LocalRegistry([shipped_registry()]).list(base_digest=default_base.identity.weights)
    if not entries:
        pytest.skip("the registry that comes with t2 has no experts for the default base yet")
    return {entry.manifest.name: entry for entry in entries}  # in the order of versions


def record_of(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert result.returncode == 0, result.stderr
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded


def greedy(base: BaseModel, question: str) -> str:
    """Answer as transformers alone does."""
    ids = torch.tensor([base.encode([{"role": "user", "content": question}])])
    out = base.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
    return base.decode(out[0, ids.shape[1] :].tolist())


def test_without_adaptation_the_answers_are_those_of_transformers(t2: T2, default_base: BaseModel) -> None:
    result = t2("chat", *SHORT, "--adapt", "none", "--json", stdin="".join(f"{question}\n" for question in QUESTIONS))
    assert result.returncode == 0, result.stderr
    assert result.stderr == "[base model]\n" * 3
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["id"] for record in records] == [1, 2, 3]
    assert [record["answer"] for record in records] == [greedy(default_base, question) for question in QUESTIONS]


def test_a_pipe_gives_a_line_for_a_line(t2: T2) -> None:
    result = t2("chat", *SHORT, stdin="".join(f"{question}\n" for question in QUESTIONS))
    assert result.returncode == 0, result.stderr
    answers = result.stdout.splitlines()
    decisions = [line for line in result.stderr.splitlines() if line.startswith("[")]  # the first use decomposes too
    assert len(answers) == len(decisions) == 3
    assert all(answers)
    assert all("%" in line for line in decisions), result.stderr


def test_a_question_finds_its_expert(t2: T2, experts: dict[str, ExpertEntry]) -> None:
    result = t2("chat", QUESTION, *SHORT, "--json")
    record = record_of(result)
    dispatch = record["dispatch"]
    categories = {entry.manifest.category for entry in experts.values() if entry.manifest.kind == "expert"}
    assert set(dispatch["probabilities"]) == {*categories, "other"}
    assert sum(dispatch["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert dispatch["category"] == max(dispatch["probabilities"], key=lambda name: dispatch["probabilities"][name])
    if "math" in categories:
        assert dispatch["category"] == "math"
        (reference,) = dispatch["weights"]
        assert result.stderr == f"[math {dispatch['probabilities']['math']:.0%} -> {reference}]\n"
    plain = t2("chat", QUESTION, *SHORT, "--quiet")
    assert (plain.returncode, plain.stderr, plain.stdout) == (0, "", record["answer"] + "\n")


def test_an_expert_and_a_mix_chosen_by_hand(t2: T2, experts: dict[str, ExpertEntry], default_base: BaseModel) -> None:
    name, entry = sorted(experts.items())[0]
    alone = record_of(t2("chat", QUESTION, *SHORT, "--expert", name, "--json"))
    assert alone["dispatch"]["weights"] == {entry.reference: 1.0}
    nothing = record_of(t2("chat", QUESTION, *SHORT, "--mix", f"{name}:0", "--json"))
    assert nothing["dispatch"]["weights"] == {entry.reference: 0.0}
    assert nothing["answer"] == greedy(default_base, QUESTION)  # an expert with weight 0 is the base


def test_a_mix_that_was_made_answers(t2: T2, home: Path, experts: dict[str, ExpertEntry]) -> None:
    names = sorted(name for name, entry in experts.items() if entry.manifest.kind == "expert")[:2]
    made = record_of(t2("mix", *(f"{name}:0.5" for name in names), "--name", "both", "--json"))
    assert made["expert"] == "both@1"
    assert Path(made["path"]).is_relative_to(home / "registry")
    assert [parent["alpha"] for parent in made["parents"]] == [0.5] * len(names)
    result = t2("chat", QUESTION, *SHORT, "--expert", "both")
    assert (result.returncode, result.stderr) == (0, "[both@1]\n")
    assert result.stdout.strip()


def test_the_experts_that_come_with_t2_are_listed_as_usable(t2: T2, experts: dict[str, ExpertEntry]) -> None:
    listed = {record["name"]: record for record in record_of(t2("list", "--json"))["experts"]}
    for name, entry in experts.items():
        assert (listed[name]["source"], listed[name]["compatible"]) == ("shipped", True)
        assert listed[name]["digest"] == entry.digest
        assert LocalRegistry([shipped_registry()]).verify(entry) == []


def test_the_default_base_is_decomposed_once(t2: T2, default_base: BaseModel) -> None:
    assert t2("decompose", "--json").returncode == 0
    record = record_of(t2("decompose", "--json"))
    assert (record["base"], record["fingerprint"]) == ("smollm2-135m", default_base.identity.weights)
    assert (record["targets"], record["parameters"], record["cached"]) == (210, 97_920, True)


@pytest.mark.slow
def test_training_is_interrupted_and_resumed(t2: T2, home: Path) -> None:
    pytest.importorskip("reasoning_gym")
    command = [sys.executable, "-m", "t2cli", "train", "--task", "math", "--steps", "2"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("step 1/2"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped after step 1, which is saved" in stderr
    assert "t2 train --task math --resume" in stderr
    (folder,) = (home / "runs").glob("*/math/*")

    result = t2("train", "--task", "math", "--resume", "--json")
    assert "resuming after step 1 of 2" in result.stderr
    assert [record.step for record in RunFolder(folder).metrics.read()] == [1, 2]
    assert RunFolder(folder).finished
    if result.returncode:  # two steps need not have made it better
        assert "no checkpoint was better than the base" in result.stderr
        assert (folder / "expert.txt").read_text() == "\n"
    else:
        entry = LocalRegistry([home / "registry"]).find(json.loads(result.stdout)["expert"])
        assert entry.manifest.training is not None
        assert entry.manifest.training.steps == 2
