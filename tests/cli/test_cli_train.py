"""t2 train: learns a small task of reasoning-gym on a tiny base, and is interrupted, resumed and refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from divisors import TASK

from t2cli.config import TrainConfig, preset
from t2cli.files import write_atomic
from t2cli.models.base import load_base
from t2cli.models.identity import BaseIdentity
from t2cli.paths import t2_home
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.training.checkpoint import RunFolder, RunSpec, new_run

pytest.importorskip("reasoning_gym")

FAST = ("--steps", "10", "--learning-rate", "0.03")
FIELDS = ["schema", "expert", "digest", "path", "steps", "seconds", "evaluation"]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "tasks" / "divisors.yaml"
    write_atomic(path, TASK)
    return path


@pytest.fixture
def options(task: Path, counting_folder: Path) -> list[str]:
    return ["--task", str(task), "--base", str(counting_folder)]


@pytest.fixture
def train(run: Callable, options: list[str]) -> Callable:
    """Return a function that runs t2 train on the tiny task and base."""
    return lambda *arguments: run("train", *options, *arguments)


@pytest.fixture
def identity(counting_folder: Path) -> BaseIdentity:
    return load_base(str(counting_folder), device="cpu", quiet=True).identity


@pytest.fixture
def begun(identity: BaseIdentity, task: Path) -> Callable[..., RunFolder]:
    """Return a function that makes a run as one interrupted before its first step leaves it."""

    def begin(**changes: object) -> RunFolder:
        fields = {"steps": 10, "learning_rate": 0.03, **changes}
        spec = RunSpec(str(task), "divisors", "counting", identity.weights, preset("t2", **fields))
        return new_run(identity.folder_name, spec)

    return begin


def published() -> list[ExpertEntry]:
    """Return the experts of the test's own registry; others come with t2."""
    return LocalRegistry([t2_home() / "registry"]).list()


def runs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "home" / "runs").glob("*/*/*"))


def test_it_trains_and_publishes_an_expert(train: Callable, run: Callable, tmp_path: Path, options: list[str]) -> None:
    result = train(*FAST, "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert list(record) == FIELDS
    (entry,) = published()
    assert (record["schema"], record["expert"]) == ("t2.train/1", "divisors@1")
    assert (record["digest"], Path(record["path"])) == (entry.digest, entry.path)
    assert record["steps"] == 10
    assert record["seconds"] > 0
    assert record["evaluation"] == entry.manifest.to_dict()["evaluation"]
    (evaluation,) = record["evaluation"]
    assert evaluation["gain"] > 0.05
    assert evaluation["mcnemar_p"] < 0.001
    assert (evaluation["split"], evaluation["n"]) == ("test", preset("t2").evaluation_examples)
    assert entry.manifest.category == "arithmetic"
    assert all("Common Divisor" in question for question in entry.manifest.examples)
    assert LocalRegistry([t2_home() / "registry"]).verify(entry) == []

    lines = result.stderr.splitlines()
    (folder,) = runs(tmp_path)
    assert lines[0] == f"run: {folder}"
    steps = [line for line in lines if line.startswith("step ")]
    assert len(steps) == 10
    pattern = r"step 10/10  reward [+-]\d\.\d+  KL \d+\.\d+  \d+ tokens/s  \d+\.\d s  ETA 0:00  validation 0\.\d+"
    assert re.fullmatch(pattern, steps[-1]), steps[-1]

    chat = run("chat", "What is it?", "--expert", "divisors", "--json", *options[2:])
    assert chat.stderr == "[divisors@1]\n"
    assert json.loads(chat.stdout)["dispatch"]["weights"] == {"divisors@1": 1.0}


def test_people_get_one_line_with_the_gain_and_quiet_is_quiet(train: Callable, tmp_path: Path) -> None:
    result = train(*FAST, "--quiet", "--name", "mine", "--registry", tmp_path / "elsewhere", "--seed", "1")
    assert (result.exit_code, result.stderr) == (0, "")
    (entry,) = LocalRegistry([tmp_path / "elsewhere"]).list()
    (evaluation,) = entry.manifest.evaluation
    assert entry.manifest.training is not None
    assert (entry.reference, entry.manifest.training.seed) == ("mine@1", 1)
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"mine@1: divisors {evaluation.base_accuracy:.3f} -> {evaluation.expert_accuracy:.3f} ")
    assert f"gain {100 * evaluation.gain:+.1f} points" in line
    assert f"n = {evaluation.n} held-out questions" in line
    assert not (tmp_path / "home" / "registry").exists()


