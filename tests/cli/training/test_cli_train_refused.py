"""What t2 train refuses, before anything is written."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from divisors import TASK
from trained import FAST, published, runs

from t2cli.training.checkpoint import RunFolder

pytest.importorskip("reasoning_gym")


def test_a_lora_without_peft_is_refused_before_anything_is_written(
    train: Callable, refused: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(train("--adapter", "lora"), 1, "needs peft", "[lora]")
    assert runs(tmp_path) == []


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
        (["--seed", "-1"], 2, ["--seed"]),
        (["--seed", str(2**63)], 2, ["--seed"]),
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


def test_without_tensorboard_it_says_how_to_get_it(
    train: Callable, refused: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    refused(train("--tensorboard"), 1, "tensorboard, which is not installed", "t2cli[tensorboard]")
    assert runs(tmp_path) == []


def test_a_lora_is_not_for_a_base_that_is_spread(
    train: Callable, refused: Callable, begun: Callable[..., RunFolder], tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    refused(train("--adapter", "lora", "--device", "spread"), 2, "a LoRA is trained on one", "--adapter svf")
    assert runs(tmp_path) == []
    begun(adapter="lora")
    refused(train("--resume", "--device", "spread"), 2, "a LoRA is trained on one")


def test_torchrun_and_spread_are_not_for_each_other(
    train: Callable, refused: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, str(value))
    refused(train("--device", "spread"), 2, "spread is for one process", "torchrun")
    assert runs(tmp_path) == []
