"""Intervals and tests against published values, brute force and exact coverage."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2cli.evaluation.statistics import holm, mcnemar_exact, newcombe, paired_gain, wilson


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_has_its_published_values(k: int, n: int, low: float, high: float) -> None:
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_are_where_the_score_test_turns(counts: tuple[int, int]) -> None:
    k, n = counts
    z = NormalDist().inv_cdf(0.975)
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:
            assert abs(k / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), rel=1e-6)
    mirrored = wilson(n - k, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


def test_wilson_at_the_edges() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 50)[0] == 0.0
    assert wilson(50, 50)[1] == 1.0
    wide, narrow = wilson(20, 50, 0.99), wilson(20, 50, 0.9)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    for k, n in [(-1, 5), (6, 5), (0, -1)]:
        with pytest.raises(ValueError, match="between 0 and n"):
            wilson(k, n)
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 2, 1.0)


@pytest.mark.parametrize(
    ("b", "c", "p"), [(0, 0, 1.0), (3, 3, 1.0), (0, 5, 0.0625), (10, 2, 158 / 4096), (1, 7, 18 / 256)]
)
def test_mcnemar_by_hand(b: int, c: int, p: float) -> None:
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b) == pytest.approx(p, rel=1e-15)


@given(st.integers(0, 120), st.integers(0, 120))
def test_mcnemar_is_the_sum_of_all_outcomes_no_likelier(b: int, c: int) -> None:
    n = b + c
    outcomes = [math.comb(n, i) for i in range(n + 1)]
    p = Fraction(sum(each for each in outcomes if each <= outcomes[b]), 2**n)
    assert mcnemar_exact(b, c) == pytest.approx(float(p), rel=1e-15)


def test_mcnemar_holds_for_large_counts() -> None:
    b, c = 50_200, 49_800
    z = (b - c - 1) / math.sqrt(b + c)
    assert mcnemar_exact(b, c) == pytest.approx(2 * NormalDist().cdf(-z), rel=1e-3)
    n, i = 5000, 2400
    exact = Fraction(2 * sum(math.comb(n, j) for j in range(i + 1)), 2**n)
    assert mcnemar_exact(i, n - i) == pytest.approx(float(exact), rel=1e-15)
    assert mcnemar_exact(0, 100_000) == 0.0
    with pytest.raises(ValueError, match="negative"):
        mcnemar_exact(-1, 2)


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.04, 0.01], [0.04, 0.02]),  # 1 * 0.04 and 2 * 0.01
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 3 * 0.01, max(2 * 0.03, 1 * 0.04), 2 * 0.03, 4 * 0.005
        ([0.5, 0.6, 0.0], [1.0, 1.0, 0.0]),
        ([0.02, 0.02], [0.04, 0.04]),
    ],
)
def test_holm_by_hand(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(adjusted)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_bonferroni_on_every_set_of_hypotheses(p_values: list[float]) -> None:
    """A hypothesis is rejected if every set of hypotheses that holds it is: the closure of Bonferroni's test."""
    indices = range(len(p_values))
    sets = [chosen for size in range(1, len(p_values) + 1) for chosen in itertools.combinations(indices, size)]
    closed = [max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets if i in s) for i in indices]
    assert holm(p_values) == pytest.approx(closed, abs=1e-15)
    assert all(p <= q <= 1 for p, q in zip(p_values, holm(p_values), strict=True))


def test_holm_keeps_the_chance_of_a_false_claim_below_five_in_a_hundred() -> None:
    rng = random.Random(0)
    claims = sum(min(holm([rng.random() for _ in range(5)])) < 0.05 for _ in range(4000))
    assert 0.035 <= claims / 4000 <= 0.06


@pytest.mark.parametrize("p_values", [[-0.1], [1.1, 0.5], [math.nan]])
def test_holm_refuses_what_is_no_probability(p_values: list[float]) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm(p_values)


def test_newcombe_has_its_published_value() -> None:
    """Cavo et al. (2012), in Fagerland, Lydersen and Laake, Contingency tables (2017), chapter 8."""
    low, high = newcombe(both=59, only_base=16, only_expert=6, neither=80)
    assert (low, high) == pytest.approx((-0.1186, -0.0046), abs=5e-5)


