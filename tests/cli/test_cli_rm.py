"""t2 rm: one version at a time, never another, and only after a yes at a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from t2cli.registry.local import ExpertEntry, LocalRegistry


def left(registry: Path) -> list[str]:
    return [f"{entry.reference} {entry.manifest.base.name}" for entry in LocalRegistry([registry]).list()]


OURS = ["both@1 smollm2-135m", "code@1 smollm2-135m", "math@1 smollm2-135m", "math@2 smollm2-135m"]
ALL = ["math@1 qwen3-0.6b", *OURS]


def test_named_versions_are_removed_and_the_rest_stays(run: Callable, registry: Path) -> None:
    assert left(registry) == ALL
    result = run("rm", "math@2", "code", "--registry", registry, "--json", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    record = json.loads(result.stdout)
    assert (record["schema"], [item["ref"] for item in record["removed"]]) == ("t2.rm/1", ["math@2", "code@1"])
    assert left(registry) == ["math@1 qwen3-0.6b", "both@1 smollm2-135m", "math@1 smollm2-135m"]
    assert "removed both@1 (smollm2-135m-aaaaaaaaaaaa)\n" in run("rm", "both", "--registry", registry).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["mth"], 3, ["'mth'", "did you mean math"]),
        (["math@9"], 3, ["math@9"]),
        (["math"], 2, ["could be any of", "math@2"]),
        (["math@1"], 2, ["could be any of", "qwen3-0.6b"]),
        (["math@1", "--base", "other"], 3, ["math@1"]),
        (["../math"], 2, ["'../math'"]),
        (["code", "hf://org/repo/math@2"], 2, ["on the Hub"]),
        ([], 2, ["EXPERT"]),
    ],
)
def test_nothing_is_removed_where_one_name_is_not_clear(
    arguments: list[str], code: int, said: list[str], run: Callable, refused: Callable, registry: Path
) -> None:
    refused(run("rm", "--yes", *arguments, "--registry", registry), code, *said)
    assert left(registry) == ALL


def test_the_base_chooses_between_equal_names(run: Callable, registry: Path) -> None:
    assert run("rm", "math@1", "--base", "qwen3-0.6b", "--registry", registry).exit_code == 0
    assert left(registry) == OURS


def test_a_damaged_expert_can_be_removed(run: Callable, registry: Path) -> None:
    (LocalRegistry([registry]).find("code").path / "expert.yaml").write_text("x")
    assert run("rm", "code", "--registry", registry).exit_code == 0
    assert "code@1 smollm2-135m" not in left(registry)
    assert not list(registry.glob("*/code/1"))


def test_experts_that_ship_are_not_removed(
    run: Callable,
    refused: Callable,
    tmp_path: Path,
    make_expert: Callable[..., ExpertEntry],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_expert(tmp_path / "shipped", "math")
    monkeypatch.setenv("T2_REGISTRY", f"{tmp_path / 'mine'}{os.pathsep}{tmp_path / 'shipped'}")
    refused(run("rm", "math"), 2, "not written to")
    assert left(tmp_path / "shipped") == ["math@1 smollm2-135m"]


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("YES", 0), ("n", 2), ("", 2), ("yess", 2)])
def test_at_a_terminal_it_asks(answer: str, code: int, registry: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "t2cli", "rm", "code", "--registry", str(registry)]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        os.close(theirs)
        os.write(ours, f"{answer}\n".encode())
        _, errors = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == code, errors
    assert "remove? [y/N]" in errors
    assert ("code@1 smollm2-135m" in left(registry)) == bool(code)
    assert ("nothing was removed" in errors) == bool(code)


def test_at_a_terminal_yes_skips_the_question(registry: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "t2cli", "rm", "code", "--yes", "--registry", str(registry)]
    result = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=60, check=True)
    for end in (ours, theirs):
        os.close(end)
    assert "remove?" not in result.stderr
