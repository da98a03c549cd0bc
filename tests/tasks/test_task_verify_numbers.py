"""Numbers are found in what a model writes, whatever stands around them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2cli.tasks.verify import extract_number, number

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
    # LaTeX's mixed numbers, fractions without braces or with a sign, spaced signs, and signs in words
    (r"2\frac{1}{2}", Fraction(5, 2)),
    (r"1\frac12", Fraction(3, 2)),
    (r"\frac34", Fraction(3, 4)),
    (r"\frac{-3}{4}", Fraction(-3, 4)),
    (r"\boxed{ - 17 }", -17),
    ("negative 17", -17),
    ("It is minus 17", -17),
    ("10 minus 17", 17),
    ("(3) minus 17", 17),
    # units' exponents may be negative
    ("5 m^-2", 5),
    (r"42 m^{-1}", 42),
    ("42\u00a0000", 42_000),
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


def test_number_counts_only_the_last_one() -> None:
    assert number("8", "17 + 25 is 42, no: 8")
    assert not number("42", "17 + 25 is 42, no: 8")
    assert not number("8", "1 2 3 4 5 6 7 8 9")
    assert number("0.5", "1/2")
    assert not number("3", "12/4")  # repeating the question is no answer


def test_a_right_answer_may_be_an_unreduced_fraction() -> None:
    for completion in ("1.5", "3/2", r"\frac{3}{2}"):
        assert number("6/4", completion)
    assert not number("6/4", "4")
    assert number("5/1", "5")
    assert not number("5/1", "1")
    assert not number("1.5", "6/4")


def test_number_refuses_a_right_answer_that_is_none() -> None:
    with pytest.raises(ValueError, match="holds no number"):
        number("abc", "42")
