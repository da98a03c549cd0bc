"""What the tests of t2 train share: a small task of reasoning-gym and a tiny base that can learn it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from divisors import TASK

from t2cli.config import preset
from t2cli.files import write_atomic
from t2cli.models.base import load_base
from t2cli.models.identity import BaseIdentity
from t2cli.training.checkpoint import RunFolder, RunSpec, new_run


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
