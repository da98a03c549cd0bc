"""A task of categories has the questions of its tasks, in their own splits, and as many general ones."""

from __future__ import annotations

import itertools
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from t2cli.errors import CorruptArtifactError, NotFoundError, T2Error, UsageError
from t2cli.tasks.base import load_spec, load_task, origin, require_judge
from t2cli.tasks.data_files import parse_data
from t2cli.tasks.dispatch import ABOUT_OTHER, label_set_of
from t2cli.tasks.dispatch_source import varied
from t2cli.tasks.general import general_questions
from t2cli.tasks.phrases import filled, phrases
from t2cli.tasks.sampling import SPLITS, words_digest

sys.path.insert(0, str(Path(__file__).parents[1] / "dispatch"))
from typed import FRESH, TYPED

CLINC = Path(__file__).parents[3] / "shared" / "data" / "clinc150" / "data_small.json"

TASK = """\
name: mine
category: mine
description: which is which
max_new_tokens: 1
answer: {kind: exact}
source:
  kind: dispatch
  tasks: [%s]
  other: {file: general.json%s}
"""
INNER = """\
name: %s
category: %s
description: questions of %s
max_new_tokens: 8
answer: {kind: exact}
source: {kind: jsonl, file: %s.jsonl}
prompt: "Tell me: {{ question }}"
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a task of categories over tasks of files, and returns its path."""

    def make(
        names: str = "./sums.yaml, ./tales.yaml", general: object = None, skip: str = "", **categories: str
    ) -> Path:
        for name in ("sums", "tales"):
            category = categories.get(name, name)
            (tmp_path / f"{name}.yaml").write_text(INNER % (name, category, name, name))
            lines = ({"question": f"{name} number {i}", "answer": "x"} for i in range(400))
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        texts = [f"something else, number {i}?" for i in range(400)]
        (tmp_path / "general.json").write_text(json.dumps(texts))
        path = tmp_path / "mine.yaml"
        path.write_text(TASK % (names, skip))
        return path

    return make


def test_every_category_has_its_share_and_no_question_is_in_two_splits(write: Write) -> None:
    task = load_task(str(write()))
    seen: dict[str, set[int]] = {}
    for split in SPLITS:
        examples = task.examples(split, 60, 0)
        assert Counter(example.answer for example in examples) == {"sums": 20, "tales": 20, "other": 20}
        for example in examples:
            said = example.question.lower()
            assert {"sums": "tell me: sums", "tales": "tell me: tales", "other": "something"}[example.answer] in said
        seen[split] = {words_digest(example.question) for example in task.examples(split, 90, 1) + examples}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]
    inner = load_task(str(Path(str(write())).parent / "sums.yaml"))
    own = {words_digest(inner.messages(example)[-1]["content"]) for example in inner.examples("test", 60, 3)}
    assert not own & seen["train"]


def test_the_same_arguments_give_the_same_questions(write: Write) -> None:
    path = str(write())
    first, second = load_task(path).examples("train", 30, 5), load_task(path).examples("train", 30, 5)
    assert first == second
    assert first != load_task(path).examples("train", 30, 6)


def test_tasks_of_one_category_share_its_part(write: Write) -> None:
    task = load_task(str(write(sums="one", tales="one")))
    assert Counter(example.answer for example in task.examples("train", 60, 0)) == {"one": 30, "other": 30}
    label_set = label_set_of(task)
    assert label_set is not None
    assert label_set.categories == ("one", "other")


def test_the_instruction_names_every_category_with_its_label(write: Write) -> None:
    task = load_task(str(write()))
    label_set = label_set_of(task)
    assert label_set is not None
    assert (label_set.categories, label_set.labels) == (("sums", "tales", "other"), ("A", "B", "C"))
    for part in ("A: sums (questions of sums).", "B: tales (questions of tales).", f"C: other ({ABOUT_OTHER})."):
        assert part in label_set.instruction
    assert "\n" not in label_set.instruction
    assert label_set_of(load_task("code")) is None
    system, user = task.messages(task.examples("train", 1, 0)[0])
    assert (system["content"], user["role"]) == (label_set.instruction, "user")


