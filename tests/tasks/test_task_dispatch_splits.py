"""The questions of a task of categories, as they are asked: no words of one split are in another."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from t2cli.errors import T2Error
from t2cli.tasks.base import Task, load_task, up_to
from t2cli.tasks.phrases import phrases
from t2cli.tasks.sampling import SPLITS, words_digest

CLINC = Path(__file__).parents[3] / "shared" / "data" / "clinc150" / "data_small.json"

TASK = """\
name: mine
category: mine
description: which is which
max_new_tokens: 1
answer: {kind: exact}
source:
  kind: dispatch
  tasks: [./inner.yaml]
  other: {file: general.json}
"""
INNER = """\
name: inner
category: inner
description: what is inside
max_new_tokens: 8
answer: {kind: number}
source: %s
prompt: %s
"""
FILE = "{kind: jsonl, file: inner.jsonl}"


@pytest.fixture
def general(tmp_path: Path) -> Path:
    """Return a file of general questions."""
    path = tmp_path / "general.json"
    path.write_text(json.dumps([f"something else, number {i}?" for i in range(400)]))
    return path


def chooser(folder: Path, source: str = FILE, prompt: str = '"{{ question }}"', phrases: str = "") -> Task:
    """Return a task of categories over one inner task."""
    (folder / "inner.yaml").write_text(INNER % (source, prompt))
    (folder / "mine.yaml").write_text(TASK + phrases)
    return load_task(str(folder / "mine.yaml"))


def asked(task: Task, split: str, n: int) -> dict[int, str]:
    """Return words -> question of up to `n` questions of a split."""
    return {words_digest(each.question): each.question for each in up_to(task, split, n, 1)}


def shared(task: Task, sizes: tuple[int, int, int]) -> list[tuple[str, str]]:
    """Return the questions of two splits that have the same words."""
    found = [asked(task, split, n) for split, n in zip(SPLITS, sizes, strict=True)]
    return [(one[key], other[key]) for one, other in itertools.combinations(found, 2) for key in one.keys() & other]


def test_a_file_says_whose_a_phrase_with_its_words_is(tmp_path: Path, general: Path) -> None:
    pairs = {
        "train": [[f"tell me about number {i}", "x"] for i in range(100)],
        "test": [[f"something else, number {i}", "x"] for i in range(2, 100)],
        "val": [[f"whatever is number {i}", "x"] for i in range(2, 100)],
    }
    general.write_text(json.dumps(pairs))
    records = [{"question": f"Double {i}", "answer": 2 * i} for i in range(300)]
    (tmp_path / "inner.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    typed = """\
  phrases:
    inner: ["what is: double {number}", "double {number} for {name}"]
    other: ["something else, number {number}", "Tell me about number {number}.", "{place}, whatever that is"]
"""
    task = chooser(tmp_path, prompt='"What is: {{ question }}"', phrases=typed)
    assert shared(task, (400, 400, 400)) == []
    inner = load_task(str(tmp_path / "inner.yaml"))
    tested = {words_digest(inner.messages(each)[-1]["content"]) for each in up_to(inner, "test", 400, 0)}
    assert len(tested) > 40
    assert tested <= asked(task, "test", 400).keys()  # what a file tests is tested still


def test_the_search_for_phrases_ends_where_files_have_them_in_other_splits() -> None:
    assert list(phrases(["hello"], "test", random.Random(0), lambda _: "train")) == []


class TestWithReasoningGym:
    @pytest.fixture(autouse=True)
    def package(self) -> None:
        pytest.importorskip("reasoning_gym", reason="the extra [tasks] is not installed")

    def test_another_wording_does_not_carry_a_question_into_another_split(self, tmp_path: Path, general: Path) -> None:
        source = """
  kind: reasoning-gym
  mixture:
    - dataset: basic_arithmetic
      config: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 2, operators: ["+"],
        allow_parentheses: false, allow_negation: false}
      extract: 'Calculate (?P<expression>.+)\\.$'
"""
        typed = '  phrases:\n    inner: ["what is {number} + {number}?", "{number}+{number}"]\n'
        prompt = '["{{ question }}", "What is {{ expression }}?", "{{ expression }} = ?"]'
        task = chooser(tmp_path, source, prompt, typed)
        assert shared(task, (3000, 300, 800)) == []
        worded = [question.lower() for question in asked(task, "test", 800).values()]
        assert all(any(start in each for each in worded) for start in ("calculate", "what is", "="))

    def test_a_task_with_few_questions_gives_all_it_has(self, tmp_path: Path, general: Path) -> None:
        products = "{min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}"
        source = f"{{kind: reasoning-gym, mixture: [{{dataset: products, config: {products}}}]}}"
        task = chooser(tmp_path, source)
        inner = load_task(str(tmp_path / "inner.yaml"))
        with pytest.raises(T2Error, match=r"inner has 1[0-9] different test questions, and 64 were asked for"):
            inner.examples("test", 64, 0)
        found = [each for each in task.examples("test", 60, 0) if each.answer == "inner"]
        assert 10 <= len(found) < 20

    @pytest.mark.skipif(not CLINC.is_file(), reason="CLINC150 is not beside this checkout")
    def test_no_words_of_the_builtin_task_are_in_two_splits(self) -> None:
        assert shared(load_task("dispatch", {"other": str(CLINC)}), (6000, 1500, 3000)) == []
