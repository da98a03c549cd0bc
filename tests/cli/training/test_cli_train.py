"""t2 train learns a small task of reasoning-gym on a tiny base, as SVF and as a LoRA, in one process and in two."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from trained import FAST, published, runs

from t2cli.config import preset
from t2cli.paths import t2_home
from t2cli.registry.local import LocalRegistry
from t2cli.training.checkpoint import RunFolder

pytest.importorskip("reasoning_gym")

FIELDS = ["schema", "expert", "digest", "path", "steps", "seconds", "evaluation"]


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


def test_events_a_picture_and_a_curve(
    train: Callable, run: Callable, refused: Callable, options: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("matplotlib")
    refused(train("--plot", "/proc/nowhere/curve.png"), 1, "/proc/nowhere/curve.png could not be written")
    refused(train("--plot", tmp_path), 2, "names no kind of picture")
    assert not (tmp_path / "home" / "runs").exists()
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


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_torchrun_publishes_once_and_one_process_talks(
    device: str, two_processes: Callable, options: list[str], tmp_path: Path
) -> None:
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("NCCL needs a GPU for each of two processes")
    result = two_processes(["train", *options, *FAST, "--json", "--device", device])
    assert result.returncode == 0, result.stderr
    (entry,) = published()
    assert json.loads(result.stdout)["digest"] == entry.digest  # one object: it would not parse otherwise
    assert [line.split()[1] for line in result.stderr.splitlines() if line.startswith("step ")] == [
        f"{step}/10" for step in range(1, 11)
    ]
    (folder,) = runs(tmp_path)
    assert RunFolder(folder).published == entry.reference
