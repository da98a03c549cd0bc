"""t2 train on questions from files: --data is kept for --resume, and the manifest names files, not folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import Hub, Repo

from t2cli.config import preset
from t2cli.files import sha256_of
from t2cli.models.base import load_base
from t2cli.paths import t2_home
from t2cli.registry.local import LocalRegistry
from t2cli.training.checkpoint import RunSpec, new_run

TASK = """
name: ones
category: arithmetic
description: questions whose answer is 1
max_new_tokens: 2
answer: {kind: number}
source: {kind: jsonl, file: gone.jsonl, record: {question: ask}}
"""
FAST = ("--steps", "10", "--learning-rate", "0.03", "--quiet")


@pytest.fixture
def options(tmp_path: Path, counting_folder: Path) -> list[str]:
    (tmp_path / "ones.yaml").write_text(TASK)
    return ["--task", str(tmp_path / "ones.yaml"), "--base", str(counting_folder)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with a file to train on and one to test with."""
    folder = tmp_path / "questions"
    folder.mkdir()
    for name, start, end in (("train", 2, 120), ("test", 100, 150)):
        records = [{"ask": f"What is {i} - {i - 1}?", "answer": 1} for i in range(start, end)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def published() -> list:
    return LocalRegistry([t2_home() / "registry"]).list()


def test_it_trains_on_a_folder_and_tests_on_all_of_a_small_test_file(
    run: Callable, options: list[str], data: Path, tmp_path: Path
) -> None:
    result = run("train", *options, "--data", data, *FAST)
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    (entry,) = published()
    assert entry.manifest.evaluation[0].n == 50
    assert entry.manifest.training.config["data"] == [
        {"split": name, "file": f"{name}.jsonl", "sha256": sha256_of(data / f"{name}.jsonl")}
        for name in ("train", "test")
    ]
    assert str(tmp_path) not in (entry.path / "expert.yaml").read_text().replace(entry.manifest.base.source, "")
    shown = run("show", "ones")
    assert shown.exit_code == 0, shown.stderr
    assert f"train: train.jsonl, sha256:{sha256_of(data / 'train.jsonl')[:12]}\n" in shown.stdout


def test_eval_asks_all_of_a_small_file(run: Callable, refused: Callable, options: list[str], data: Path) -> None:
    result = run("eval", *options, "--data", data, "--json", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["n"] == 50
    refused(run("eval", *options, "--task", "math", "--data", data), 2, "--data goes with one task")


def test_it_is_reproduced_from_the_same_files_and_no_others(
    run: Callable, refused: Callable, options: list[str], data: Path, tmp_path: Path
) -> None:
    assert run("train", *options, "--data", data, *FAST).exit_code == 0
    same = tmp_path / "same.yaml"
    same.write_text(TASK.replace("file: gone.jsonl", "train: questions/train.jsonl, test: questions/test.jsonl"))
    for asked, identical in ((["--task", same], False), (["--task", options[1], "--data", data], True)):
        result = run("reproduce", "ones", *asked, "--json", *options[2:])
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["z"]["identical"] == identical  # the file's name has a say in the order
    with (data / "train.jsonl").open("a") as file:
        file.write('{"ask": "What is 2 / 2?", "answer": 1}\n')
    for asked in (["--task", same], ["--task", options[1], "--data", data]):
        again = run("reproduce", "ones", *asked, *options[2:])
        refused(again, 2, "trained on other files than the task has now: train.jsonl, test.jsonl", "--data", "--task")


def test_resume_finds_the_data_of_the_run(
    run: Callable, options: list[str], data: Path, counting_folder: Path, tmp_path: Path
) -> None:
    identity = load_base(str(counting_folder), device="cpu", quiet=True).identity
    files = {name: str(data / f"{name}.jsonl") for name in ("train", "test")}
    config = preset("t2", steps=10, learning_rate=0.03)
    new_run(identity.folder_name, RunSpec(options[1], "ones", "counting", identity.weights, config, files))
    (tmp_path / "other.jsonl").write_text((data / "test.jsonl").read_text())
    result = run("train", *options, "--data", tmp_path / "other.jsonl", "--resume", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert "warning: --data ignored: a run goes on with the settings it began with" in result.stderr
    (entry,) = published()
    assert [file["file"] for file in entry.manifest.training.config["data"]] == ["train.jsonl", "test.jsonl"]


def test_a_run_goes_on_with_the_commit_it_began_with(
    run: Callable, options: list[str], data: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    hub.repos["org/ones"] = repo = Repo()
    first = repo.add({path.name: path.read_bytes() for path in data.iterdir()}, "data")
    source = "{kind: hub, dataset: org/ones, train: train, test: test, record"
    (tmp_path / "ones.yaml").write_text(TASK.replace("{kind: jsonl, file: gone.jsonl, record", source))
    refused = run("train", *options, "--steps", "1", "--learning-rate", "0", "--quiet")
    assert "no checkpoint was better than the base" in refused.stderr
    (begun,) = (tmp_path / "home" / "runs").glob("*/*/*")
    for name in ("expert.txt", "state.safetensors"):
        (begun / name).unlink()  # as if it was killed at once
    record = json.loads((begun / "run.json").read_text())
    assert record["revisions"] == {"org/ones": first}
    record["config"] |= {"steps": 10, "learning_rate": 0.03}
    (begun / "run.json").write_text(json.dumps(record))
    repo.add({"test.jsonl": b"{"}, "broken")
    result = run("train", *options, "--resume", "--quiet")
    assert result.exit_code == 0, result.stderr
    (entry,) = published()
    assert {file["revision"] for file in entry.manifest.training.config["data"]} == {first}
    assert f"org/ones {first} train.jsonl" in run("show", "ones").stdout


REWARD = "def odd(answer, completion):\n    return any(digit in completion for digit in '13579')\n"


def test_a_reward_of_ones_own_judges_and_is_found_again(
    run: Callable,
    options: list[str],
    data: Path,
    counting_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "judges.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    result = run("train", *options, "--data", data, "--reward", "judges:odd", *FAST)
    assert result.exit_code == 0, result.stderr
    (entry,) = published()
    assert entry.manifest.evaluation[0].expert_accuracy > 0.5
    assert entry.manifest.training.config["reward"] == "judges:odd"
    again = run("reproduce", "ones", "--task", options[1], *options[2:])
    assert (again.exit_code, again.stdout) == (2, ""), again.output
    assert "trained with a reward of somebody's own, judges:odd" in again.stderr
    (begun,) = (tmp_path / "home" / "runs").glob("*/*/*")
    (begun / "expert.txt").unlink()
    (begun / "state.safetensors").unlink()  # as if it was killed at once
    monkeypatch.chdir("/")
    (tmp_path / "judges.py").write_text(REWARD.replace("13579", "x"))  # read again: nothing is right any more
    result = run("train", *options, "--resume", "--quiet")
    assert "no checkpoint was better than the base" in result.stderr
    assert "warning: the code of the reward judges:odd has changed since the run began" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 3, ["task ones: there is no file", "gone.jsonl", "--data"]),
        (["--data", "nowhere"], 3, ["--data: there is no nowhere"]),
        (["--data", "."], 2, ["not clear which files of", "the task ones is to read"]),
        (["--data", "broken.jsonl"], 5, ["broken.jsonl, line 2 is no valid JSON"]),
        (["--data", "few.jsonl"], 1, ["ones has", "each step of this training asks 12"]),
        (["--data", "other.jsonl"], 5, ["other.jsonl, line 1: there is no field 'ask'"]),
        (["--reward", "nowhere:odd"], 3, ["no module nowhere"]),
        (["--reward", "odd"], 2, ["MODULE:FUNCTION"]),
        (["--task", "math", "--data", "few.jsonl"], 2, ["math makes its questions itself"]),
    ],
)
def test_wrong_data_are_refused_before_anything_is_written(
    arguments: list[str],
    code: int,
    said: list[str],
    run: Callable,
    refused: Callable,
    options: list[str],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    first = (data / "train.jsonl").read_text().splitlines()[0] + "\n"
    (tmp_path / "broken.jsonl").write_text(first + "{\n")
    (tmp_path / "few.jsonl").write_text(first)
    (tmp_path / "other.jsonl").write_text('{"question": "q", "answer": 1}\n')
    refused(run("train", *options, *arguments), code, *said)
    assert not (tmp_path / "home" / "runs").exists()


def test_a_run_whose_questions_have_changed_does_not_go_on(
    run: Callable, refused: Callable, options: list[str], data: Path, tmp_path: Path
) -> None:
    begin = ("train", *options, "--data", data, "--steps", "1", "--learning-rate", "0", "--quiet")
    assert "no checkpoint was better than the base" in run(*begin).stderr
    (begun,) = (tmp_path / "home" / "runs").glob("*/*/*")
    for name in ("expert.txt", "state.safetensors"):
        (begun / name).unlink()  # as if it was killed at once
    record = json.loads((begun / "run.json").read_text())
    record["config"] |= {"steps": 10, "learning_rate": 0.03}
    (begun / "run.json").write_text(json.dumps(record))
    again = ("train", *options, "--resume", "--quiet")
    said = ("the questions of the task ones are not those", str(begun), "as they were")

    train, test = (data / f"{name}.jsonl" for name in ("train", "test"))
    whole = train.read_text(), test.read_text()
    train.write_text(whole[1])
    test.write_text(whole[0])
    refused(run(*again), 2, *said)
    train.write_text(whole[0])
    test.write_text(whole[1])
    (tmp_path / "ones.yaml").write_text(TASK.replace("max_new_tokens: 2", "max_new_tokens: 3"))
    refused(run(*again), 2, *said)
    (tmp_path / "ones.yaml").write_text(TASK + "# a remark changes nothing\n")

    moved = data.rename(tmp_path / "moved")
    refused(run(*again), 3, "there is no file", "--data")
    result = run(*again, "--data", moved)
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    assert [entry.manifest.training.steps for entry in published()] == [10]


def test_questions_that_an_expert_was_trained_on_are_not_held_out(
    run: Callable, options: list[str], data: Path, tmp_path: Path
) -> None:
    assert run("train", *options, "--data", data, *FAST).exit_code == 0
    for files, seen in (
        ([data], False),
        ([f"test={data / 'test.jsonl'}"], False),
        ([data / "test.jsonl"], False),  # a part of what was held out
        ([data / "train.jsonl"], True),
        ([f"test={data / 'train.jsonl'}"], True),
    ):
        named = [word for file in files for word in ("--data", file)]
        result = run("eval", "ones", *options, *named, "--n", "4", "--json", "--quiet")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["held_out"] is not seen
        warning = "warning: NOT HELD OUT: ones@1 was trained on questions of train.jsonl\n"
        assert result.stderr == (warning if seen else "")
    assert run("mix", "ones:0.5", "--name", "half", "--base", options[3], "--quiet").exit_code == 0
    for asked in (["half"], ["--adapt", "prompt"]):
        result = run("eval", *asked, *options, "--data", data / "train.jsonl", "--n", "4")
        who = "half@1, made from ones@1, which" if asked == ["half"] else "ones@1"
        assert f"warning: NOT HELD OUT: {who} was trained on questions of train.jsonl" in result.stderr
        assert "split test, NOT HELD OUT, seed 0" in result.stdout


def test_other_files_of_the_same_task_may_hold_the_same_questions(
    run: Callable, options: list[str], data: Path, tmp_path: Path
) -> None:
    assert run("train", *options, "--data", data, *FAST).exit_code == 0
    other = tmp_path / "other.json"
    other.write_text(json.dumps([json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]))
    result = run("eval", "ones", *options, "--data", other, "--n", "4", "--json", "--quiet")
    assert result.stderr == (
        "warning: ones@1 was trained on other files for ones: whether they hold questions of other.json is not known\n"
    )


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"ask": "How much is it?", "answer": 1}, "the prompt template"),
        ({"ask": "What is 2 - 1? " * 300, "answer": 1, "unit": "m"}, "tokens, and counting reads at most 512"),
    ],
)
def test_every_question_of_a_file_is_looked_at_before_training(
    run: Callable, options: list[str], data: Path, tmp_path: Path, record: dict, said: str
) -> None:
    for name, more in (("train", [record]), ("test", [])):
        records = [{**json.loads(line), "unit": "m"} for line in (data / f"{name}.jsonl").read_text().splitlines()]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in [*records, *more]))
    (tmp_path / "ones.yaml").write_text(TASK + 'prompt: "{{ ask }} In {{ unit }}."\n')
    result = run("train", *options, "--data", data, *FAST)
    assert said in result.stderr
    assert result.exit_code in (1, 2)
    assert not (tmp_path / "home" / "runs").exists()


def test_few_questions_are_refused_or_warned_of(
    run: Callable, refused: Callable, options: list[str], data: Path
) -> None:
    lines = (data / "train.jsonl").read_text().splitlines(keepends=True)
    few = data.parent / "few.jsonl"
    few.write_text("".join(lines[:40]))
    asked = ("train", *options, "--data", few, *FAST)
    refused(run(*asked, "--preset", "paper"), 1, "each step of this training asks 48", "leave out --preset")
    assert "questions choose the checkpoint: chance decides much" in run(*asked).stderr