def test_newcombe_by_hand() -> None:
    """One margin is empty, so phi = 0 and the two Wilson intervals are added in squares."""
    (low, high), (l_expert, u_expert), u_base = newcombe(0, 0, 8, 12), wilson(8, 20), wilson(0, 20)[1]
    assert low == pytest.approx(0.4 - math.hypot(0.4 - l_expert, u_base), abs=1e-12)
    assert high == pytest.approx(u_expert, abs=1e-12)


COUNTS = st.lists(st.integers(0, 60), min_size=4, max_size=4).filter(any)


@given(COUNTS)
def test_newcombe_contains_the_gain_and_mirrors(counts: list[int]) -> None:
    both, lost, gained, neither = counts
    low, high = newcombe(*counts)
    assert -1 <= low <= (gained - lost) / sum(counts) + 1e-12
    assert (gained - lost) / sum(counts) - 1e-12 <= high <= 1
    swapped = newcombe(both, gained, lost, neither)
    assert (-swapped[1], -swapped[0]) == pytest.approx((low, high), abs=1e-12)
    failures = newcombe(neither, gained, lost, both)
    assert (-failures[1], -failures[0]) == pytest.approx((low, high), abs=1e-9)


def test_newcombe_refuses_what_is_no_table() -> None:
    for counts in [(0, 0, 0, 0), (5, -1, 0, 0)]:
        with pytest.raises(ValueError, match="counts"):
            newcombe(*counts)


# Probabilities of (both right, only the base, only the expert, neither).
TRUTHS = [
    (0.10, 0.05, 0.25, 0.60),
    (0.40, 0.10, 0.10, 0.40),
    (0.25, 0.25, 0.25, 0.25),
    (0.05, 0.45, 0.05, 0.45),
    (0.80, 0.05, 0.10, 0.05),
]


def test_newcombe_covers_the_truth_in_95_of_100_samples_exactly_counted() -> None:
    n = 24
    tables = [t for t in itertools.product(range(n + 1), repeat=4) if sum(t) == n]
    intervals = [newcombe(*table) for table in tables]
    ways = [math.factorial(n) // math.prod(map(math.factorial, table)) for table in tables]
    for truth in TRUTHS:
        gain = truth[2] - truth[1]
        covered = sum(
            w * math.prod(p**k for p, k in zip(truth, table, strict=True))
            for table, w, (low, high) in zip(tables, ways, intervals, strict=True)
            if low <= gain <= high
        )
        assert 0.935 <= covered <= 0.995, (truth, covered)


def test_newcombe_covers_the_truth_at_the_size_of_an_evaluation() -> None:
    rng = random.Random(0)
    for truth in TRUTHS:
        hits = 0
        for _ in range(400):
            sample = rng.choices(range(4), truth, k=400)
            low, high = newcombe(*(sample.count(i) for i in range(4)))
            hits += low <= truth[2] - truth[1] <= high
        assert 0.92 <= hits / 400 <= 0.985, (truth, hits)


def test_paired_gain_counts_the_pairs() -> None:
    base = [True] * 59 + [True] * 6 + [False] * 16 + [False] * 80
    expert = [True] * 59 + [False] * 6 + [True] * 16 + [False] * 80
    paired = paired_gain(base, expert)
    assert (paired.n, paired.gained, paired.lost) == (161, 16, 6)
    assert (paired.base_accuracy, paired.expert_accuracy) == (65 / 161, 75 / 161)
    assert paired.gain == pytest.approx(paired.expert_accuracy - paired.base_accuracy)
    assert paired.ci95 == pytest.approx((0.0046, 0.1186), abs=5e-5)
    assert paired.mcnemar_p == mcnemar_exact(16, 6)


def test_paired_gain_of_a_model_with_itself_is_nothing() -> None:
    right = [i % 3 == 0 for i in range(30)]
    paired = paired_gain(right, right)
    assert (paired.gain, paired.mcnemar_p) == (0.0, 1.0)
    assert paired.ci95[0] < 0 < paired.ci95[1]


@pytest.mark.parametrize(("base", "expert"), [([], []), ([True], []), ([True], [True, False])])
def test_paired_gain_refuses_lists_that_do_not_pair(base: list[bool], expert: list[bool]) -> None:
    with pytest.raises(ValueError, match="same length"):
        paired_gain(base, expert)
