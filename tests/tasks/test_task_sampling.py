"""Splits are disjoint whatever the seeds; draws are deterministic, distinct and weighted."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2cli.errors import NotFoundError, T2Error
from t2cli.tasks import sampling
from t2cli.tasks.sampling import SPLITS, Asked, Item, apportion, draw, split_of, stream_seed
from t2cli.tasks.spec import Row, TaskSpec


class Counted:
    """A source with `config["kinds"]`-many questions, met at random and without end."""

    finite = False

    def __init__(self, spec: TaskSpec) -> None:
        pass

    def stream(self, row: Row, split: str, seed: int) -> Iterator[Item]:
        rng = random.Random(seed)
        while True:
            i = rng.randrange(int(str(row.config["kinds"])))
            yield Item(f"{row.dataset} {i}?", str(i))


class Finite(Counted):
    """A source that ends."""

    finite = True

    def stream(self, row: Row, split: str, seed: int) -> Iterator[Item]:
        return iter([Item(f"{row.dataset} {i}?", str(i)) for i in range(20)])


@pytest.fixture(autouse=True)
def sources(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"counted": f"{__name__}:Counted", "finite": f"{__name__}:Finite"}
    monkeypatch.setattr(sampling, "SOURCES", table)
    monkeypatch.setattr("t2cli.tasks.spec.SOURCES", table)


def task(*rows: tuple[str, int, float], kind: str = "counted") -> TaskSpec:
    row = "\n    - {{dataset: {}, weight: {}, config: {{kinds: {}}}}}"
    mixture = "".join(row.format(name, weight, size) for name, size, weight in rows)
    return TaskSpec.from_yaml(
        "name: demo\ncategory: demo\ndescription: demo\nmax_new_tokens: 8\nanswer: {kind: number}\n"
        f"source:\n  kind: {kind}\n  mixture:{mixture}\n",
        "demo.yaml",
    )


def test_a_draw_is_the_same_for_the_same_arguments_and_another_for_another_seed() -> None:
    spec = task(("a", 10**6, 1), ("b", 10**6, 2))
    assert draw(spec, "train", 50, 3) == draw(spec, "train", 50, 3)
    first, second = ({item.question for item in draw(spec, "train", 50, seed)} for seed in (3, 4))
    assert not first & second


def test_questions_are_distinct_and_splits_disjoint_across_seeds() -> None:
    spec = task(("a", 300, 1), ("b", 300, 1))
    questions: dict[str, list[str]] = {}
    for split, i in itertools.product(SPLITS, range(5)):
        questions.setdefault(split, []).extend(each.question for each in draw(spec, split, 30, i))
    for split, texts in questions.items():
        assert all(len(set(texts[i : i + 30])) == 30 for i in range(0, 150, 30))
        assert {split_of(text) for text in texts} == {split}


def test_split_shares_are_2_1_7_in_10_and_white_space_does_not_matter() -> None:
    counts = Counter(split_of(f"question {i}") for i in range(10_000))
    assert counts["test"] == pytest.approx(2000, abs=200)
    assert counts["validation"] == pytest.approx(1000, abs=150)
    assert split_of("What is\n 1 + 2? ") == split_of("What is 1 + 2?")


def test_weights_are_kept() -> None:
    drawn = draw(task(("a", 10**6, 3), ("b", 10**6, 1)), "train", 100, 0)
    assert Counter(item.row.name for item in drawn) == {"a": 75, "b": 25}


def test_a_light_row_is_met_now_and_then_in_small_draws() -> None:
    spec = task(("a", 10**6, 9), ("b", 10**6, 1))
    per_seed = [Counter(item.row.name for item in draw(spec, "train", 3, seed))["b"] for seed in range(60)]
    assert set(per_seed) == {0, 1}
    assert sum(per_seed) == pytest.approx(60 * 0.3, abs=10)


def test_a_small_row_leaves_its_share_to_the_others_and_gives_all_it_has() -> None:
    drawn = draw(task(("small", 30, 9), ("big", 10**6, 1)), "test", 100, 0)
    held = {text for i in range(30) if split_of(text := f"small {i}?") == "test"}
    assert {item.question for item in drawn if item.row.name == "small"} == held
    assert len({item.question for item in drawn}) == 100


@pytest.mark.parametrize("kind", ["counted", "finite"])
def test_draws_that_know_each_other_ask_all_of_a_row_before_any_of_it_again(kind: str) -> None:
    spec = task(("a", 20, 1), ("b", 10**6, 1), kind=kind)
    held = {text for i in range(20) if split_of(text := f"a {i}?") == "train"}
    asked: Asked = {}
    drawn = [draw(spec, "train", 4, seed, asked=asked) for seed in range(40)]
    assert all(len({each.question for each in some}) == 4 for some in drawn)
    of_a = [each.question for some in drawn for each in some if each.row.name == "a"]
    assert len(of_a) == 80  # the row keeps its share
    times = [Counter(of_a[:n]) for n in range(1, 81)]
    # Where one round ends and the next begins, a draw may hold what the new round will ask again.
    assert all(max(count.values()) - min(count.get(text, 0) for text in held) <= 2 for count in times)
    assert set(of_a[: len(held)]) == held


def test_a_draw_that_knows_of_no_other_is_what_it_was() -> None:
    spec = task(("a", 300, 1), ("b", 300, 1))
    asked: Asked = {}
    first = draw(spec, "train", 30, 0, asked=asked)
    assert first == draw(spec, "train", 30, 0)
    assert sum(map(len, asked.values())) == 30
    second = draw(spec, "train", 30, 1, asked=asked)
    assert not {each.question for each in first} & {each.question for each in second}
    assert {each.question for each in first} & {each.question for each in draw(spec, "train", 30, 1)}


@pytest.mark.parametrize("kind", ["counted", "finite"])
def test_too_few_questions_are_said(kind: str) -> None:
    spec = task(("a", 20, 1), kind=kind)
    held = sum(split_of(f"a {i}?") == "train" for i in range(20))
    assert len(draw(spec, "train", held, 0)) == held
    with pytest.raises(T2Error, match=f"demo has {held} different train questions, and 21 were") as error:
        draw(spec, "train", 21, 0)
    assert "fewer" in error.value.hint


def test_bad_arguments() -> None:
    spec = task(("a", 100, 1))
    assert draw(spec, "test", 0, 0) == []
    with pytest.raises(NotFoundError, match="no split named 'tests'") as error:
        draw(spec, "tests", 1, 0)
    assert error.value.hint == "did you mean test?"
    with pytest.raises(ValueError, match="negative"):
        draw(spec, "test", -1, 0)


def test_streams_start_far_apart() -> None:
    streams = itertools.product(range(-5, 30), SPLITS, ("a", "b"))
    seeds = sorted(stream_seed(*stream) for stream in streams)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert min(b - a for a, b in itertools.pairwise(seeds)) > 1000


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=6),
    st.integers(0, 500),
    st.floats(0, 1, exclude_max=True),
)
def test_apportion_rounds_each_share_up_or_down(weights: list[float], n: int, offset: float) -> None:
    shares = apportion(weights, n, offset)
    assert sum(shares) == n
    assert all(abs(share - n * w / sum(weights)) < 1 + 1e-6 for share, w in zip(shares, weights, strict=True))
    assert min(shares) >= 0


def test_apportion_is_right_on_average() -> None:
    shares = [apportion([5, 3, 2], 4, i / 100) for i in range(100)]
    assert [sum(column) for column in zip(*shares, strict=True)] == [200, 120, 80]
