"""The built-in tasks of the paper, on records as the Hub has them and, where they are there, on the real files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from t2cli.errors import T2Error
from t2cli.tasks.base import SpecTask, load_task, up_to
from t2cli.tasks.data_files import parse_data
from t2cli.tasks.sampling import SPLITS

DATA = Path(__file__).parents[3] / "shared" / "data"
BESIDE = {
    "id": "x",
    "question": "Which is hot?",
    "choices": {"text": ["ice", "fire", "snow"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}
INSIDE = {
    "id": "x",
    "question": {"stem": "Which is hot?", "choices": [{"text": t, "label": k} for t, k in zip(
        ["ice", "fire", "snow"], "ABC", strict=True)]},
    "answerKey": "B",
}  # fmt: skip


def read(name: str, data: str | Path) -> SpecTask:
    task = load_task(name, parse_data([str(data)], name))
    assert isinstance(task, SpecTask)
    return task


@pytest.mark.parametrize("record", [BESIDE, INSIDE], ids=["the Hub's", "AI2's"])
@pytest.mark.parametrize("name", ["arc-easy", "arc-challenge"])
def test_arc_has_letters_whatever_the_labels_and_the_shape(name: str, record: object, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(record))
    task = read(name, tmp_path / "q.jsonl")
    found = task.source.first()  # type: ignore[attr-defined]
    assert found is not None
    _, item = found
    assert item.question.splitlines() == ["Which is hot?", "A. ice", "B. fire", "C. snow"]
    assert item.answer == "B"


@pytest.mark.parametrize("record", [BESIDE, INSIDE], ids=["the Hub's", "AI2's"])
def test_a_right_choice_is_written_out(record: object, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(record))
    task = read("arc-easy-text", tmp_path / "q.jsonl")
    example = task.examples("train", 1, 0)[0]
    assert example.question.splitlines() == ["Which is hot?", "- ice", "- fire", "- snow"]
    said = {"Fire.": 1.0, "It is fire": 1.0, "B": -1.0, "ice": -1.0, "ice, fire or snow": -1.0, "fires": -1.0}
    assert {text: task.reward(example, text) for text in said} == said


@pytest.mark.parametrize("record", [BESIDE, INSIDE], ids=["the Hub's", "AI2's"])
@pytest.mark.parametrize("name", ["arc-easy", "arc-easy-text"])
def test_a_key_that_is_no_label_is_told(name: str, record: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({**record, "answerKey": "7"}))
    with pytest.raises(T2Error, match=r"q\.jsonl, line 1"):
        read(name, tmp_path / "q.jsonl").examples("train", 1, 0)


def test_math_500_is_judged_by_meaning(tmp_path: Path) -> None:
    pytest.importorskip("math_verify", reason="the extra [tasks] is not installed")
    records = [{"problem": f"What is {i}/2?", "answer": rf"\frac{{{i}}}{{2}}", "level": 1} for i in range(1, 99, 2)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, records)))
    task = read("math-500", tmp_path / "q.jsonl")
    example = task.examples("test", 1, 0)[0]
    system, user = task.messages(example)
    assert (system["role"], "boxed" in system["content"]) == ("system", True)
    assert user["content"] == example.question
    value = int(example.question.removeprefix("What is ").partition("/")[0])
    assert task.reward(example, rf"So it is \boxed{{{value / 2}}}.") == 1.0
    assert task.reward(example, rf"So it is \boxed{{{value}}}.") == -1.0


REAL = {
    "gsm8k": ("gsm8k", 7473, 1319),
    "arc-easy": ("arc", 2251, 570),
    "arc-easy-text": ("arc", 2251, 570),
    "arc-challenge": ("arc", 0, 299),  # the file "Dev" alone, which is held out
}


@pytest.mark.parametrize("name", REAL)
def test_the_real_files_are_read_whole_and_their_splits_kept_apart(name: str) -> None:
    folder, trained, tested = REAL[name]
    if not (DATA / folder).is_dir():
        pytest.skip(f"{DATA / folder} is not there")
    task = read(name, DATA / folder)
    found = {split: up_to(task, split, 10**6, 0) for split in (SPLITS if trained else SPLITS[-1:])}
    sizes = {split: len(examples) for split, examples in found.items()}
    assert sum(sizes.values()) == trained + tested
    assert sizes["test"] == tested
    for example in found["test"]:
        assert task.reward(example, f"The answer is {example.answer}.") == 1.0
        assert task.reward(example, "") == -1.0
    questions = [{example.question for example in examples} for examples in found.values()]
    assert not any(one & other for one, other in itertools.combinations(questions, 2))
