"""Tasks from files: every damage is told with its line, real splits are kept apart, templates reach every field."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2cli.errors import CorruptArtifactError, NotFoundError, T2Error, UsageError
from t2cli.files import sha256_of
from t2cli.tasks import jsonl
from t2cli.tasks.base import SpecTask, load_task, origin, up_to
from t2cli.tasks.data_files import parse_data
from t2cli.tasks.jsonl import read_records
from t2cli.tasks.records import answer_problem
from t2cli.tasks.sampling import SPLITS, split_of
from t2cli.tasks.verify import REWARDS

HEAD = "name: own\ncategory: own\ndescription: mine\nmax_new_tokens: 8\nanswer: {kind: number}\n"
SUMS = [{"question": f"What is {a} + {b}?", "answer": a + b} for a in range(20) for b in range(20)]


def lines(records: list[dict[str, object]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., SpecTask]:
    """Return a function that writes files and a task over them, and loads the task."""

    def make(source: str = "{kind: jsonl, file: q.jsonl}", head: str = HEAD, **files: str) -> SpecTask:
        for name, text in files.items():
            (tmp_path / f"{name}.jsonl").write_text(text)
        (tmp_path / "own.yaml").write_text(f"{head}source: {source}\n")
        task = load_task(str(tmp_path / "own.yaml"))
        assert isinstance(task, SpecTask)
        return task

    return make


def questions(task: SpecTask, split: str) -> set[str]:
    return {example.question for example in task.examples(split, 10_000, 0, fewer=True)}


def test_a_file_without_splits_is_divided_by_the_hash_of_its_words(own: Callable[..., SpecTask]) -> None:
    task = own(q=lines(SUMS))
    found = {split: questions(task, split) for split in SPLITS}
    assert set.union(*found.values()) == {str(record["question"]) for record in SUMS}
    for split, texts in found.items():
        assert {split_of(text) for text in texts} == {split}
    assert task.examples("train", 5, 3) == task.examples("train", 5, 3)
    assert task.examples("train", 5, 3) != task.examples("train", 5, 4)
    example = task.examples("test", 1, 0)[0]
    assert task.reward(example, f"It is {example.answer}.") == 1.0
    assert task.reward(example, f"It is {int(example.answer) + 1}.") == -1.0


SPLIT = "{kind: jsonl, train: train.jsonl, test: test.jsonl}"


def test_real_splits_are_kept_and_what_is_in_both_is_tested_only(own: Callable[..., SpecTask]) -> None:
    held_out = [{"question": "5 + 3 is What?", "answer": 8}, {"question": "What is 90 + 1?", "answer": 91}]
    task = own(SPLIT, train=lines(SUMS), test=lines(held_out))
    assert questions(task, "test") == {"5 + 3 is What?", "What is 90 + 1?"}
    train, validation = questions(task, "train"), questions(task, "validation")
    known = {str(record["question"]) for record in SUMS} - {"What is 3 + 5?", "What is 5 + 3?"}
    assert train | validation == known
    assert not train & validation
    assert validation == {text for text in known if split_of(text) == "validation"}


def test_a_validation_file_takes_its_questions_out_of_training(own: Callable[..., SpecTask]) -> None:
    source = "{kind: jsonl, train: train.jsonl, test: test.jsonl, validation: v.jsonl}"
    task = own(source, train=lines(SUMS), test=lines(SUMS[-1:]), v=lines(SUMS[:3]))
    assert questions(task, "validation") == {str(record["question"]) for record in SUMS[:3]}
    assert not questions(task, "train") & questions(task, "validation")
    assert any(split_of(question) == "validation" for question in questions(task, "train"))


def test_what_one_row_tests_another_does_not_train_on(own: Callable[..., SpecTask]) -> None:
    source = """
  kind: jsonl
  mixture:
    - {name: a, train: a.jsonl, test: b.jsonl}
    - {name: b, train: b.jsonl, test: a.jsonl}"""
    task = own(source, a=lines(SUMS[:9]), b=lines(SUMS[9:]))
    assert questions(task, "test") == {str(record["question"]) for record in SUMS}
    with pytest.raises(T2Error, match="own has 0 different train questions"):
        task.examples("train", 1, 0, fewer=True)


def test_templates_make_question_answer_split_and_prompt(own: Callable[..., SpecTask]) -> None:
    records = [
        {"id": i, "ask": {"stem": f"How many legs have {i} cats?"}, "notes": f"4 * {i}\n#### {4 * i:,}", "unit": "legs"}
        for i in range(1000, 1100)
    ]
    source = r"""
  kind: jsonl
  file: q.jsonl
  record:
    question: "{{ ask.stem }}"
    answer: "{{ notes.split('####') | last }}"
    split: "{{ 'test' if id < 1010 else 'validation' if id < 1020 else '' if id == 1050 else 'train' }}"
