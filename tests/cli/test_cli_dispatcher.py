"""A dispatcher from the command line: trained, shown, verified, asked by t2 chat, and never taken for an expert."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from t2cli.paths import t2_home
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.vectors import read_z

TASK = """\
name: which
category: which
description: which is which
max_new_tokens: 1
answer: {kind: exact}
source: {kind: dispatch, tasks: [./math.yaml, ./story.yaml], other: {file: general.json}}
"""
INNER = """\
name: %s
category: %s
description: questions of %s
max_new_tokens: 8
answer: {kind: exact}
source: {kind: jsonl, file: %s.jsonl}
"""
FAST = ("--preset", "paper", "--steps", "10", "--learning-rate", "0.05", "--quiet")  # a tiny model needs long steps


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Return the file of a task with three categories, whose questions look different."""
    for name, text in (("math", "{0} + {0} = "), ("story", "the two of us saw {0}")):
        (tmp_path / f"{name}.yaml").write_text(INNER % (name, name, name, name))
        lines = ({"question": text.format(number), "answer": "x"} for number in range(3000))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "general.json").write_text(json.dumps([f"ZZZZ {number} zzzz" for number in range(3000)]))
    (tmp_path / "which.yaml").write_text(TASK)
    return tmp_path / "which.yaml"


def test_no_strategy_is_measured_on_it(
    run: Callable, task: Path, base: Path, put_tiny: Callable[..., ExpertEntry], refused: Callable
) -> None:
    put_tiny("math", 1, category="math", examples=("x",))
    result = run("eval", "--task", task, "--base", base, "--adapt", "prompt", "--n", "8", "--quiet")
    refused(result, 2, "the answers of which are the categories", "other tasks")


