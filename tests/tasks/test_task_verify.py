"""Rewards: what each rule accepts and refuses, and that no rule pays for naming many answers."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2cli.tasks.verify import REWARDS, choice, exact, number, term, word, yesno


@given(st.text())
def test_any_text_is_judged_without_an_error(text: str) -> None:
    for kind, answer in [
        ("number", "4"),
        ("yesno", "Yes"),
        ("choice", "B"),
        ("choice", "2"),
        ("exact", "a b"),
        ("word", "Chad"),
    ]:
        assert REWARDS[kind](answer, text, ("Ayan",)) in (True, False)


ANSWERS = {"yesno": "Yes", "choice": "B", "math": "4", "tests": "assert f(1) == 2", "word": "Chad", "term": "left"}


@pytest.mark.parametrize("kind", sorted(REWARDS))
@pytest.mark.parametrize("completion", ["", " ", "\n\n", "...", "**"])
def test_an_empty_completion_is_wrong(kind: str, completion: str) -> None:
    assert not REWARDS[kind](ANSWERS.get(kind, "4"), completion)


@pytest.mark.parametrize(
    ("answer", "completion", "right"),
    [
        ("Yes", "Yes", True),
        ("Yes", "yes.", True),
        ("Yes", "**Yes**, it follows.", True),
        ("Yes", "The answer is: Yes", True),
        ("Yes", "'Yes'", True),
        ("No", "No, it does not. Yes would be wrong.", True),
        ("Yes", "No, yes", False),
        ("No", "yes no", False),
        ("Yes", "Yesterday", False),
        ("No", "I do not know", False),
        ("No", "No-one", False),
        ("No", "No dogs are cats", False),
        ("Yes", "No dogs are cats, so yes.", True),
        ("No", "No it does not.", True),
        ("No", "No there is not.", True),
        ("Yes", "_Yes_", True),
        ("Yes", "__Yes__, it follows", True),
        ("Yes", "___Yes___", True),
        ("Yes", "**_Yes._**", True),
        ("No", "_No, it does not._", True),
        ("Yes", "yes_no", False),
        ("Yes", "_yes_no_", False),
        ("Yes", "_yes", False),
        ("Yes", "yes_", False),
        ("Yes", "is_yes_", False),
        ("Yes", "__yes_", False),
        ("No", "No\nDogs are no cats", True),
        ("No", "No. Dogs are cats", True),
        ("No", "no", True),
        ("Yes", "Yes or no?", False),
        ("No", "Yes or no? No.", True),
        ("No", "Yes/No: no", True),
        ("Yes", "It follows.", False),
    ],
)
def test_yesno(answer: str, completion: str, right: bool) -> None:
    assert yesno(answer, completion) is right


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("B) Paris", "B"),
        ("B. Paris", "B"),
        ("B.5", None),
        ("2", None),
        ("The answer is 2.", None),
        ("**B**", "B"),
        ("**B. Paris**", "B"),
        ("The answer is B", "B"),
        ("The answer is **B**.", "B"),
        ("The answer is: (B) Paris", "B"),
        ("The correct option is B because A is too small.", "B"),
        ("Answer: B", "B"),
        ("**Answer:** B", "B"),
        ("**Answer**: B", "B"),
        ("Answer: b", "B"),
        ("The answer is `B`", "B"),
        ("The answer is (b)", "B"),
        ("The answer is (a).", "A"),
        ("Answer: A because it rains", "A"),
        ("Answer: A\nB is wrong", "A"),
        ("The answer is B. Option A is wrong.", "B"),
        ("The answer is B because option A is false.", "B"),
        ("Answer: A or B", None),
        ("Answer: A, B", None),
        ("Answer: A/B", None),
        ("Answer: A plant needs light", None),
        ("The answer is a plant", None),
        ("A is wrong. The answer is B.", "B"),
        ("The answer is A. No, the answer is B.", "B"),
        (r"\boxed{B}", "B"),
        (r"So the answer is $\boxed{B}$.", "B"),
        (r"Plants need light: \boxed{\text{B}}", "B"),
        (r"The answer is \boxed{\text{B}}.", "B"),
        (r"The answer is \text{A}.", "A"),
        (r"\boxed{\text{B}} or \boxed{\text{C}}", None),
        (r"\boxed{\text{Brussels}}", None),
        ("It must be (B).", "B"),
        ("A. is what I choose", "A"),
        ("A cat sat on the mat", None),
        ("B\nParis is the capital.", "B"),
        ("(A) or (B)", None),
        ("A. Rome\nB. Paris\nC. Oslo", None),
        ("A B C D E", None),
        ("The answer is not B", None),
        ("The answer is Brussels", None),
        ("F", None),
        ("Because", None),
    ],
)
def test_choice_reads_one_letter(completion: str, letter: str | None) -> None:
    assert [each for each in "ABCDE" if choice(each, completion)] == ([letter] if letter else [])


def test_a_long_run_of_spaces_takes_no_time() -> None:
    started = time.monotonic()
    for text in ("answer" + " " * 30_000, ("answer" + " *" * 3_000) * 5, "option " * 5_000 + " " * 30_000):
        assert not choice("A", text)
        assert not number("4", text)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("2", 2),
        ("B", 2),
        ("(2)", 2),
        ("2. Paris", 2),
        ("The answer is 2", 2),
        ("The answer is (B).", 2),
        ("The answer is 2.5", None),
        ("It weighs 2 kg", None),
        ("(1) or (2)", None),
        ("(2), which is B)", 2),
        ("6", None),
    ],
)
def test_choice_reads_a_number_where_the_choices_are_numbered(completion: str, number: int | None) -> None:
    assert [i for i in range(1, 6) if choice(str(i), completion)] == ([number] if number else [])


@pytest.mark.parametrize(
    ("answer", "completion", "right"),
    [
        ("mother-in-law", "Mother-in-law.", True),
        ("1 2 3", "  1  2\t3 ", True),
        ("blue", "Let me think.\n\nblue\n", True),
        ("blue", '"Blue"', True),
        ("blue", "**blue**", True),
        ("a\nb", "A\nB", True),
        ("blue", "It is blue", False),
        ("blue", "blue\nred", False),
        ("1 2 3", "123", False),
        ("-3", "3", False),
    ],
)
def test_exact(answer: str, completion: str, right: bool) -> None:
    assert exact(answer, completion) is right


NAMES = ("Tayo", "Ayan", "Aaron", "Aaron-James", "Will", "Chad")


@pytest.mark.parametrize(
    ("answer", "completion", "right"),
    [
        ("Chad", "Chad", True),
        ("Chad", "**Chad**.", True),
        ("Chad", "_Chad_", True),
        ("Chad", "It is __Chad__.", True),
        ("Chad", "_Chad_ and _Tayo_", False),
        ("Chad", "_Chad_Tayo_", False),
        ("Chad", "Chad_Tayo", False),
        ("Chad", "get_Chad", False),
        ("Chad", "Chad is committed to pigs.", True),
        ("Chad", "It's Chad's farm, Chad will know.", True),
        ("Aaron-James", "Aaron-James", True),
        ("Aaron", "Aaron", True),
        ("Aaron", "Aaron-James", False),
        ("Chad", "Tayo and Chad", False),
        ("Chad", "Chadwick", False),
        ("Chad", "chad", False),
        ("Chad", " ".join(NAMES), False),
        ("Chad", "Nobody", False),
    ],
)
def test_word_accepts_only_the_one_candidate(answer: str, completion: str, right: bool) -> None:
    assert word(answer, completion, NAMES) is right


KIN = ["father", "mother", "father-in-law", "grandfather"]


@pytest.mark.parametrize(
    ("answer", "completion", "right"),
    [
        ("father", "Father.", True),
        ("father", "Edward is the FATHER of Finn", True),
        ("father", "father-in-law", False),
        ("father", "_Father_", True),
        ("father", "_father-in-law_", False),
        ("father", "father_of", False),
        ("father-in-law", "the father-in-law", True),
        ("father", "the grandfather", False),
        ("father", "his father or his mother", False),
        ("father", "an uncle", False),
        ("father", "", False),
    ],
)
def test_term_accepts_only_the_one_of_a_list_in_any_case(answer: str, completion: str, right: bool) -> None:
    assert term(answer, completion, KIN) is right


def test_underscores_of_a_candidate_are_no_emphasis() -> None:
    assert word("__init__", "It is __init__", ["__init__", "init"])
    assert not word("init", "It is __init__", ["__init__", "init"])


@pytest.mark.parametrize(
    ("answer", "completion", "right"),
    [
        ("water vapor", "Water vapor.", True),
        ("water", "Water vapor.", False),
        ("water", "It is water.", True),
        ("water", "Water is water vapor.", False),
        ("water vapor", "Water is water vapor.", False),
        ("vapor", "water vapor", False),
    ],
)
def test_a_part_of_a_longer_candidate_is_not_said_by_it(answer: str, completion: str, right: bool) -> None:
    assert term(answer, completion, ["water", "Water vapor", "vapor", "vapor trails"]) is right


@given(st.lists(st.sampled_from(NAMES), max_size=6))
def test_a_completion_has_at_most_one_right_word(said: list[str]) -> None:
    right = [name for name in NAMES if word(name, ", ".join(said), NAMES)]
    assert right == ([said[0]] if len(set(said)) == 1 else [])
