"""t2 tasks: the list needs no network and no model, and one task is shown as the model meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import Hub, Repo

from t2cli.tasks.base import SpecTask, load_task, task_names
from t2cli.tasks.glimpse import first_example

GSM8K = [{"question": f"Ann has {i} cats, Bo 2. How many?", "answer": f"{i} + 2\n#### {i + 2}"} for i in range(60)]
FIELDS = ["name", "category", "description", "source", "example", "base_accuracy", "base_n"]
MORE = ["mixture", "splits", "max_new_tokens", "messages", "answer"]


def lines(records: list[dict[str, str]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "questions"
    folder.mkdir()
    (folder / "train.jsonl").write_text(lines(GSM8K[:50]))
    (folder / "test.jsonl").write_text(lines(GSM8K[50:]))
    return folder


def test_every_built_in_task_is_listed_with_what_is_known(run: Callable) -> None:
    result = run("tasks", "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert (record["schema"], record["base"]) == ("t2.tasks/1", "smollm2-135m")
    listed = {task["name"]: task for task in record["tasks"]}
    assert list(listed) == task_names()
    assert all(list(task) == FIELDS for task in listed.values())
    # of the experts that ship
    assert (listed["math"]["base_accuracy"], listed["math"]["base_n"]) == (pytest.approx(0.172, abs=1e-3), 500)
    assert listed["math"]["example"]
    assert listed["gsm8k"]["source"] == "Hub: openai/gsm8k (main)"
    assert listed["gsm8k"]["base_accuracy"] is None
    assert listed["code"]["source"].endswith(" more")
    for name, task in listed.items():  # of a task that no expert learned, also where its questions are not at hand
        assert task["example"], name
    text = run("tasks").stdout.splitlines()
    assert text[0].split() == ["NAME", "CATEGORY", "SOURCE", "BASE", "EXAMPLE"]
    assert len(text) == 1 + len(listed)
    assert "0.172" in next(line for line in text if line.startswith("math "))


def test_the_example_of_a_task_is_a_question_of_it() -> None:
    pytest.importorskip("reasoning_gym")
    for name in ("terms", "letters", "largest"):
        task = load_task(name)
        assert isinstance(task, SpecTask)
        assert task.messages(first_example(task))[-1]["content"].startswith(task.spec.example)


def test_what_another_base_scores_is_not_shown(run: Callable) -> None:
    record = json.loads(run("tasks", "--json", "--base", "org/another").stdout)
    assert {task["base_accuracy"] for task in record["tasks"]} == {None}


def test_it_imports_neither_torch_nor_the_hub() -> None:
    script = (
        "import sys; from t2cli.cli.app import app\n"
        "try: app(['tasks'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'numpy', 'sympy', 'reasoning_gym'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "gsm8k" in done.stdout


def test_one_task_is_shown_as_the_model_sees_it(run: Callable, data: Path) -> None:
    result = run("tasks", "gsm8k", "--data", data)
    assert (result.exit_code, result.stderr) == (0, "")
    shown = result.stdout
    assert "Ann has 0 cats, Bo 2. How many?" in shown
    assert "right answer  2\n" in shown
    assert "test" in next(line for line in shown.splitlines() if line.startswith("questions "))
    (record,) = json.loads(run("tasks", "gsm8k", "--data", data, "--json").stdout)["tasks"]
    assert list(record) == FIELDS + MORE
    assert record["splits"]["test"] == 10
    assert record["splits"]["train"] + record["splits"]["validation"] == 50
    assert record["messages"][-1]["content"].startswith("Ann has 0 cats, Bo 2. How many?\n")


def test_a_task_that_makes_its_questions_shows_its_mixture(run: Callable) -> None:
    pytest.importorskip("reasoning_gym", reason="the extra [tasks] is not installed")
    shown = run("tasks", "reasoning").stdout
    assert "43 % needle_haystack, judged by word" in shown
    assert "right answer" in shown


def test_what_was_fetched_once_is_shown_and_nothing_is_fetched(
    run: Callable, hub: Hub, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    from t2cli.tasks.base import load_task, up_to

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    before = run("tasks", "gsm8k")
    assert "warning: no example: openai/gsm8k has not been fetched yet" in before.stderr
    assert (before.exit_code, "right answer" in before.stdout, hub.asked) == (0, False, [])
    hub.repos["openai/gsm8k"] = repo = Repo()
    repo.add({f"main/{path.name}": path.read_bytes() for path in data.iterdir()}, "data")
    assert len(up_to(load_task("gsm8k"), "test", 100, 0)) == 10
    hub.asked.clear()
    assert "Ann has 0 cats" in run("tasks", "gsm8k").stdout
    assert "Ann has 0 cats" in run("tasks").stdout
    assert hub.asked == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["gsm"], 3, ["no task named 'gsm'", "did you mean gsm8k"]),
        (["none.yaml"], 3, ["no task file none.yaml"]),
        (["--data", "q.jsonl"], 2, ["--data goes with one task"]),
        (["gsm8k", "--data", "gone.jsonl"], 3, ["there is no gone.jsonl"]),
        (["gsm8k", "--data", "q.jsonl"], 5, ["q.jsonl, line 1: there is no field 'question'"]),
        (["own.yaml"], 5, ["q.jsonl, line 1: there is no field 'question'"]),
        (["latin.yaml"], 5, ["latin.yaml is no UTF-8 text"]),
        (["math", "--data", "q.jsonl"], 2, ["math makes its questions itself"]),
    ],
)
def test_what_cannot_be_shown_is_told(
    arguments: list[str],
    code: int,
    said: list[str],
    run: Callable,
    refused: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.jsonl").write_text('{"ask": "q", "answer": 1}\n')
    head = "name: own\ncategory: own\ndescription: mine\nmax_new_tokens: 8\nanswer: {kind: number}\n"
    (tmp_path / "own.yaml").write_text(f"{head}source: {{kind: jsonl, file: q.jsonl}}\n")
    (tmp_path / "latin.yaml").write_bytes(b"\xff")
    refused(run("tasks", *arguments), code, *said)
