"""The made programming questions: right functions pass, shortcuts do not, and there are many of them."""

from __future__ import annotations

import random
import re

import pytest
from sandboxes import needs_sandbox

from t2cli.errors import NotFoundError
from t2cli.tasks.base import SpecTask, load_task, stop_of
from t2cli.tasks.programs import FAMILIES, question
from t2cli.tasks.sampling import Item, split_of
from t2cli.tasks.spec import TaskSpec
from t2cli.tasks.unit_tests import judge

SHORTCUTS = ("x[0]", "x[-1]", "0", "1", "''", "[]", "True", "False", "None", "len", "str(x[0])", "bool(x[0])", "x")


def signature(item: Item) -> tuple[str, str]:
    """Return the name and the parameters that a question asks for."""
    found = re.match(r"Write a Python function (\w+)\(([\w, ]+)\) that returns (.+)\.$", item.question)
    assert found, item.question
    return found[1], found[2]


def table(item: Item) -> dict[tuple[object, ...], object]:
    """Return what the hidden tests say: arguments -> value."""
    calls = [re.fullmatch(r"assert \w+\((.*)\) == (.*)", line) for line in item.answer.splitlines()]
    assert all(calls)
    return {tuple(map(repr, eval(f"({call[1]},)"))): eval(call[2]) for call in calls if call}


@pytest.fixture(scope="module")
def questions() -> dict[str, Item]:
    rng = random.Random(7)
    return {name: question(family, rng) for name, family in FAMILIES.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_question_names_all_that_decides_the_answer(name: str) -> None:
    rng = random.Random(3)
    answers: dict[str, dict[tuple[object, ...], object]] = {}
    for _ in range(300):
        item = question(FAMILIES[name], rng)
        what = item.question.partition(" that returns ")[2].translate(str.maketrans("", "", "."))
        signature(item)
        known = answers.setdefault(f"{signature(item)[1]} {what}", {})
        for arguments, value in table(item).items():
            assert known.setdefault(arguments, value) == value, item


@needs_sandbox
def test_no_shortcut_passes_hidden_tests(questions: dict[str, Item]) -> None:
    pairs = []
    for item in questions.values():
        name, _ = signature(item)
        bodies = [*SHORTCUTS, repr(next(iter(table(item).values())))]
        pairs += [(item.answer, f"def {name}(*x):\n    return {body}") for body in bodies]
    outcomes = judge([answer for answer, _ in pairs], [code for _, code in pairs])
    assert [pair for pair, outcome in zip(pairs, outcomes, strict=True) if outcome.passed] == []


@needs_sandbox
def test_a_function_that_knows_all_values_passes(questions: dict[str, Item]) -> None:
    codes = [
        f"def {signature(item)[0]}(*x):\n    return {table(item)!r}[tuple(map(repr, x))]" for item in questions.values()
    ]
    outcomes = judge([item.answer for item in questions.values()], codes)
    assert all(outcome.passed for outcome in outcomes), outcomes


@needs_sandbox
def test_families_are_told_apart_by_their_tests(questions: dict[str, Item]) -> None:
    """The plain way to write some functions passes its own family and no other one of the same form."""
    ways = {"add": "x + {k}", "multiply": "x * {k}", "larger": "max(x, y)", "smaller": "min(x, y)", "last": "x[-1]"}
    ways |= {
        "total": "sum(x)",
        "length": "len(x)",
        "sort": "sorted(x)",
        "upper": "x.upper()",
        "reverse_list": "list(reversed(x))",
    }
    ways = {name: way for name, way in ways.items() if name in FAMILIES}
    assert ways
    for name, way in ways.items():
        item = questions[name]
        _, parameters = signature(item)
        numbers = re.findall(r"\b\d+\b", item.question)
        body = way.format(k=numbers[-1] if numbers else 0)
        for old, new in zip("xy", parameters.split(", "), strict=False):
            body = re.sub(rf"\b{old}\b", f"_{new}", body)
        names = ", ".join(f"_{each}" for each in parameters.split(", "))
        others = [other for other in questions.values() if signature(other)[1].count(",") == parameters.count(",")]
        codes = [f"def {signature(other)[0]}({names}):\n    return {body}" for other in [item, *others]]
        passed = judge([other.answer for other in [item, *others]], codes)
        assert passed[0].passed, (item, body)
        assert [o for o, p in zip(others, passed[1:], strict=True) if p.passed] == [item]


def test_there_are_thousands_of_questions_and_splits_share_none() -> None:
    task = load_task("code")
    held_out = {each.question for each in task.examples("test", 1500, 0)}
    trained = {each.question for seed in range(5) for each in task.examples("train", 600, seed)}
    assert len(held_out) == 1500
    assert not held_out & trained
    assert {split_of(text) for text in held_out} == {"test"}
    assert task.examples("test", 50, 3) == load_task("code").examples("test", 50, 3)


def test_a_completion_is_complete_with_its_first_block() -> None:
    stop = stop_of(load_task("code"), lambda ids: "".join(map(chr, ids)))
    assert stop is not None
    ends = "Here:\n```python\ndef f(x):\n    return x\n```"
    assert [stop([ord(c) for c in ends[:end]]) for end in range(len(ends) + 1)] == [False] * len(ends) + [True]
    assert stop_of(load_task("math"), str) is None


def test_unknown_families_have_near_matches() -> None:
    spec = load_task("code")
    assert isinstance(spec, SpecTask)
    text = (
        "name: own\ncategory: code\ndescription: own\nmax_new_tokens: 8\nanswer: {kind: tests}\n"
        "source: {kind: programs, mixture: [{dataset: totl}]}"
    )
    with pytest.raises(NotFoundError, match="no family of programs named 'totl'") as error:
        SpecTask(TaskSpec.from_yaml(text, "own.yaml"))
    assert "total" in error.value.hint
