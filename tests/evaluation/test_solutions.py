"""What a right answer looks like when a model writes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2cli.errors import CorruptArtifactError
from t2cli.evaluation.solutions import written
from t2cli.tasks.base import Example, Task, load_task

TASK = """\
name: mixed
category: mixed
description: numbers and programs
max_new_tokens: 8
answer: {kind: number}
source:
  kind: jsonl
  mixture:
    - {file: numbers.jsonl}
    - {file: programs.jsonl, answer: {kind: tests}}
"""
TESTS = "assert f(1) == 2"


@pytest.fixture
def task(tmp_path: Path) -> Task:
    (tmp_path / "mixed.yaml").write_text(TASK)
    return load_task(str(tmp_path / "mixed.yaml"))


def program(answer: str) -> Example:
    return Example("programs-0", "f?", answer)


def test_a_program_stands_in_a_fence(task: Task) -> None:
    suite = json.dumps({"tests": TESTS, "reference": "def f(x):\n    return 2\n"})
    assert written(task, program(suite)) == "```python\ndef f(x):\n    return 2\n```"


@pytest.mark.parametrize(
    "answer", [TESTS, json.dumps({"tests": TESTS}), json.dumps({"tests": TESTS, "reference": " "})]
)
def test_of_unit_tests_alone_no_right_answer_is_known(answer: str, task: Task) -> None:
    assert written(task, program(answer)) is None


def test_a_question_without_tests_has_its_answer_beside_those_with_them(task: Task) -> None:
    assert written(task, Example("numbers-0", "1 + 1?", "2")) == "2"


def test_unit_tests_that_cannot_be_read_are_an_error(task: Task) -> None:
    with pytest.raises(CorruptArtifactError):
        written(task, program("{"))
