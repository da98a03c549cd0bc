"""The built-in tasks: their answers are right, their prompts usable, their splits disjoint."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from t2cli.errors import NotFoundError, T2Error
from t2cli.tasks.base import BUILTIN, Example, SpecTask, Task, load_task, task_names
from t2cli.tasks.sampling import split_of

pytest.importorskip("reasoning_gym", reason="the extra [tasks] is not installed")


def follows(premises: list[str], conclusion: str) -> bool:
    """Tell whether the conclusion holds in every world of three inhabited kinds where the premises do."""

    def parse(text: str) -> tuple[str, str, str]:
        quantifier, subject, predicate = re.fullmatch(r"(All|No|Some) (\w+) are (\w+)", text).groups()  # type: ignore[union-attr]
        return quantifier, subject, predicate

    claims = [parse(text) for text in (*premises, conclusion)]
    kinds = sorted({kind for _, *pair in claims for kind in pair})
    corners = list(itertools.product([False, True], repeat=len(kinds)))

    def holds(claim: tuple[str, str, str], world: list[dict[str, bool]]) -> bool:
        quantifier, subject, predicate = claim
        inside = [each[predicate] for each in world if each[subject]]
        return {"All": all(inside), "No": not any(inside), "Some": any(inside)}[quantifier]

    for chosen in itertools.product([False, True], repeat=len(corners)):
        world = [dict(zip(kinds, c, strict=True)) for c, kept in zip(corners, chosen, strict=True) if kept]
        if not all(any(each[kind] for each in world) for kind in kinds):
            continue
        if all(holds(claim, world) for claim in claims[:2]) and not holds(claims[2], world):
            return False
    return True


def numbers(text: str) -> list[int]:
    return [int(each) for each in re.findall(r"\d+", text)]


def needle(question: str) -> str:
    story, asked = question.split("\nWho ")
    (name,) = (s.split(" ", 1)[0] for s in story.split(". ") if s.split(" ", 1)[1:] == [asked.split("?")[0]])
    return name


def syllogism(question: str) -> str:
    lines = question.splitlines()
    return "Yes" if follows([lines[1][3:], lines[2][3:]], lines[5].rstrip("?")) else "No"


def kinship(question: str) -> str:
    """Return what the first person asked about is to the second, by marriages, children and names of men."""
    from reasoning_gym.graphs.family_relationships import FamilyRelationshipsConfig

    story, asked = question.split("\n\n")
    spouse: dict[str, str] = {}
    parents: dict[str, set[str]] = {}
    for sentence in re.findall(r"[^.]+\.", story):
        names = re.findall(r"[A-Z][a-z]+", sentence.replace("They", ""))
        if "married" in sentence:
            couple = set(names)
            spouse |= {names[0]: names[1], names[1]: names[0]}
        else:
            parents |= dict.fromkeys(names, couple)
    one, other = (name for name in re.findall(r"[A-Z][a-z]+", asked) if name in spouse or name in parents)
    of_other, of_one = parents.get(other, set()), parents.get(one, set())
    man = one in FamilyRelationshipsConfig().male_names
    found = {
        ("husband", "wife"): spouse.get(one) == other,
        ("father", "mother"): one in of_other,
        ("son", "daughter"): other in of_one,
        ("father-in-law", "mother-in-law"): one in parents.get(spouse.get(other, ""), set()),
        ("grandfather", "grandmother"): any(one in parents.get(parent, set()) for parent in of_other),
        ("grandson", "granddaughter"): any(other in parents.get(parent, set()) for parent in of_one),
        ("brother", "sister"): of_one == of_other != set(),
    }
    (pair,) = (names for names, holds in found.items() if holds)
    return pair[0 if man else 1]


def added(question: str) -> int:
    return sum(int(each.replace(" ", "")) for each in re.findall(r"(?:[+-] )?\d+", question))


SOLVERS: dict[str, Callable[[str], object]] = {
    "two_digits": added,
    "one_digit": added,
    "products": lambda question: math.prod(numbers(question)),
    "gcd": lambda question: math.gcd(*numbers(question)),
    "lcm": lambda question: math.lcm(*numbers(question)),
    "needle_haystack": needle,
    "syllogism": syllogism,
    "family_relationships": kinship,
}


def row_of(example: Example) -> str:
    return example.id.rpartition("-")[0]


@pytest.fixture(params=["math", "reasoning"])
def task(request: pytest.FixtureRequest) -> Task:
    return load_task(request.param)


def test_every_answer_is_right_by_another_way_of_finding_it(task: Task) -> None:
    assert isinstance(task, SpecTask)
    examples = task.examples("train", 300, 0)
    assert {row_of(example) for example in examples} == {row.name for row in task.spec.mixture}
    for example in examples:
        assert str(SOLVERS[row_of(example)](example.question)) == example.answer, example


@pytest.mark.parametrize(("split", "n"), [("validation", 100), ("test", 500), ("train", 600)])
def test_no_kind_of_question_runs_out(split: str, n: int, task: Task) -> None:
    """Else what chooses the checkpoint is of other kinds than what measures it, and both than what it learned from."""
    assert isinstance(task, SpecTask)
    asked = Counter(row_of(example) for example in task.examples(split, n, 0))
    total = sum(row.weight for row in task.spec.mixture)
    for row in task.spec.mixture:
        assert abs(asked[row.name] - n * row.weight / total) < 1, (row.name, asked)


def test_the_right_answer_is_rewarded_and_others_are_not(task: Task) -> None:
    examples = task.examples("test", 200, 0)
    wrong = {"Yes": "No", "No": "Yes"}
    for example in examples:
        other = wrong.get(example.answer) or (
            str(int(example.answer) + 1) if example.answer.lstrip("-").isdigit() else "Nobody"
        )
        assert task.reward(example, f"The answer is {example.answer}.") == 1.0
        assert task.reward(example, f"**{example.answer}**") == 1.0
        assert task.reward(example, f"The answer is {other}.") == -1.0
        assert task.reward(example, "") == -1.0


def test_repeating_the_question_does_not_pay(task: Task) -> None:
    paid: dict[str, list[bool]] = {}
    for example in task.examples("test", 400, 0):
        for text in (example.question, task.messages(example)[-1]["content"]):
            paid.setdefault(row_of(example), []).append(task.reward(example, text) > 0)
    # Some divisors and multiples are the last number of their question by themselves: gcd(30, 6) = 6.
    assert all(sum(each) <= 0.2 * len(each) for each in paid.values()), paid
    assert not any(paid.get("needle_haystack", []) + paid.get("syllogism", []))


def test_splits_are_disjoint_and_draws_repeatable(task: Task) -> None:
    texts = {
        split: {e.question for seed in (0, 1) for e in task.examples(split, 100, seed)}
        for split in ("train", "validation", "test")
    }
    assert not texts["train"] & texts["validation"]
    assert not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]
    first = task.examples("test", 100, 5)
    assert first == load_task(task.name).examples("test", 100, 5)
    assert len({example.question for example in first}) == len({example.id for example in first}) == 100


def test_the_order_of_words_does_not_move_a_question_to_another_split(task: Task) -> None:
    for example in task.examples("test", 200, 0):
        words = re.findall(r"\w+|\W+", example.question)
        assert split_of("".join(reversed(words))) == "test"
    assert split_of("Calculate 3 + 5.") == split_of("Calculate 5 + 3.")


def test_there_are_enough_questions_for_an_evaluation(task: Task) -> None:
    assert len(task.examples("test", 1000, 0)) == 1000
    assert len(task.examples("validation", 300, 0)) == 300


def test_every_wording_is_used_and_filled_in(task: Task) -> None:
    assert isinstance(task, SpecTask)
    used: Counter[tuple[str, str]] = Counter()
    for example in task.examples("train", 400, 1):
        (message,) = task.messages(example)
        assert message["role"] == "user"
        assert message == task.messages(example)[0]
        assert "{" not in message["content"]
        asked = message["content"] == example.question.strip()
        used[row_of(example), "own" if asked else "reworded"] += 1
    for row in task.spec.mixture:
        own, reworded = used[row.name, "own"], used[row.name, "reworded"]
        share = row.prompts.count("{{ question }}") / len(row.prompts)
        assert own / (own + reworded) == pytest.approx(share, abs=0.2)


def test_answers_can_be_told_apart_by_knowing_not_by_guessing() -> None:
    """No constant answer is right for more than 60 % of a row."""
    for name in ("math", "reasoning"):
        answers: dict[str, Counter[str]] = {}
        for example in load_task(name).examples("train", 500, 0):
            answers.setdefault(row_of(example), Counter())[example.answer] += 1
        for row, counts in answers.items():
            assert counts.most_common(1)[0][1] <= 0.6 * counts.total() + 5, (row, counts)


def test_built_in_names_and_near_matches() -> None:
    made = ["code", "dispatch", "math", "reasoning"]
    read = ["arc-challenge", "arc-easy", "arc-easy-text", "gsm8k", "humaneval", "math-500", "mbpp"]
    unseen = ["largest", "letters", "terms"]  # no expert that ships was trained on these
    assert task_names() == sorted(made + read + unseen)
    for name in task_names():
        assert load_task(name).name == name
        assert load_task(str(BUILTIN / f"{name}.yaml")).description == load_task(name).description
    with pytest.raises(NotFoundError, match="no task named 'maths'") as error:
        load_task("maths")
    assert (error.value.exit_code, error.value.hint) == (3, "did you mean math or math-500?")
    with pytest.raises(NotFoundError, match=r"no task file gone\.yaml"):
        load_task("gone.yaml")


OWN = r"""
name: own
category: sums
description: a user's own task
system: Answer with a number.
source: {kind: reasoning-gym, mixture: [{dataset: chain_sum, extract: '(?P<x>\d+ [*] \d+)'}]}
prompt: ["{{ x }}"]
answer: {kind: number}
max_new_tokens: 8
"""


def test_a_users_own_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(OWN.replace("[*]", "[+-]"))
    task = load_task(str(path))
    (example,) = task.examples("test", 1, 0)
    system, user = task.messages(example)
    assert system == {"role": "system", "content": "Answer with a number."}
    assert re.fullmatch(r"\d+ [+-] \d+", user["content"])
    with pytest.raises(ValueError, match="no row named 'math'"):
        task.reward(Example("math-0123", "1 + 1?", "2"), "2")


def test_an_extract_that_does_not_match_is_said(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(OWN)
    task = load_task(str(path))
    with pytest.raises(T2Error, match="task own, row chain_sum: `extract` does not match"):
        task.messages(task.examples("test", 1, 0)[0])


def test_a_file_that_is_no_text_is_said(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(T2Error, match="is no UTF-8 text"):
        load_task(str(path))