"""
    task = own(source, head=HEAD + 'prompt: "{{ question }} Count in {{ unit }}."\n', q=lines(records))
    assert {split: len(questions(task, split)) for split in SPLITS} == {"test": 10, "validation": 10, "train": 79}
    example = next(each for each in task.examples("test", 10, 0) if "1009" in each.question)
    assert example.answer == "4,036"
    assert task.messages(example)[-1]["content"] == "How many legs have 1009 cats? Count in legs."
    assert task.reward(example, "4036") == 1.0


def test_a_file_whose_records_say_another_split_is_refused(own: Callable[..., SpecTask], tmp_path: Path) -> None:
    """Else questions of the test file would be trained on, and the manifest would not say so."""
    records = [{**record, "id": i} for i, record in enumerate(SUMS)]
    split = "record: {split: \"{{ '' if id < 5 else 'test' if id < 100 else 'validation' if id < 120 else 'train' }}\"}"
    source, files = f"{{kind: jsonl, train: train.jsonl, test: test.jsonl, {split}}}", (records[100:], records[:100])
    agreed = own(source, train=lines(files[0]), test=lines(files[1]))
    sizes = [len(questions(agreed, each)) for each in ("test", "validation")]
    assert sizes == [95, 15]  # 5 more have the words of a test question
    said = r"test\.jsonl, line 1: this is the test file, and the task's `split` makes 'validation' of it"
    with pytest.raises(CorruptArtifactError, match=said) as error:
        questions(own(source, train=lines(files[0]), test=lines(files[0])), "test")
    assert "--data FILE" in error.value.hint
    whole = own(f"{{kind: jsonl, file: q.jsonl, {split}}}", q=lines(records))
    assert [questions(whole, each) for each in SPLITS] == [questions(agreed, each) for each in SPLITS]


def test_a_task_that_is_for_evaluation_only_says_so(own: Callable[..., SpecTask]) -> None:
    task = own("{kind: jsonl, file: q.jsonl, record: {split: test}}", q=lines(SUMS))
    assert len(questions(task, "test")) == len(SUMS)
    with pytest.raises(UsageError, match="the task own is for evaluation only") as error:
        questions(task, "train")
    assert "t2 eval --task own" in error.value.hint


def test_a_template_that_names_no_validation_leaves_a_part_of_train_for_it(own: Callable[..., SpecTask]) -> None:
    records = [{**record, "id": i} for i, record in enumerate(SUMS)]
    split = "record: {split: \"{{ 'test' if id < 100 else 'train' }}\"}"
    task = own(f"{{kind: jsonl, file: q.jsonl, {split}}}", q=lines(records))
    found = {split: questions(task, split) for split in SPLITS}
    assert found["test"] == {str(record["question"]) for record in SUMS[:100]}
    assert found["validation"]
    assert {split_of(text) for text in found["validation"]} == {"validation"}
    assert not found["train"] & found["validation"]
    assert found["train"] | found["validation"] <= {str(record["question"]) for record in SUMS[100:]}


def test_the_name_of_a_field_may_hold_anything(own: Callable[..., SpecTask]) -> None:
    records = [{"sol.final": record["answer"], "réponse": 7, "question": record["question"]} for record in SUMS]
    for name, wanted in (("sol.final", None), ("réponse", "7")):
        task = own(f"{{kind: jsonl, file: q.jsonl, record: {{answer: {name}}}}}", q=lines(records))
        for example in task.examples("test", 3, 0):
            a, b = (int(word.strip("?")) for word in example.question.split()[2::2])
            assert example.answer == (wanted or str(a + b))
    with pytest.raises(CorruptArtifactError, match=r"there is no field 'sol\.other' for the answer"):
        own("{kind: jsonl, file: q.jsonl, record: {answer: sol.other}}", q=lines(records)).examples("test", 1, 0)


@pytest.mark.parametrize(
    ("answer", "record", "said"),
    [
        ("{kind: word, candidates: 'name (\\w+)'}", {"question": "name Ann or name Bob?", "answer": "Bob"}, ""),
        ("{kind: word, candidates: 'nom (\\w+)'}", {"question": "name Ann?", "answer": "Ann"}, "none of what `candid"),
        ("{kind: term, terms: [north, south]}", {"question": "Where?", "answer": "North"}, ""),
        ("{kind: term, candidates: 'or (\\w+)'}", {"question": "Ice or fire or snow?", "answer": "Fire"}, ""),
        ("{kind: term, candidates: 'or (\\w+)'}", {"question": "Ice or fire?", "answer": "snow"}, "what `candidates`"),
        ("{kind: term, terms: [north, south]}", {"question": "Where?", "answer": "noth"}, "none of `terms`: 'north'"),
    ],
)
def test_an_answer_that_a_question_does_not_offer_is_told(
    answer: str, record: dict[str, object], said: str, own: Callable[..., SpecTask]
) -> None:
    task = own(head=HEAD.replace("{kind: number}", answer), q=lines([record]))
    if said:
        with pytest.raises(CorruptArtifactError, match=said) as error:
            task.examples("train", 1, 0, fewer=True)
        assert error.value.message.startswith("q.jsonl, line 1: ")
    else:
        assert len([each for split in SPLITS for each in _all(task, split)]) == 1


def _all(task: SpecTask, split: str) -> set[str]:
    with contextlib.suppress(T2Error):
        return questions(task, split)
    return set()


def test_fewer_questions_than_asked_for_are_an_error_or_all_there_are(own: Callable[..., SpecTask]) -> None:
    task = own(q=lines(SUMS))
    held = questions(task, "test")
    with pytest.raises(T2Error, match=f"own has {len(held)} different test questions, and 10000 were asked for"):
        task.examples("test", 10_000, 0)
    assert {example.question for example in up_to(task, "test", 10_000, 0)} == held
    assert len(up_to(task, "test", 3, 0)) == 3


def test_the_files_are_named_with_their_hashes_and_without_their_folders(
    own: Callable[..., SpecTask], tmp_path: Path
) -> None:
    task = own(SPLIT, train=lines(SUMS), test=lines(SUMS[:5]))
    assert origin(task) == {
        "data": [
            {"split": name, "file": f"{name}.jsonl", "sha256": sha256_of(tmp_path / f"{name}.jsonl")}
            for name in ("train", "test")
        ]
    }


GOOD = b'{"question": "What is 1 + 1?", "answer": 2}\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "hold no questions"),
        (b"\n \n", "hold no questions"),
        (GOOD + b"{", r"q\.jsonl, line 2 is no valid JSON"),
        (GOOD + b"\n\n7\n", r"line 4 must be an object, not int"),
        (GOOD + b"[1]\n", r"line 2 must be an object, not list"),
        (GOOD + b'{"question": "q", "answer": NaN}', r"line 2 is no valid JSON: NaN is no number"),
        (GOOD + b'{"question": "q", "answer": -Infinity}', r"line 2 is no valid JSON: -Infinity"),
        (GOOD + b'{"question": "q", "answer": ' + b"1" * 5000 + b"}", "line 2 is no valid JSON"),
        (GOOD + b'{"question": "q", "answer": 1e999}', r"line 2: the answer 'inf' holds no number"),
        (
            GOOD + b'{"question": "q", "answer": 1, "answer": 2}',
            r"line 2 is no valid JSON: the key 'answer' is there twice",
        ),
        (GOOD + b"\xff\xfe\n", r"line 2 is no UTF-8 text"),
        (GOOD + b"[" * 60_000 + b"\n", r"line 2 (is nested too deeply|is no valid JSON)"),
        (GOOD + b'{"question": "' + b"x" * (1 << 20) + b'"}', r"line 2: longer than 1048576 bytes"),
        (GOOD + b'{"question": "' + b"x" * 200_000 + b'", "answer": 1}', r"line 2: the question is longer than"),
        (GOOD + b'{"answer": 1}', r"line 2: there is no field 'question'"),
        (GOOD + b'{"question": "q"}', r"line 2: there is no field 'answer'"),
        (GOOD + b'{"question": ["q"], "answer": 1}', r"line 2: 'question' must be text or a number .* not list"),
        (GOOD + b'{"question": null, "answer": 1}', r"line 2: 'question' must be text or a number .* not NoneType"),
        (GOOD + b'{"question": "q", "answer": true}', r"line 2: 'answer' must be text or a number .* not bool"),
        (GOOD + b'{"question": " ", "answer": 1}', r"line 2: the question is empty"),
        (GOOD + b'{"question": "q\\ud800", "answer": 1}', r"line 2: the question is no text"),
        (GOOD + b'{"question": "q", "answer": "two"}', r"line 2: the answer 'two' holds no number"),
        (GOOD + b'{"question": "q", "answer": "it has 12 000 legs"}', r"line 2: .* holds '12 000': write it as 12000"),
        (GOOD + b'{"question": "q", "answer": "1.234,56"}', r"line 2: .* holds '1.234,5': write it as"),
        (GOOD + GOOD.replace(b": 2}", b": 3}"), r"line 2: the question of q\.jsonl, line 1 again, with the answer '3'"),
        (b"[" + GOOD, r"q\.jsonl is no valid JSON"),
        (b"[" + GOOD + b", 3]", r"record 2 must be an object, not int"),
    ],
)
def test_a_damaged_file_is_told_with_its_line(
    content: bytes, said: str, own: Callable[..., SpecTask], tmp_path: Path
) -> None:
    (tmp_path / "q.jsonl").write_bytes(content)
    task = own()
    with pytest.raises(CorruptArtifactError, match=said) as error:
        task.examples("train", 1, 0)
    assert error.value.hint


@pytest.mark.parametrize("answer", ["?", "...", "**", "_"])
def test_an_answer_of_punctuation_that_no_completion_can_give_is_told_with_its_line(
    answer: str, own: Callable[..., SpecTask]
) -> None:
    head = HEAD.replace("number", "exact")
    good = {"question": "What ends a question?", "answer": "a mark"}
    task = own(head=head, q=lines([good, {"question": "Which mark?", "answer": answer}]))
    with pytest.raises(CorruptArtifactError, match=r"q\.jsonl, line 2: the answer .* is punctuation only"):
        task.examples("train", 1, 0)


def test_the_same_question_twice_is_one_question(own: Callable[..., SpecTask]) -> None:
    task = own(q=lines(SUMS + SUMS))
    assert sum(len(task.examples(split, 10_000, 0, fewer=True)) for split in SPLITS) == len(SUMS)


def test_limits_on_size_and_number(own: Callable[..., SpecTask], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_RECORDS", 10)
    with pytest.raises(CorruptArtifactError, match="more than 10 records"):
        own(q=lines(SUMS)).examples("train", 1, 0)
    monkeypatch.setattr(jsonl, "MAX_FILE_BYTES", 100)
    with pytest.raises(CorruptArtifactError, match="more than the 100 a file may have"):
        own(q=lines(SUMS)).examples("train", 1, 0)


def test_lines_and_an_array_are_the_same_records_with_any_line_ends_and_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "q"
    whole = json.dumps(SUMS, indent=1)
    for content in (lines(SUMS), lines(SUMS).replace("\n", "\r\n"), lines(SUMS).rstrip(), whole):
        for mark in (b"", b"\xef\xbb\xbf"):
            path.write_bytes(mark + content.encode())
            assert [dict(record.values) for record in read_records(path)] == SUMS


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    with contextlib.suppress(CorruptArtifactError):
        assert all(isinstance(record.values, dict) for record in read_records(path))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{kind: jsonl}", "give one `file`, or `train` and `test`"),
        ("{kind: jsonl, file: a, train: b, test: c}", "give one `file`"),
        ("{kind: jsonl, train: b}", "`train` and `test`"),
        ("{kind: jsonl, file: 3}", "file: must be text"),
        ("{kind: jsonl, file: a, dataset: b}", "dataset: unknown key"),
        ("{kind: jsonl, file: a, record: {quest: b}}", "record: quest: unknown key"),
        ("{kind: jsonl, file: a, record: {question: '{{ b'}}", "question is no valid template"),
        ("{kind: jsonl, file: a, record: {question: '{{ 1 }}'}}", "question uses no field of a record"),
        ("{kind: hub, file: a}", "dataset: missing"),
        ("{kind: jsonl, mixture: [{file: a.jsonl}, {file: b/a.jsonl}]}", "two rows are named 'a'"),
    ],
)
def test_a_mistake_in_the_task_file_is_named(source: str, said: str, own: Callable[..., SpecTask]) -> None:
    with pytest.raises(CorruptArtifactError, match=f"own.yaml.*{said}"):
        own(source)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("{question: '{{ missing }}'}", r"q\.jsonl, line 1: a template of the task's `record` failed: 'missing'"),
        ("{answer: '{{ answer + question }}'}", "line 1: a template .* failed"),
        ("{answer: '{{ answer.__class__.__mro__ }}'}", "line 1: a template .* failed"),
        ("{split: '{{ answer }}'}", r"line 1: `split` makes '0'"),
        ("{split: \"{{ '' if answer >= 0 }}\"}", "hold no questions"),
    ],
)
def test_a_template_that_fails_is_told_with_the_line(record: str, said: str, own: Callable[..., SpecTask]) -> None:
    task = own(f"{{kind: jsonl, file: q.jsonl, record: {record}}}", q=lines(SUMS))
    with pytest.raises(CorruptArtifactError, match=said):
        task.examples("train", 1, 0)


@pytest.mark.parametrize("prompt", ["{{ gone }}", "{{ question + 1 }}", "{{ question.__class__.__mro__ }}"])
def test_a_prompt_that_fails_is_told(prompt: str, own: Callable[..., SpecTask]) -> None:
    task = own(head=HEAD + f'prompt: "{prompt}"\n', q=lines(SUMS))
    with pytest.raises(T2Error, match=r"the prompt template .* failed: .* \(question: 'What is \d+ \+ \d+\?'\)"):
        task.messages(task.examples("train", 1, 0)[0])


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        *(("12'000", None), ("12_000_000", None), ("2\u00bd", None), ("12,000", 12000), ("2 1/2", 2.5)),
        *(("3 100/800", 3.125), ("-1.5", -1.5), ("1.234", 1.234), ("1234 567890", 567890), ("in 12 steps: 300", 300)),
        ("12\u202f000", 12000),
    ],
)
def test_an_answer_of_which_a_part_would_be_read_is_refused(answer: str, value: float | None) -> None:
    assert bool(answer_problem("number", answer)) is (value is None)
    if value is not None:
        assert REWARDS["number"](answer, f"{value:.3f}")


def test_a_missing_file_is_told(own: Callable[..., SpecTask]) -> None:
    with pytest.raises(NotFoundError, match=r"task own: there is no file .*q\.jsonl"):
        own().examples("train", 1, 0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_file(own: Callable[..., SpecTask], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "q.jsonl")
    with pytest.raises(NotFoundError, match="there is no file"):
        own().examples("train", 1, 0)


def test_data_take_the_place_of_the_files_of_a_task(own: Callable[..., SpecTask], tmp_path: Path) -> None:
    own(q=lines(SUMS[:50]), other=lines(SUMS[50:]))
    data = parse_data([str(tmp_path / "other.jsonl")], "own")
    task = load_task(str(tmp_path / "own.yaml"), data)
    assert isinstance(task, SpecTask)
    assert set.union(*(questions(task, split) for split in SPLITS)) == {str(each["question"]) for each in SUMS[50:]}
    with pytest.raises(UsageError, match="the task math makes its questions itself"):
        load_task("math", data)
    own("{kind: jsonl, mixture: [{file: q.jsonl}, {file: other.jsonl}]}")
    with pytest.raises(UsageError, match="mixes 2 sources"):
        load_task(str(tmp_path / "own.yaml"), data)
