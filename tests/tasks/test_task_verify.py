"""Rewards: what each rule accepts and refuses, and that no rule pays for naming many answers."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2cli.tasks.verify import REWARDS, choice, exact, extract_number, number, term, word, yesno

NUMBERS = [
    # plain, signs, decimals
    ("42", 42),
    ("The answer is 42.", 42),
    ("17 + 25 = 42", 42),
    ("= -8", -8),
    ("The result is -8", -8),
    ("The result is \u22128.", -8),
    ("The result is \u20138.", -8),
    ("It is \u20148", 8),
    ("(-8)", -8),
    ("x=-8", -8),
    ("x = - 8", -8),
    ("Answer:-8", -8),
    ("+8", 8),
    ("3.14", Fraction(314, 100)),
    ("about .5", Fraction(1, 2)),
    ("-0.25", Fraction(-1, 4)),
    ("-.25", Fraction(-1, 4)),
    ("5.", 5),
    ("007", 7),
    ("1e5", 10**5),
    ("1.5e-3", Fraction(15, 10_000)),
    # a minus that is an operator, a hyphen, a dash or a bullet
    ("17-25", 25),
    ("17 - 25", 25),
    ("17 -25", 25),
    ("17 - -25", -25),
    ("17\n-25", -25),
    ("(3+4)-8", 8),
    ("x-8", 8),
    ("COVID-19", 19),
    ("so--8", 8),
    ("- 8", 8),
    ("- 3\n- 8", 8),
    ("1. -8", -8),
    ("pages 10\u201325", 25),
    # thousands, currencies, units
    ("1,234", 1234),
    ("12,345,678.5", Fraction(123456785, 10)),
    ("-1,234", -1234),
    ("1{,}234", 1234),
    (r"1\,234", 1234),
    ("1,23", 23),
    ("12345,678", 678),
    ("1,234,56", 56),
    ("0,123", 123),
    ("1, 2, 3", 3),
    ("[1,2,3]", 3),
    ("$42", 42),
    ("-$42", -42),
    ("$-42", -42),
    (r"\$42.00", 42),
    ("42 €", 42),
    ("42%", 42),
    ("42km", 42),
    ("42 m^2", 42),
    ("42nd", 42),
    ("72 km", 72),
    ("It takes 72 km/h.", 72),
    ("$18", 18),
    ("$18.00 per day", 18),
    ("18 USD", 18),
    ("US$1,018.50", Fraction(101850, 100)),
    ("5 apples", 5),
    ("She has 5 apples left.", 5),
    ("3.5 kg", Fraction(7, 2)),
    ("-5 °C", -5),
    ("90°", 90),
    (r"90^\circ", 90),
    (r"50\%", 50),
    (r"42 \text{ m}", 42),
    (r"42 \text{ cm}^2", 42),
    (r"42 \text{ cm}^{2}", 42),
    ("42 m^{2}", 42),
    ("42 m²", 42),
    ("2^{3}", 3),
    ("1/2 kg", Fraction(1, 2)),
    ("2 1/2 cups", Fraction(5, 2)),
    ("-2 1/2", Fraction(-5, 2)),
    ("1. 1/2", Fraction(1, 2)),
    ("2, 1/2", Fraction(1, 2)),
    ("2 3/2", Fraction(3, 2)),
    # Markdown and LaTeX
    ("**42**", 42),
    ("**-42**", -42),
    ("_-42_", -42),
    ("`42`", 42),
    (r"\boxed{42}", 42),
    (r"$\boxed{-42}$", -42),
    (r"\(17 - 25 = -8\)", -8),
    # fractions
    ("3/4", Fraction(3, 4)),
    ("-3/4.", Fraction(-3, 4)),
    ("3 / 4", Fraction(3, 4)),
    (r"\frac{3}{4}", Fraction(3, 4)),
    (r"-\dfrac{3}{4}", Fraction(-3, 4)),
    ("12/4", 4),
    ("4/1", 1),
    ("3/0", 0),
    ("2/4", 4),
    # dates, times, versions, names
    ("2024-05-17", 17),
    ("17.05.2024", 2024),
    ("3/4/2024", 2024),
    ("12:30", 30),
    ("H2O", None),
    ("x2", None),
    ("5 x2", 5),
    ("答案是42", 42),
    ("答案是-42", -42),
    # none
    ("", None),
    ("no number here", None),
    ("-", None),
    (".", None),
    ("forty-two", None),
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_extract_number(text: str, value: Fraction | int | None) -> None:
    assert extract_number(text) == value


def test_a_flood_of_digits_is_no_number_and_takes_no_time() -> None:
    assert extract_number("9" * 100_000) is None
    assert extract_number("1/" * 50_000) == 1
    assert extract_number("-" * 100_000) is None


FRAMES = ["{}", "{:,}", "So it is {}.", "**{:,}**", "$x = {}$"]


@given(st.integers(-(10**12), 10**12), st.sampled_from(FRAMES))
def test_integers_survive_a_round_trip(value: int, frame: str) -> None:
    assert extract_number(frame.format(value)) == value
    assert number(str(value), frame.format(value))
    assert not number(str(value + 1), frame.format(value))


@given(st.decimals(-(10**6), 10**6, places=3))
def test_decimals_survive_a_round_trip(value: object) -> None:
    assert extract_number(f"It is {value}.") == Fraction(str(value))


@given(st.fractions(max_denominator=10**6))
def test_fractions_in_lowest_terms_survive_a_round_trip(value: Fraction) -> None:
    assert extract_number(f"x = {value}") == value


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


@pytest.mark.parametrize("kind", sorted(REWARDS))
@pytest.mark.parametrize("completion", ["", " ", "\n\n", "...", "**"])
def test_an_empty_completion_is_wrong(kind: str, completion: str) -> None:
    assert not REWARDS[kind]("4", completion)


def test_number_counts_only_the_last_one() -> None:
    assert number("8", "17 + 25 is 42, no: 8")
    assert not number("42", "17 + 25 is 42, no: 8")
    assert not number("8", "1 2 3 4 5 6 7 8 9")
    assert number("0.5", "1/2")
    assert not number("3", "12/4")  # repeating the question is no answer


def test_number_refuses_a_right_answer_that_is_none() -> None:
    with pytest.raises(ValueError, match="holds no number"):
        number("abc", "42")


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
        ("A is wrong. The answer is B.", "B"),
        ("The answer is A. No, the answer is B.", "B"),
        (r"\boxed{B}", "B"),
        (r"So the answer is $\boxed{B}$.", "B"),
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
        ("father-in-law", "the father-in-law", True),
        ("father", "the grandfather", False),
        ("father", "his father or his mother", False),
        ("father", "an uncle", False),
        ("father", "", False),
    ],
)
def test_term_accepts_only_the_one_of_a_list_in_any_case(answer: str, completion: str, right: bool) -> None:
    assert term(answer, completion, KIN) is right


@given(st.lists(st.sampled_from(NAMES), max_size=6))
def test_a_completion_has_at_most_one_right_word(said: list[str]) -> None:
    right = [name for name in NAMES if word(name, ", ".join(said), NAMES)]
    assert right == ([said[0]] if len(set(said)) == 1 else [])
