"""t2 train on questions from files: --data is kept for --resume, and the manifest names files, not folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from t2cli.config import preset
from t2cli.files import sha256_of
from t2cli.models.base import load_base
from t2cli.paths import t2_home
from t2cli.registry.local import LocalRegistry
from t2cli.training.checkpoint import RunSpec, new_run

TASK = """
name: ones
category: arithmetic
description: questions whose answer is 1
max_new_tokens: 2
answer: {kind: number}
source: {kind: jsonl, file: gone.jsonl, record: {question: ask}}
"""
FAST = ("--steps", "10", "--learning-rate", "0.03", "--quiet")


@pytest.fixture
def options(tmp_path: Path, counting_folder: Path) -> list[str]:
    (tmp_path / "ones.yaml").write_text(TASK)
    return ["--task", str(tmp_path / "ones.yaml"), "--base", str(counting_folder)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with a file to train on and one to test with."""
    folder = tmp_path / "questions"
    folder.mkdir()
    for name, start, end in (("train", 2, 120), ("test", 100, 150)):
        records = [{"ask": f"What is {i} - {i - 1}?", "answer": 1} for i in range(start, end)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def published() -> list:
    return LocalRegistry([t2_home() / "registry"]).list()


def test_it_trains_on_a_folder_and_tests_on_all_of_a_small_test_file(
    run: Callable, options: list[str], data: Path, tmp_path: Path
) -> None:
    result = run("train", *options, "--data", data, *FAST)
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    (entry,) = published()
    assert entry.manifest.evaluation[0].n == 50
    assert entry.manifest.training.config["data"] == [
        {"split": name, "file": f"{name}.jsonl", "sha256": sha256_of(data / f"{name}.jsonl")}
        for name in ("train", "test")
    ]
    assert str(tmp_path) not in (entry.path / "expert.yaml").read_text().replace(entry.manifest.base.source, "")
    shown = run("show", "ones")
    assert shown.exit_code == 0, shown.stderr
    assert f"train: train.jsonl, sha256:{sha256_of(data / 'train.jsonl')[:12]}\n" in shown.stdout


def test_resume_finds_the_data_of_the_run(
    run: Callable, options: list[str], data: Path, counting_folder: Path, tmp_path: Path
) -> None:
    identity = load_base(str(counting_folder), device="cpu", quiet=True).identity
    files = {name: str(data / f"{name}.jsonl") for name in ("train", "test")}
    config = preset("t2", steps=10, learning_rate=0.03)
    new_run(identity.folder_name, RunSpec(options[1], "ones", "counting", identity.weights, config, files))
    (tmp_path / "other.jsonl").write_text((data / "test.jsonl").read_text())
    result = run("train", *options, "--data", tmp_path / "other.jsonl", "--resume", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert "warning: --data ignored: a run goes on with the settings it began with" in result.stderr
    (entry,) = published()
    assert [file["file"] for file in entry.manifest.training.config["data"]] == ["train.jsonl", "test.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 3, ["task ones: there is no file", "gone.jsonl", "--data"]),
        (["--data", "nowhere"], 3, ["--data: there is no nowhere"]),
        (["--data", "."], 2, ["no file of", "fits the task ones"]),
        (["--data", "broken.jsonl"], 5, ["broken.jsonl, line 2 is no valid JSON"]),
        (["--data", "few.jsonl"], 1, ["ones has", "train questions, and 12 were asked for"]),
        (["--data", "other.jsonl"], 5, ["other.jsonl, line 1: there is no field 'ask'"]),
        (["--task", "math", "--data", "few.jsonl"], 2, ["math makes its questions itself"]),
    ],
)
def test_wrong_data_are_refused_before_anything_is_written(
    arguments: list[str],
    code: int,
    said: list[str],
    run: Callable,
    refused: Callable,
    options: list[str],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    first = (data / "train.jsonl").read_text().splitlines()[0] + "\n"
    (tmp_path / "broken.jsonl").write_text(first + "{\n")
    (tmp_path / "few.jsonl").write_text(first)
    (tmp_path / "other.jsonl").write_text('{"question": "q", "answer": 1}\n')
    refused(run("train", *options, *arguments), code, *said)
    assert not (tmp_path / "home" / "runs").exists()
