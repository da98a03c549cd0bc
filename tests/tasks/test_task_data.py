"""`--data`: which files of a folder are a task's, and what does not go together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2cli.errors import NotFoundError, T2Error, UsageError
from t2cli.tasks.base import SpecTask, load_task, up_to
from t2cli.tasks.data_files import parse_data
from t2cli.tasks.glimpse import split_sizes
from t2cli.tasks.sampling import SPLITS


def files(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).write_text('{"question": "What is 1 + 1?", "answer": 2}\n')
    return [str(folder)]


@pytest.mark.parametrize(
    ("names", "task", "chosen"),
    [
        (["train.jsonl", "test.jsonl"], "gsm8k", {"train": "train.jsonl", "test": "test.jsonl"}),
        (["README.md", "all.json"], "own", {"file": "all.json"}),
        (["train.jsonl"], "own", {"file": "train.jsonl"}),
        (["train.jsonl", "test.jsonl"], "test-mine", {"train": "train.jsonl", "test": "test.jsonl"}),
        (
            ["ARC-Easy-Train.jsonl", "ARC-Easy-Dev.jsonl", "ARC-Challenge-Dev.jsonl"],
            "arc-easy",
            {"train": "ARC-Easy-Train.jsonl", "test": "ARC-Easy-Dev.jsonl"},
        ),
        (["ARC-Easy-Train.jsonl", "ARC-Challenge-Dev.jsonl"], "arc-challenge", {"test": "ARC-Challenge-Dev.jsonl"}),
        (["ARC-Easy-Train.jsonl", "ARC-Challenge-Dev.jsonl"], "arc-easy", {"file": "ARC-Easy-Train.jsonl"}),
        (
            ["ARC-Easy-Train.jsonl", "ARC-Easy-Dev.jsonl", "ARC-Challenge-Dev.jsonl"],
            "arc-easy-text",
            {"train": "ARC-Easy-Train.jsonl", "test": "ARC-Easy-Dev.jsonl"},
        ),
        (
            ["my_easy_train.jsonl", "text_test.jsonl"],
            "arc-easy-text",
            {"train": "my_easy_train.jsonl", "test": "text_test.jsonl"},
        ),
        (["gsm8k_train.jsonl", "test.jsonl"], "gsm8k", {"train": "gsm8k_train.jsonl", "test": "test.jsonl"}),
        (["train.jsonl", "testing.jsonl"], "own", {"train": "train.jsonl", "test": "testing.jsonl"}),
        (["test.jsonl"], "own", {"test": "test.jsonl"}),
        (["validation.jsonl"], "own", {"test": "validation.jsonl"}),
        (["dev.jsonl", "test.jsonl"], "own", {"validation": "dev.jsonl", "test": "test.jsonl"}),
        (
            ["train.jsonl", "dev.jsonl", "test.jsonl"],
            "own",
            {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"},
        ),
    ],
)
def test_the_files_of_a_folder_are_found(names: list[str], task: str, chosen: dict[str, str], tmp_path: Path) -> None:
    found = parse_data(files(tmp_path, *names), task)
    assert found == {split: str(tmp_path.resolve() / name) for split, name in chosen.items()}


@pytest.mark.parametrize(
    ("values", "kind", "said"),
    [
        (["gone.jsonl"], NotFoundError, "there is no gone.jsonl"),
        (["test=gone.jsonl"], NotFoundError, "there is no gone.jsonl"),
        (["train=a.jsonl"], UsageError, "needs train=FILE and test=FILE"),
        (["validation=a.jsonl"], UsageError, "needs train=FILE and test=FILE"),
        (["mixed"], UsageError, "not clear which files of .* the task own is to read: it holds a.jsonl, test.jsonl"),
        (["a.jsonl", "b.jsonl"], UsageError, "file is given twice"),
        (["train=a.jsonl", "train=b.jsonl"], UsageError, "train is given twice"),
        (["a.jsonl", "test=b.jsonl"], UsageError, "stands alone"),
        (["train=.", "test=b.jsonl"], UsageError, "that is no file"),
        (["."], UsageError, "not clear which files of .* the task own is to read: it holds a.jsonl, b.jsonl"),
        (["lone"], UsageError, "it holds eval.jsonl, train.jsonl"),
        (["both"], UsageError, "it holds own.jsonl, test.jsonl, train.jsonl"),
        (["same"], UsageError, "it holds other.jsonl, train_test_split.jsonl"),
        (["empty"], UsageError, "it holds none that ends in"),
        (["twice"], UsageError, "2 files of .* could be train: train-1.jsonl, train-2.jsonl"),
    ],
)
def test_data_that_do_not_go_together_are_refused(
    values: list[str], kind: type[T2Error], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files(tmp_path, "a.jsonl", "b.jsonl")
    for name in ("empty", "twice", "mixed", "lone", "both", "same"):
        (tmp_path / name).mkdir()
    files(tmp_path / "lone", "train.jsonl", "eval.jsonl")
    files(tmp_path / "both", "own.jsonl", "train.jsonl", "test.jsonl")
    files(tmp_path / "same", "train_test_split.jsonl", "other.jsonl")
    files(tmp_path / "mixed", "a.jsonl", "test.jsonl")
    files(tmp_path / "twice", "train-1.jsonl", "train-2.jsonl")
    with pytest.raises(kind, match=said) as error:
        parse_data(values, "own")
    assert error.value.hint


OWN = """\
name: own
category: own
description: mine
max_new_tokens: 8
answer: {kind: number}
source: {kind: jsonl, file: %s}
"""


def sums(path: Path) -> Path:
    records = ({"question": f"What is {a} + 1?", "answer": a + 1} for a in range(100))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("name", ["test.jsonl", "dev.jsonl"])
def test_a_folder_of_held_out_questions_is_evaluated_on_whole_and_never_trained_on(name: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN % "gone.jsonl")
    sums(tmp_path / name)
    task = load_task(str(tmp_path / "own.yaml"), parse_data([str(tmp_path)], "own"))
    assert isinstance(task, SpecTask)
    assert len(task.examples("test", 100, 0)) == 100
    for split in ("train", "validation"):
        with pytest.raises(
            UsageError, match=f"own has no {split} questions: all there is, {name}, is held out"
        ) as error:
            up_to(task, split, 10, 0)
        assert "--data train=FILE" in error.value.hint
    assert split_sizes(task) == {"train": 0, "validation": 0, "test": 100}
    alone = load_task(str(tmp_path / "own.yaml"), parse_data([str(tmp_path / name)], "own"))
    assert len(up_to(alone, "train", 100, 0)) > 50  # given as a file, it is one of all questions


def test_a_task_that_divides_a_file_of_test_questions_divides_that_of_a_folder(tmp_path: Path) -> None:
    """As math-500, of which there is a test file only: else what was trained on would be evaluated on."""
    folder = tmp_path / "folder"
    folder.mkdir()
    sums(folder / "test.jsonl")
    (tmp_path / "own.yaml").write_text(OWN % sums(tmp_path / "own-test.jsonl").name)
    own = load_task(str(tmp_path / "own.yaml"))
    given = load_task(str(tmp_path / "own.yaml"), parse_data([str(folder)], "own"))
    for split in SPLITS:
        assert up_to(given, split, 100, 0) == up_to(own, split, 100, 0)