def test_it_is_trained_shown_verified_and_listed(run: Callable, task: Path, base: Path, tmp_path: Path) -> None:
    result = run("train", "--task", task, "--base", base, *FAST, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["expert"] == "which@1"
    (entry,) = LocalRegistry([t2_home() / "registry"]).list()
    assert entry.manifest.kind == "dispatcher"
    assert entry.manifest.training is not None
    assert entry.manifest.training.config["trainer"] == "labels"
    assert [file["row"] for file in entry.manifest.training.config["data"]] == ["math", "story", "other"]  # type: ignore[attr-defined]
    assert str(tmp_path) not in (entry.path / "expert.yaml").read_text().replace(entry.manifest.base.source, "")
    shown = run("show", "which", "--base", base)
    assert shown.exit_code == 0, shown.stderr
    assert "A math, B story, C other" in shown.stdout
    assert f"of {entry.manifest.dispatcher.n} held-out questions" in shown.stdout  # type: ignore[union-attr]
    assert json.loads(run("show", "which", "--json").stdout)["dispatcher"]["labels"] == ["A", "B", "C"]
    assert run("verify", "which").exit_code == 0
    assert "which@1" in run("list", "--kind", "dispatcher", "--json").stdout.replace('"version": 1', "which@1")
    copied = run("copy", "which", "other-name")
    assert copied.exit_code == 0, copied.stderr
    assert {each.manifest.dispatcher for each in LocalRegistry([t2_home() / "registry"]).list()} == {
        entry.manifest.dispatcher
    }


def test_two_processes_learn_the_same(
    run: Callable, two_processes: Callable, task: Path, base: Path, tmp_path: Path
) -> None:
    train = ["train", "--task", str(task), "--base", str(base), *FAST, "--json"]
    result = run(*train, "--registry", tmp_path / "alone")
    assert result.exit_code == 0, result.stderr
    done = two_processes([*train, "--registry", str(tmp_path / "two")])
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [each["expert"] for each in said] == ["which@1"]  # one process talks
    alone, two = (LocalRegistry([tmp_path / name]).find("which") for name in ("alone", "two"))
    mine, other = read_z(alone), read_z(two)
    assert max(float((mine[name] - 1).abs().max()) for name in mine) > 0.01
    assert max(float((mine[name] - other[name]).abs().max()) for name in mine) < 1e-3  # float32 sums in another order
    assert alone.manifest.dispatcher is not None
    assert two.manifest.dispatcher is not None
    assert two.manifest.dispatcher.n == alone.manifest.dispatcher.n


def test_a_lora_learns_to_tell_apart_and_is_no_dispatcher(run: Callable, task: Path, base: Path) -> None:
    pytest.importorskip("peft")
    result = run("train", "--task", task, "--base", base, *FAST, "--adapter", "lora", "--rank", "4", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["expert"] == ""
    assert found["evaluation"][0]["gain"] > 0.05
    assert (Path(found["path"]) / "adapter_model.safetensors").is_file()
    assert LocalRegistry([t2_home() / "registry"]).list() == []


def test_chat_asks_it(run: Callable, chat_options: list[str], chat_experts: dict, dispatcher: ExpertEntry) -> None:
    for adapt in ((), ("--adapt", "classifier"), ("--adapt", "auto")):
        result = run("chat", "what is it?", *adapt, *chat_options, "--json")
        assert result.exit_code == 0, result.stderr
        dispatch = json.loads(result.stdout)["dispatch"]
        assert dispatch["strategy"] == "classifier"
        assert list(dispatch["probabilities"]) == ["math", "story", "other"]
    rows = "".join(json.dumps({"prompt": f"what is {number}?"}) + "\n" for number in range(5))
    together = run("chat", "--jsonl", *chat_options, stdin=rows)
    assert [json.loads(line)["dispatch"]["strategy"] for line in together.stdout.splitlines()] == ["classifier"] * 5
    base = json.loads(run("chat", "what is it?", "--adapt", "prompt", *chat_options, "--json").stdout)
    assert base["dispatch"]["strategy"] == "prompt"


def test_chat_says_what_it_cannot_choose(
    run: Callable, chat_options: list[str], chat_experts: dict, dispatcher: ExpertEntry, put_tiny: Callable
) -> None:
    put_tiny("poems", 6)
    result = run("chat", "what is it?", "--adapt", "classifier", *chat_options)
    assert "which@1 was not trained to tell poems from the others" in result.stderr
    assert json.loads(run("chat", "x", *chat_options, "--json").stdout)["dispatch"]["strategy"] == "prompt"


def test_without_one_the_way_to_it_is_said(
    run: Callable, refused: Callable, chat_options: list[str], chat_experts: dict
) -> None:
    result = run("chat", "what is it?", "--adapt", "classifier", *chat_options)
    refused(result, 3, "there is no dispatcher for", "t2 train --task dispatch")


@pytest.mark.parametrize("arguments", [("--expert", "which"), ("--mix", "math:0.5,which:0.5")])
def test_chat_does_not_answer_as_a_dispatcher(
    arguments: tuple[str, ...],
    run: Callable,
    refused: Callable,
    chat_options: list[str],
    chat_experts: dict,
    dispatcher: ExpertEntry,
) -> None:
    refused(run("chat", "x", *arguments, *chat_options), 2, "which@1 is a dispatcher")


def test_a_mix_has_no_dispatcher(
    run: Callable, refused: Callable, base: Path, tmp_path: Path, chat_experts: dict, dispatcher: ExpertEntry
) -> None:
    options = ("--name", "both", "--base", base, "--registry", tmp_path / "experts")
    refused(run("mix", "math:0.5", "which:0.5", *options), 2, "which@1 is a dispatcher")


@pytest.mark.parametrize(
    ("task", "trainer", "said"),
    [
        ("dispatch", "evolution", "--trainer evolution is not for"),
        ("math", "labels", "--trainer labels is for tasks whose answers are categories"),
    ],
)
def test_a_trainer_that_does_not_suit_the_task_is_refused(
    task: str, trainer: str, said: str, run: Callable, refused: Callable
) -> None:
    refused(run("train", "--task", task, "--trainer", trainer), 2, said)


def test_the_task_is_shown_with_its_instruction(run: Callable, task: Path) -> None:
    result = run("tasks", task)
    assert result.exit_code == 0, result.stderr
    assert "A: math (questions of math). B: story (questions of story). C: other" in result.stdout
    listed = {each["name"]: each for each in json.loads(run("tasks", "--json").stdout)["tasks"]}
    assert listed["dispatch"]["source"] == "dispatch: math, reasoning, code, clinc/clinc_oos"