def test_the_builtin_task_needs_no_sandbox_and_knows_what_ships() -> None:
    spec = load_spec("dispatch")
    assert [row.name for row in spec.mixture] == ["math", "reasoning", "code", "other"]
    assert require_judge(load_task("dispatch")) is False


def test_half_of_the_questions_are_written_otherwise() -> None:
    asked = [f"What is {number}?" for number in range(200)] + [f"tell me about {number}" for number in range(200)]
    changed = [varied(question) for question in asked]
    assert 120 < sum(one != other for one, other in zip(asked, changed, strict=True)) < 280
    assert all(words_digest(one) == words_digest(other) for one, other in zip(asked, changed, strict=True))
    assert {text[0] for text in changed[:200]} == {"W", "w"}
    assert {text[0] for text in changed[200:]} == {"T", "t"}
    assert {text[-1] == "?" for text in changed[:200]} == {True, False}


def test_other_questions_may_come_from_the_command_line(write: Write, tmp_path: Path) -> None:
    path = write()
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"text": f"hello {i}"}) + "\n" for i in range(300)))
    data = parse_data([f"other={tmp_path / 'mine.jsonl'}"], "mine")
    task = load_task(str(path), data)
    others = [each for each in task.examples("train", 30, 0) if each.answer == "other"]
    assert len(others) == 10
    assert all("hello" in example.question.lower() for example in others)
    files = origin(task)["data"]
    assert isinstance(files, list)
    assert [(file["row"], file["file"]) for file in files] == [
        ("sums", "sums.jsonl"),
        ("tales", "tales.jsonl"),
        ("other", "mine.jsonl"),
    ]


@pytest.mark.parametrize(
    ("task", "given"),
    [("dispatch", ["{}"]), ("dispatch", ["train={}", "test={}"]), ("gsm8k", ["other={}"]), ("math", ["other={}"])],
)
def test_data_that_a_task_does_not_take_is_refused(task: str, given: list[str], tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('["a b c"]')
    with pytest.raises(UsageError, match="does not read its questions from such --data"):
        load_task(task, parse_data([each.format(tmp_path / "x.json") for each in given], task))
    with pytest.raises(UsageError, match="stands alone"):
        parse_data([f"other={tmp_path / 'x.json'}", f"train={tmp_path / 'x.json'}"], task)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": "./sums.yaml, ./sums.yaml"}, "two tasks have one name"),
        ({"names": "./sums.yaml, nowhere"}, "nowhere"),
        ({"names": "./sums.yaml, dispatch"}, "no questions of a category of its own"),
        ({"sums": "other"}, "no questions of a category of its own"),
        ({"skip": ", train: x"}, "unknown key"),
    ],
)
def test_a_wrong_file_is_named_by_its_key(change: dict[str, str], message: str, write: Write) -> None:
    with pytest.raises(CorruptArtifactError, match=message):
        load_task(str(write(**change)))


def test_a_missing_file_of_general_questions_is_named(write: Write, tmp_path: Path) -> None:
    path = write()
    (tmp_path / "general.json").unlink()
    with pytest.raises(NotFoundError, match=r"general\.json"):
        load_task(str(path))


