"""`--data`: which files of a folder are a task's, and what does not go together."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2cli.errors import NotFoundError, T2Error, UsageError
from t2cli.tasks.data_files import parse_data


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
        (
            ["ARC-Easy-Train.jsonl", "ARC-Easy-Dev.jsonl", "ARC-Challenge-Dev.jsonl"],
            "arc-easy",
            {"train": "ARC-Easy-Train.jsonl", "test": "ARC-Easy-Dev.jsonl"},
        ),
        (["ARC-Easy-Train.jsonl", "ARC-Challenge-Dev.jsonl"], "arc-challenge", {"file": "ARC-Challenge-Dev.jsonl"}),
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
        (["a.jsonl", "b.jsonl"], UsageError, "file is given twice"),
        (["train=a.jsonl", "train=b.jsonl"], UsageError, "train is given twice"),
        (["a.jsonl", "test=b.jsonl"], UsageError, "stands alone"),
        (["train=.", "test=b.jsonl"], UsageError, "that is no file"),
        (["."], UsageError, "no file of .* fits the task own: it holds a.jsonl, b.jsonl"),
        (["empty"], UsageError, "it holds none that ends in"),
        (["twice"], UsageError, "2 files of .* could be train: train-1.jsonl, train-2.jsonl"),
    ],
)
def test_data_that_do_not_go_together_are_refused(
    values: list[str], kind: type[T2Error], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files(tmp_path, "a.jsonl", "b.jsonl")
    for name in ("empty", "twice"):
        (tmp_path / name).mkdir()
    files(tmp_path / "twice", "train-1.jsonl", "train-2.jsonl")
    with pytest.raises(kind, match=said) as error:
        parse_data(values, "own")
    assert error.value.hint
