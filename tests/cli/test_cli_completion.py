"""What a shell is offered after the tab key: names that are there, from every command, without loading a model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from t2cli.tasks.base import task_names

SCRIPT = (
    "import sys\n"
    "from t2cli.cli.app import main\n"
    "try: main()\n"
    "finally: print([n for n in ('torch', 'transformers', 'numpy') if n in sys.modules], file=sys.stderr)"
)


@pytest.fixture
def completed(registry: Path) -> Callable[..., list[str]]:
    """Return a function that gives what bash is offered after these words, the last one unfinished."""

    def complete(*words: str, search: Path = registry) -> list[str]:
        environment = {
            **os.environ,
            "_T2_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(("t2", *words)),
            "COMP_CWORD": str(len(words)),
            "T2_REGISTRY": str(search),
        }
        command = [sys.executable, "-c", SCRIPT]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
        assert done.stderr == "[]\n"
        return done.stdout.split()

    return complete


@pytest.mark.parametrize("command", ["show", "rm", "copy", "verify", "diff", "mix"])
def test_names_of_experts(command: str, completed: Callable[..., list[str]]) -> None:
    assert completed(command, "") == ["both", "code", "math"]


def test_beginnings_versions_and_later_arguments(completed: Callable[..., list[str]]) -> None:
    assert completed("show", "ma") == ["math"]
    assert completed("show", "math@") == ["math@1", "math@2"]
    assert completed("diff", "math", "co") == ["code"]
    assert completed("chat", "--expert", "b") == ["both"]
    assert completed("show", "x") == []


def test_the_registry_option_counts(completed: Callable[..., list[str]], registry: Path, tmp_path: Path) -> None:
    assert completed("show", "--registry", str(registry), "", search=tmp_path / "none") == ["both", "code", "math"]
    assert completed("show", "", search=tmp_path / "none") == []


def test_tasks_bases_categories_and_kinds(completed: Callable[..., list[str]]) -> None:
    assert completed("train", "--task", "") == task_names()
    assert completed("show", "--base", "") == ["qwen3-0.6b", "smollm2-135m"]
    assert completed("chat", "--base", "q") == ["qwen3-0.6b"]
    assert completed("list", "--base", "s") == ["smollm2-135m"]
    assert completed("list", "--category", "m") == ["math"]
    assert completed("list", "--kind", "m") == ["mix"]