def test_the_splits_of_clinc_are_kept(tmp_path: Path) -> None:
    pairs = {
        "train": [["a b c", "x"], ["tell me the time", "time"], ["what is 2 + 2", "calculator"]],
        "val": [["hello there", "x"], ["c b a", "x"]],
        "oos_test": [["Hello, there!", "oos"], ["what now", "oos"]],
    }
    (tmp_path / "clinc.json").write_text(json.dumps(pairs))
    found = general_questions(tmp_path / "clinc.json", "other", "calculator")
    assert {(item.question, item.split) for item in found} == {
        ("c b a", "validation"),  # in two splits, in another order: the later one counts
        ("tell me the time", "train"),
        ("Hello, there!", "test"),
        ("what now", "test"),
    }
    assert {item.answer for item in found} == {"other"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds no questions"),
        ('["a", 3]', "text 2 is no text"),
        ('["a", ""]', "must be text"),
        ('{"train": [["a"]]}', r"train, pair 1 is no \[text, intent\]"),
        ('{"train": {"a": "b"}}', r"train, pair 1 is no \[text, intent\]"),
        ('{"question": 3}', "line 1 has no text"),
        ('{"answer": "x"}\n{"question": "x"}', "line 1 has no text"),
        ('{"question": "x"}\nnonsense', "line 2"),
        ('["\\ud800"]', "must be text"),
        (json.dumps(["x" * 200_000]), "must be text"),
    ],
)
def test_a_damaged_file_of_general_questions_is_named_by_its_place(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(T2Error, match=message):
        general_questions(tmp_path / "x.json", "other")


@pytest.mark.skipif(not CLINC.is_file(), reason="CLINC150 is not beside this checkout")
def test_clinc_is_read_whole_and_its_arithmetic_left_out() -> None:
    found = general_questions(CLINC, "other", "calculator")
    counts = Counter(item.split for item in found)
    assert counts["test"] > 5400
    assert counts["validation"] > 2900
    assert counts["train"] > 7000
    assert not any("what is 2+2" in item.question for item in found)


PHRASES = """\
  phrases:
    sums: ["add {number} to {number}", "{number1} + {number1} for {name}"]
    other: ["who is {name}?"]
"""


def test_a_share_of_phrases_is_mixed_in(write: Write) -> None:
    path = write()
    path.write_text(path.read_text() + PHRASES)
    task = load_task(str(path))
    for split in SPLITS:
        typed = Counter(
            example.answer
            for example in task.examples(split, 90, 0)
            if re.match("add |[0-9]+ [+] |who is", example.question, re.IGNORECASE)
        )
        assert typed["tales"] == 0
        assert 4 < typed["sums"] < 22
        assert typed["other"] < 22
    same = [re.match(r"(\d+) \+ (\d+) for", example.question) for example in task.examples("train", 150, 0)]
    assert any(same)
    assert all(match[1] == match[2] for match in same if match)


def test_slots_of_one_name_and_another_digit_differ() -> None:
    for seed in range(200):
        first, second, third = filled("{name1} {name2} {name1}", random.Random(seed)).split()
        assert first == third != second


def test_phrases_that_are_always_alike_end() -> None:
    (split,) = (split for split in SPLITS if list(itertools.islice(phrases(["hello"], split, random.Random(0)), 3)))
    assert all(not list(phrases(["hello"], other, random.Random(0))) for other in SPLITS if other != split)


def test_a_slot_without_words_is_named(write: Write) -> None:
    path = write()
    path.write_text(path.read_text() + PHRASES.replace("{name}?", "{nobody}?"))
    with pytest.raises(CorruptArtifactError, match=r"phrases: other: there are no words for \{nobody\}"):
        load_task(str(path))
    path.write_text(path.read_text().replace("    sums:", "    nothing:"))
    with pytest.raises(CorruptArtifactError):
        load_task(str(path))


@pytest.mark.skipif(not CLINC.is_file(), reason="CLINC150 is not beside this checkout")
def test_what_people_type_in_tests_is_never_trained_on() -> None:
    pytest.importorskip("reasoning_gym")
    task = load_task("dispatch", {"other": str(CLINC)})
    typed = {words_digest(text) for texts in (*TYPED.values(), *FRESH.values()) for text in texts}
    for split in ("train", "validation"):
        assert not typed & {words_digest(example.question) for example in task.examples(split, 8000, 1)}