def test_a_lora_is_trained_in_the_same_way_and_stays_in_the_runs_folder(train: Callable, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    result = train("--adapter", "lora", "--rank", "4", "--steps", "10", "--learning-rate", "0.003", "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert list(record) == FIELDS
    (folder,) = runs(tmp_path)
    assert (record["expert"], record["digest"], record["path"]) == ("", "", str(folder / "adapter"))
    assert (folder / "adapter" / "adapter_config.json").is_file()
    assert record["evaluation"][0]["gain"] > 0
    assert published() == []
    assert "LoRA of rank 4: " in result.stderr
    said = f"a LoRA is no expert of the registry; PEFT loads it from {folder / 'adapter'}"
    assert said in result.stderr.splitlines()
    assert RunFolder(folder).spec().config == preset("t2", adapter="lora", rank=4, steps=10, learning_rate=0.003)


def test_a_lora_without_peft_is_refused_before_anything_is_written(
    train: Callable, refused: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(train("--adapter", "lora"), 1, "needs peft", "[lora]")
    assert runs(tmp_path) == []


@pytest.mark.parametrize(
    "arguments", [("--trainer", "evolution"), ("--preset", "paper"), ("--preset", "reference")], ids=" ".join
)
def test_other_presets_and_trainers_run(arguments: tuple[str, ...], train: Callable, tmp_path: Path) -> None:
    result = train(*arguments, "--steps", "2", "--quiet")
    (folder,) = runs(tmp_path)
    config = RunFolder(folder).spec().config
    assert (config.preset, config.trainer) == (
        (arguments[1], "policy-gradient") if arguments[0] == "--preset" else ("t2", "evolution")
    )
    state = RunFolder(folder).load()
    assert state is not None
    assert state.step == 2
    if result.exit_code == 0:
        (entry,) = published()
        assert LocalRegistry([t2_home() / "registry"]).verify(entry) == []
    else:
        assert "no checkpoint was better" in result.stderr, result.stderr


def test_ctrl_c_says_what_is_saved_and_resume_finishes(
    run: Callable, options: list[str], tmp_path: Path, counting_folder: Path
) -> None:
    command = [sys.executable, "-m", "t2cli", "train", *options, "--steps", "30", "--learning-rate", "0.03"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("step 3/30"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (130, "")
    (folder,) = runs(tmp_path)
    what, hint = [line for line in stderr.splitlines() if not line.startswith("step ")]
    said = re.fullmatch(rf"interrupted: stopped after step (\d+), which is saved in {re.escape(str(folder))}", what)
    assert said, stderr
    state = RunFolder(folder).load()
    assert state is not None
    assert state.step == int(said[1])
    assert 3 <= state.step < 30
    assert published() == []
    assert hint == f"hint: go on with: t2 train --task {options[1]} --base {counting_folder} --resume"

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


def test_nothing_better_than_the_base_publishes_nothing(train: Callable, refused: Callable, tmp_path: Path) -> None:
    result = train("--steps", "1", "--learning-rate", "0", "--quiet")
    refused(result, 1, "no checkpoint was better than the base", "nothing was published", "--steps")
    assert published() == []
    refused(train("--resume"), 3, "no unfinished run of divisors")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--preset", "t3"], 3, ["'t3'", "t2"]),
        (["--preset", "papper"], 3, ["'papper'", "did you mean paper"]),
        (["--adapter", "dora"], 2, ["'dora'", "'lora'"]),
        (["--trainer", "genetic"], 2, ["'genetic'", "'evolution'"]),
        (["--rank", "8"], 2, ["--rank is for a LoRA", "--adapter lora"]),
        (["--adapter", "lora", "--rank", "0"], 2, ["--rank"]),
        (["--adapter", "lora", "--trainer", "evolution"], 2, ["evolution needs the adapter svf"]),
        (["--name", "My Expert"], 2, ["'My Expert'"]),
        (["--learning-rate", "nan"], 2, ["--learning-rate"]),
        (["--learning-rate", "inf"], 2, ["--learning-rate"]),
        (["--learning-rate", "-1"], 2, ["--learning-rate"]),
        (["--steps", "0"], 2, ["--steps"]),
        (["--targets", "heads"], 2, ["'heads'", "'mlp'"]),
        (["--resume"], 3, ["no unfinished run of divisors", "--resume"]),
        (["--task", "mth"], 3, ["'mth'", "did you mean math"]),
        (["--task", "none.yaml"], 3, ["none.yaml", "math"]),
        (["--base", "smol"], 3, ["'smol'", "smollm2-135m"]),
        (["--device", "cuda:9"], 2, ["'cuda:9'"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    arguments: list[str], code: int, said: list[str], train: Callable, refused: Callable, tmp_path: Path
) -> None:
    refused(train(*arguments), code, *said)
    assert runs(tmp_path) == []
    assert not (tmp_path / "home" / "registry").exists()


def test_a_task_is_required(run: Callable, refused: Callable) -> None:
    refused(run("train"), 2, "--task", "t2 train --help")


def test_a_task_with_too_few_questions_is_refused_before_anything_is_written(
    train: Callable, refused: Callable, task: Path, tmp_path: Path
) -> None:
    task.write_text(TASK.replace("max_value: 90", "max_value: 20"))
    refused(train(*FAST), 1, "divisors has", "validation questions")
    assert runs(tmp_path) == []


def test_a_wrong_task_file_is_refused(train: Callable, refused: Callable, task: Path, tmp_path: Path) -> None:
    task.write_text(TASK.replace("kind: number", "kind: nummer"))
    refused(train(), 5, str(task), "nummer")
    assert runs(tmp_path) == []


def test_without_reasoning_gym_it_says_how_to_get_it(
    train: Callable, refused: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    refused(train(), 1, "reasoning-gym, which is not installed", "pip install")
    assert runs(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_that_cannot_be_written_is_said(train: Callable, refused: Callable, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    home.chmod(0o500)
    try:
        refused(train(*FAST), 1, "could not be written", "T2_HOME")
    finally:
        home.chmod(0o700)


def test_the_settings_a_run_saves_are_all_of_them(begun: Callable[..., RunFolder]) -> None:
    config = begun(seed=9).spec().config
    assert isinstance(config, TrainConfig)
    assert config == preset("t2", steps=10, learning_rate=0.03, seed=9)


def test_events_a_picture_and_a_curve(train: Callable, run: Callable, options: list[str], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("matplotlib")
    result = train(*FAST, "--tensorboard", "--plot", tmp_path / "curve.png", "--patience", "9")
    assert result.exit_code == 0, result.stderr
    (folder,) = runs(tmp_path)
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "accuracy in validation (right)" in result.stderr
    assert RunFolder(folder).spec().config.patience == 9
    shown = run("curve", "divisors@1", *options[2:])
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout in result.stderr


def test_without_tensorboard_it_says_how_to_get_it(
    train: Callable, refused: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    refused(train("--tensorboard"), 1, "tensorboard, which is not installed", "t2cli[tensorboard]")
    assert runs(tmp_path) == []


def test_torchrun_publishes_once_and_one_process_talks(
    two_processes: Callable, options: list[str], tmp_path: Path
) -> None:
    result = two_processes(["train", *options, *FAST, "--json", "--device", "cpu"])
    assert result.returncode == 0, result.stderr
    (entry,) = published()
    assert json.loads(result.stdout)["digest"] == entry.digest  # one object: it would not parse otherwise
    assert [line.split()[1] for line in result.stderr.splitlines() if line.startswith("step ")] == [
        f"{step}/10" for step in range(1, 11)
    ]
    (folder,) = runs(tmp_path)
    assert RunFolder(folder).published == entry.reference


def test_torchrun_and_spread_are_not_for_each_other(
    train: Callable, refused: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, str(value))
    refused(train("--device", "spread"), 2, "spread is for one process", "torchrun")
    assert runs(tmp_path) == []
