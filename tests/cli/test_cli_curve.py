"""The reward curve of a run: as text of either kind, as a picture, as JSON, and of runs that are not there."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from t2cli.cli.chart import reward_curve
from t2cli.config import TrainConfig
from t2cli.models.base import load_base
from t2cli.training.checkpoint import RunFolder, RunSpec, new_run
from t2cli.training.metrics import StepRecord


def records(count: int, *, validated: int = 10) -> list[StepRecord]:
    """Return steps whose reward rises evenly from -1 to +1, with validations that are all right."""
    return [
        StepRecord(
            step=step,
            steps=count,
            reward=-1 + 2 * (step - 1) / max(1, count - 1),
            kl=0.0,
            informative=1.0,
            gradient_norm=1.0,
            learning_rate=1e-3,
            tokens=9,
            tokens_per_second=9.0,
            seconds=1.0,
            elapsed=float(step),
            eta=0.0,
            validation=1.0 if step % validated == 0 else None,
        )
        for step in range(1, count + 1)
    ]


@pytest.fixture
def folder(base_folder: Callable[[str], Path]) -> RunFolder:
    """Return the run of an expert for the tiny base, half way."""
    identity = load_base(str(base_folder("llama")), device="cpu", quiet=True).identity
    run = new_run(identity.folder_name, RunSpec("math", "sums", "llama", identity.weights, TrainConfig()))
    for record in records(20):
        run.metrics.append(record)
    return run


@pytest.fixture
def curve(run: Callable, base_folder: Callable[[str], Path]) -> Callable:
    return lambda *arguments: run("curve", *arguments, "--base", str(base_folder("llama")))


def as_if_stdout_were(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))


def test_in_ascii_a_rising_reward_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_stdout_were(monkeypatch, "ascii")
    lines = reward_curve(records(16, validated=8))
    assert "\n".join(lines).isascii()
    drawn = [line[7:23] for line in lines[:8]]
    tops = [min(row for row in range(8) if drawn[row].ljust(16)[column] in "*o") for column in range(16)]
    assert tops[0] == 7
    assert min(tops) == 0
    without = [top for column, top in enumerate(tops) if column not in (7, 15)]
    assert without == sorted(without, reverse=True)
    assert "o" in drawn[0]
    assert sum(line.count("o") for line in drawn) == 2
    assert (lines[0].split()[0], lines[0].split()[-1]) == ("+1.10", "1.05")
    assert lines[8].split() == ["step", "1", "16"]


def test_in_utf8_there_are_eight_dots_to_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_stdout_were(monkeypatch, "utf-8")
    lines = reward_curve(records(40))
    dots = sum(bin(ord(c) - 0x2800).count("1") for line in lines for c in line if 0x2800 <= ord(c) < 0x2900)
    assert dots >= 80 - 4 * 8  # two columns a step, some under the marks
    assert sum(line.count("◆") for line in lines[:8]) == 4


@pytest.mark.parametrize("columns", [40, 80, 300])
@pytest.mark.parametrize("count", [1, 2, 7, 50, 1000])
def test_it_fits_the_terminal(count: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = reward_curve(records(count))
    assert len(lines) == 10
    assert max(map(len, lines[:-1])) <= min(columns, 120)


@pytest.mark.parametrize(("count", "wanted"), [(1, ["1"]), (2, ["1", "2"]), (3, ["1", "3"]), (12, ["1", "12"])])
def test_the_steps_at_the_ends_are_told_apart(count: int, wanted: list[str]) -> None:
    assert reward_curve(records(count))[8].split() == ["step", *wanted]


def test_no_step_no_curve() -> None:
    assert reward_curve([]) == []


def test_the_newest_run_of_a_name_also_while_it_goes_on(curve: Callable, folder: RunFolder) -> None:
    with folder.metrics.path.open("a") as file:
        file.write('{"step": 21, "ste')
    result = curve("sums")
    assert result.exit_code == 0, result.stderr
    assert "accuracy in validation" in result.stdout
    record = json.loads(curve("sums", "--json").stdout)
    assert list(record) == ["schema", "path", "steps"]
    assert (record["schema"], record["path"]) == ("t2.curve/1", str(folder.path))
    assert [step["step"] for step in record["steps"]] == list(range(1, 21))
    assert curve(folder.path).stdout == result.stdout


def test_a_base_is_known_by_its_weights_whatever_it_is_called(
    run: Callable, curve: Callable, folder: RunFolder, base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "another name").symlink_to(base_folder("llama"))
    result = run("curve", "sums", "--base", tmp_path / "another name")
    assert (result.exit_code, result.stdout) == (0, curve("sums").stdout), result.stderr


def test_a_run_that_ended_before_its_first_step_is_passed_over(curve: Callable, folder: RunFolder) -> None:
    other = new_run(folder.path.parent.parent.name, folder.spec())
    assert json.loads(curve("sums", "--json").stdout)["path"] == str(folder.path)
    other.metrics.append(records(1)[0])
    assert json.loads(curve("sums", "--json").stdout)["path"] == str(other.path)


def test_a_version_is_the_run_that_published_it(curve: Callable, folder: RunFolder, refused: Callable) -> None:
    folder.finish("sums@3")
    other = new_run(folder.path.parent.parent.name, folder.spec())
    other.metrics.append(records(2)[0])
    assert json.loads(curve("sums@3", "--json").stdout)["path"] == str(folder.path)
    assert json.loads(curve("sums", "--json").stdout)["path"] == str(other.path)
    refused(curve("sums@2"), 3, "no run of sums@2", "t2 show")


def test_a_picture(
    curve: Callable, folder: RunFolder, tmp_path: Path, refused: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    result = curve("sums", "--plot", tmp_path / "curve.png")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert result.stderr == f"wrote {tmp_path / 'curve.png'}\n"
    refused(curve("sums", "--plot", tmp_path / "curve.txt"), 2, "no kind of picture")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert curve("sums", "--plot", "~/second.png").exit_code == 0
    assert (tmp_path / "second.png").is_file()


def test_what_is_not_there_is_said(curve: Callable, folder: RunFolder, refused: Callable) -> None:
    refused(curve("other"), 3, "no run of other", "t2 show")
    refused(curve("Not A Name"), 2, "Not A Name")
    folder.metrics.path.unlink()
    refused(curve("sums"), 3, "has no finished step")
    refused(curve("sms"), 3, "no run of sms", "did you mean sums")
