"""t2 train goes on where it was interrupted, with the settings of its run."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from interrupted import ctrl_c_at
from trained import published, runs

from t2cli.config import TrainConfig, preset
from t2cli.files import write_atomic
from t2cli.training.checkpoint import RunFolder

pytest.importorskip("reasoning_gym")


def test_ctrl_c_says_what_is_saved_and_resume_finishes(
    run: Callable, options: list[str], tmp_path: Path, counting_folder: Path
) -> None:
    place = ["--registry", str(tmp_path / "home" / "registry"), "--device", "cpu"]
    command = [sys.executable, "-m", "t2cli", "train", *options, "--steps", "30", "--learning-rate", "0.03", *place]
    code, stdout, stderr = ctrl_c_at(command, "step 3/30")
    assert (code, stdout) == (130, "")
    (folder,) = runs(tmp_path)
    what, hint = [line for line in stderr.splitlines() if not line.startswith("step ")]
    said = re.fullmatch(rf"interrupted: stopped after step (\d+), which is saved in {re.escape(str(folder))}", what)
    assert said, stderr
    state = RunFolder(folder).load()
    assert state is not None
    assert state.step == int(said[1])
    assert 3 <= state.step < 30
    assert published() == []
    assert hint == f"hint: go on with: t2 train --task {options[1]} --base {counting_folder} {' '.join(place)} --resume"

    result = run(*hint.removeprefix("hint: go on with: t2 ").split(), "--json")
    assert result.exit_code == 0, result.stderr
    assert f"resuming after step {state.step} of 30" in result.stderr
    assert json.loads(result.stdout)["steps"] == 30
    assert [record.step for record in RunFolder(folder).metrics.read()] == list(range(1, 31))


def test_ctrl_c_before_the_first_step_loses_nothing(options: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "t2cli", "train", *options, "--steps", "10"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("run: ")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (130, "")
    assert len(stderr.splitlines()) <= 3
    assert "interrupted: stopped" in stderr
    assert "--resume" in stderr
    (folder,) = runs(tmp_path)
    assert RunFolder(folder).spec().config.steps == 10
    assert not list(folder.glob("*.tmp"))


def test_resume_goes_on_with_the_settings_of_the_run(
    train: Callable, begun: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun(selection="mlp", seed=4)
    result = train("--resume", "--steps", "20", "--learning-rate", "0.03")
    assert result.exit_code == 0, result.stderr
    assert "warning: --steps 20 ignored: a run goes on with the settings it began with" in result.stderr
    assert "--learning-rate" not in result.stderr
    (entry,) = published()
    training = entry.manifest.training
    assert training is not None
    assert (training.steps, training.seed, entry.manifest.targets.selection) == (10, 4, "mlp")
    assert entry.manifest.targets.count == 6


def test_resume_says_which_settings_are_not_those_of_the_run(
    train: Callable, refused: Callable, begun: Callable[..., RunFolder]
) -> None:
    folder = begun(selection="mlp", seed=4, steps=20)
    with folder.claimed():  # what follows is not of interest here
        other = ["--preset", "paper", "--trainer", "evolution", "--targets", "attention", "--seed", "0"]
        said = train("--resume", *other).stderr
        same = ["--preset", "t2", "--trainer", "policy-gradient", "--adapter", "svf", "--targets", "mlp", "--seed", "4"]
        assert "ignored" not in train("--resume", *same, "--steps", "20", "--learning-rate", "0.03").stderr
        assert "ignored" not in train("--resume").stderr
    wanted = "--preset paper and --trainer evolution and --targets attention and --seed 0 ignored: "
    assert f"warning: {wanted}a run goes on with the settings it began with" in said


def test_resume_is_for_the_same_task(
    run: Callable, refused: Callable, begun: Callable[..., RunFolder], options: list[str], task: Path
) -> None:
    folder = begun()
    other = ["train", "--task", "math", "--name", "divisors", *options[2:], "--resume"]
    refused(run(*other), 2, f"is for the task {task}, not for math", "--task")
    assert not folder.finished


def test_a_task_file_is_the_same_from_any_folder(
    run: Callable, begun: Callable[..., RunFolder], options: list[str], task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun()
    monkeypatch.chdir(task.parent)
    result = run("train", "--task", task.name, *options[2:], "--resume", "--quiet")
    assert result.exit_code == 0, result.stderr


def test_a_run_that_another_process_holds_is_refused(
    train: Callable, refused: Callable, begun: Callable[..., RunFolder]
) -> None:
    folder = begun()
    with folder.claimed():
        refused(train("--resume"), 2, "another process is training in", str(folder.path))


def test_damaged_runs_are_refused(train: Callable, refused: Callable, begun: Callable[..., RunFolder]) -> None:
    folder = begun()
    write_atomic(folder.path / "state.safetensors", b"\0" * 100)
    refused(train("--resume"), 5, "state.safetensors is damaged", "without --resume")
    write_atomic(folder.path / "run.json", "{")
    refused(train("--resume"), 5, "run.json is damaged", "without --resume")


def test_the_settings_a_run_saves_are_all_of_them(begun: Callable[..., RunFolder]) -> None:
    config = begun(seed=9).spec().config
    assert isinstance(config, TrainConfig)
    assert config == preset("t2", steps=10, learning_rate=0.03, seed=9)
