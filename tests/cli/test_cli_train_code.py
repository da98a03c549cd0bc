"""Tasks whose answers are programs: refused at once without a sandbox, or run as told, and loudly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import Result

from t2cli.registry.local import ExpertEntry
from t2cli.tasks import sandbox

LOUD = "--unsafe-code: programs that the model writes run as you"


@pytest.fixture
def without_bubblewrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox._trial.cache_clear()
    yield
    sandbox._trial.cache_clear()


@pytest.mark.usefixtures("without_bubblewrap")
def test_without_a_sandbox_it_is_refused_before_a_base_is_even_looked_for(
    run: Callable[..., Result], refused: Callable[..., None]
) -> None:
    result = run("train", "--task", "code", "--base", "/there/is/no/base")
    refused(result, 1, "only run in a sandbox", "--unsafe-code")
    # An ordinary task gets as far as the base.
    assert run("train", "--task", "math", "--base", "/there/is/no/base").exit_code == 3
    evaluate = ["eval", "--task", "math", "--task", "code", "--n", "2", "--base", "/there/is/no/base"]
    refused(run(*evaluate), 1, "only run in a sandbox", "--unsafe-code")
    result = run(*evaluate, "--unsafe-code")
    assert result.exit_code == 3
    assert result.stderr.count(LOUD) == 1


@pytest.mark.usefixtures("without_bubblewrap")
def test_a_training_is_not_reproduced_without_a_sandbox(
    run: Callable[..., Result], refused: Callable[..., None], make_expert: Callable[..., ExpertEntry], tmp_path: Path
) -> None:
    make_expert(tmp_path / "experts", "code")
    reproduce = ["reproduce", "code", "--base", "/there/is/no/base", "--registry", tmp_path / "experts"]
    refused(run(*reproduce), 1, "only run in a sandbox", "--unsafe-code")
    result = run(*reproduce, "--unsafe-code")
    assert result.exit_code == 3
    assert result.stderr.count(LOUD) == 1


@pytest.mark.usefixtures("without_bubblewrap")
def test_an_evaluation_runs_code_as_told(run: Callable[..., Result], counting_folder: Path) -> None:
    result = run("eval", "--task", "code", "--base", counting_folder, "--n", "2", "--unsafe-code", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count(LOUD) == 1


@pytest.mark.usefixtures("without_bubblewrap")
def test_a_run_goes_on_without_a_sandbox_where_a_reward_of_ones_own_judges(
    run: Callable[..., Result], counting_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judges.py").write_text("def none(answer, completion):\n    return False\n")
    monkeypatch.chdir(tmp_path)
    options = ["--task", "code", "--base", counting_folder, "--quiet"]
    own = ["--reward", "judges:none"]
    assert "no checkpoint was better" in run("train", *options, *own, "--steps", "1").stderr
    (begun,) = (tmp_path / "home" / "runs").glob("*/*/*")
    (begun / "expert.txt").unlink()  # as if it was killed at once
    assert "no checkpoint was better" in run("train", *options, "--resume").stderr

    record = json.loads((begun / "run.json").read_text())
    (begun / "run.json").write_text(json.dumps({**record, "reward": {}}))
    (begun / "expert.txt").unlink()
    refused = run("train", *options, *own, "--resume")  # the tests that the run began with judge, not this function
    assert (refused.exit_code, "only run in a sandbox" in refused.stderr) == (1, True), refused.stderr


@pytest.mark.usefixtures("without_bubblewrap")
def test_unsafe_code_is_said_once_and_loudly(run: Callable[..., Result], counting_folder: Path) -> None:
    result = run("train", "--task", "code", "--base", counting_folder, "--steps", "1", "--unsafe-code", "--quiet")
    # This base writes digits, never a function: it runs to its end, and there is nothing better than the base.
    assert "no checkpoint was better" in result.stderr
    assert result.stderr.count(LOUD) == 1
    math = run("train", "--task", "math", "--base", "/there/is/no/base", "--unsafe-code")
    assert "run as you" not in math.stderr
