"""Small programming questions with hidden unit tests, made without end from a table of families.

A family is a task in words with parameters ("returns {x} plus {k}"), a right function, and arguments to try it on.
Names of functions, variables, numbers and words vary, so that a family has thousands of different questions. The
tests are calls with random arguments and what the right function returns for them. They are drawn until no shortcut
passes: not a constant, not one of the arguments, and for yes-or-no questions neither answer alone.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from t2cli.lookup import require
from t2cli.tasks.sampling import Item

if TYPE_CHECKING:
    from t2cli.tasks.spec import Row, TaskSpec

MOST_DRAWS = 10_000  # of arguments for one suite
TESTS = 6  # calls in a suite
FEWEST_VALUES = 3  # different returned values in a suite; 2 where there are only two

VERBS = ("get", "find", "make", "compute", "calc", "give", "build", "solve", "run", "take", "show", "work")
NOUNS = ("value", "result", "answer", "output", "one", "it", "this", "out", "res", "val", "new", "final")
NUMBERS = ("x", "n", "a", "num", "value", "number", "k", "m", "y", "i")
PAIRS = (("a", "b"), ("x", "y"), ("m", "n"), ("p", "q"), ("first", "second"), ("left", "right"))
LISTS = ("items", "numbers", "values", "nums", "xs", "data", "lst", "arr", "seq", "elements")
TEXTS = ("s", "text", "word", "string", "name", "line", "t", "phrase", "title", "label")
WORDS = (
    *("apple", "banana", "cherry", "stone", "river", "cloud", "tiger", "lemon", "paper", "table", "garden", "window"),
    *("silver", "orange", "mountain", "yellow", "letter", "winter", "summer", "button", "pepper", "monkey", "candle"),
    *("rabbit", "bottle", "hammer", "castle", "pencil", "circle", "planet"),
)

Value = int | str | bool | list[int] | list[str]
Make = Callable[[random.Random], tuple[Value, ...]]


@dataclass(frozen=True)
class Family:
    """One kind of question.

    `wordings` say what is returned, with the arguments' names in {x} and {y}, and the parameters {k} and {w} in them.
    `right` gets the parameters k and w, then the arguments.
    """

    wordings: tuple[str, ...]
    right: Callable[..., Value]
    arguments: Make
    names: tuple[str, ...] | tuple[tuple[str, str], ...]
    k: tuple[int, int] = (0, 0)
    words: tuple[str, ...] = ("",)


def _number(rng: random.Random) -> tuple[Value, ...]:
    return (rng.randint(-20, 60),)


def _two(rng: random.Random) -> tuple[Value, ...]:
    return rng.randint(-20, 40), rng.randint(-20, 40)


def _list(rng: random.Random) -> tuple[Value, ...]:
    return ([rng.randint(-9, 30) for _ in range(rng.randint(5, 9))],)


def _dense(rng: random.Random) -> tuple[Value, ...]:
    return ([rng.randint(0, 6) for _ in range(rng.randint(5, 12))],)


def _text(rng: random.Random) -> tuple[Value, ...]:
    return (" ".join(rng.sample(WORDS, rng.randint(1, 3))),)


def _words(rng: random.Random) -> tuple[Value, ...]:
    return (rng.sample(WORDS, rng.randint(2, 5)),)


def _of_number(*wordings: str, right: Callable[..., Value], k: tuple[int, int] = (2, 30)) -> Family:
    return Family(wordings, right, _number, NUMBERS, k)


def _of_two(*wordings: str, right: Callable[..., Value], k: tuple[int, int] = (2, 12)) -> Family:
    return Family(wordings, right, _two, PAIRS, k)


def _of_list(
    *wordings: str, right: Callable[..., Value], k: tuple[int, int] = (2, 9), arguments: Make = _list
) -> Family:
    return Family(wordings, right, arguments, LISTS, k)


def _of_text(
    *wordings: str,
    right: Callable[..., Value],
    k: tuple[int, int] = (2, 5),
    words: tuple[str, ...] = ("",),
    arguments: Make = _text,
) -> Family:
    return Family(wordings, right, arguments, TEXTS, k, words)


_LETTERS = tuple("aeinorst")
_JOINTS = ("-", "_", "/", "+", ", ", " ")

# What the default base gets right nearly always ("x > 3", "the length of") leaves nothing to learn and was left out;
# code.yaml chooses among the rest.
FAMILIES: Mapping[str, Family] = {
    "add": _of_number("{x} plus {k}", "the sum of {x} and {k}", right=lambda k, w, x: x + k),
    "subtract_from": _of_number("{k} minus {x}", right=lambda k, w, x: k - x),
    "multiply": _of_number("{x} times {k}", "the product of {x} and {k}", right=lambda k, w, x: x * k),
    "double_plus": _of_number("two times {x} plus {k}", "{k} plus twice {x}", right=lambda k, w, x: 2 * x + k),
    "square_plus": _of_number("the square of {x} plus {k}", right=lambda k, w, x: x * x + k),
    "remainder": _of_number(
        "the remainder of {x} divided by {k}", "{x} modulo {k}", right=lambda k, w, x: x % k, k=(3, 30)
    ),
    "quotient": _of_number(
        "{x} divided by {k}, rounded down",
        "the integer quotient of {x} and {k}",
        right=lambda k, w, x: x // k,
        k=(2, 9),
    ),
    "at_least": _of_number("the larger of {x} and {k}", right=lambda k, w, x: max(x, k)),
    "distance": _of_number("the absolute difference of {x} and {k}", right=lambda k, w, x: abs(x - k)),
    "cube": _of_number("the cube of {x} minus {k}", right=lambda k, w, x: x**3 - k),
    "larger": _of_two("the larger of {x} and {y}", "the maximum of {x} and {y}", right=lambda k, w, x, y: max(x, y)),
    "smaller": _of_two("the smaller of {x} and {y}", "the minimum of {x} and {y}", right=lambda k, w, x, y: min(x, y)),
    "sum_two": _of_two("the sum of {x} and {y} plus {k}", "{x} plus {y} plus {k}", right=lambda k, w, x, y: x + y + k),
    "weighted": _of_two("{x} plus {k} times {y}", right=lambda k, w, x, y: x + k * y),
    "product_two": _of_two("the product of {x} and {y}, minus {k}", right=lambda k, w, x, y: x * y - k),
    "squares_two": _of_two("the sum of the squares of {x} and {y}", right=lambda k, w, x, y: x * x + y * y),
    "total": _of_list(
        "the sum of the list {x}", "the total of all numbers in the list {x}", right=lambda k, w, x: sum(x)
    ),
    "total_plus": _of_list("the sum of the list {x} plus {k}", right=lambda k, w, x: sum(x) + k, k=(2, 30)),
    "count": _of_list(
        "how often {k} occurs in the list {x}",
        "the count of {k} in the list {x}",
        right=lambda k, w, x: x.count(k),
        k=(0, 6),
        arguments=_dense,
    ),
    "first": _of_list("the first element of the list {x}", right=lambda k, w, x: x[0]),
    "last": _of_list("the last element of the list {x}", right=lambda k, w, x: x[-1]),
    "at": _of_list("the element of the list {x} at index {k}", right=lambda k, w, x: x[k], k=(0, 4)),
    "head": _of_list("the first {k} elements of the list {x}", right=lambda k, w, x: x[:k], k=(2, 4)),
    "tail": _of_list("the last {k} elements of the list {x}", right=lambda k, w, x: x[-k:], k=(2, 4)),
    "reverse_list": _of_list("the list {x} reversed", "the list {x} in reverse order", right=lambda k, w, x: x[::-1]),
    "sort": _of_list("the list {x} sorted", "the list {x} in ascending order", right=lambda k, w, x: sorted(x)),
    "sort_down": _of_list("the list {x} sorted in descending order", right=lambda k, w, x: sorted(x, reverse=True)),
    "sum_squares": _of_list("the sum of the squares of the list {x}", right=lambda k, w, x: sum(i * i for i in x)),
    "filter_above": _of_list(
        "the elements of the list {x} that are greater than {k}",
        right=lambda k, w, x: [i for i in x if i > k],
        k=(2, 15),
    ),
    "evens": _of_list("the even numbers in the list {x}", right=lambda k, w, x: [i for i in x if i % 2 == 0]),
    "scale": _of_list(
        "a list of every element of {x} times {k}",
        "the list {x} with each element multiplied by {k}",
        right=lambda k, w, x: [i * k for i in x],
    ),
    "shift": _of_list(
        "a list of every element of {x} plus {k}",
        "the list {x} with {k} added to each element",
        right=lambda k, w, x: [i + k for i in x],
        k=(2, 30),
    ),
    "largest": _of_list(
        "the largest number in the list {x}", "the maximum of the list {x}", right=lambda k, w, x: max(x)
    ),
    "smallest": _of_list(
        "the smallest number in the list {x}", "the minimum of the list {x}", right=lambda k, w, x: min(x)
    ),
    "spread": _of_list("the maximum minus the minimum of the list {x}", right=lambda k, w, x: max(x) - min(x)),
    "contains": _of_list(
        "whether {k} is in the list {x}",
        "True if the list {x} contains {k}",
        right=lambda k, w, x: k in x,
        k=(0, 6),
        arguments=_dense,
    ),
    "repeat": _of_text("{x} repeated {k} times", "the string {x} repeated {k} times", right=lambda k, w, x: x * k),
    "reverse_text": _of_text("the string {x} reversed", "the string {x} backwards", right=lambda k, w, x: x[::-1]),
    "count_letter": _of_text(
        "how often '{w}' occurs in the string {x}",
        "the number of '{w}' in the string {x}",
        right=lambda k, w, x: x.count(w),
        words=_LETTERS,
    ),
    "prefix": _of_text("the first {k} characters of the string {x}", right=lambda k, w, x: x[:k]),
    "suffix": _of_text("the last {k} characters of the string {x}", right=lambda k, w, x: x[-k:]),
    "append": _of_text(
        "the string {x} with '{w}' added at the end",
        "the string {x} followed by '{w}'",
        right=lambda k, w, x: x + w,
        words=tuple(WORDS),
    ),
    "prepend": _of_text("'{w}' followed by the string {x}", right=lambda k, w, x: w + x, words=tuple(WORDS)),
    "replace": _of_text(
        "the string {x} with every '{w}' replaced by '*'", right=lambda k, w, x: x.replace(w, "*"), words=_LETTERS
    ),
    "text_length": _of_text("the length of the string {x} plus {k}", right=lambda k, w, x: len(x) + k, k=(1, 20)),
    "word_count": _of_text(
        "the number of words in the string {x} plus {k}", right=lambda k, w, x: len(x.split()) + k, k=(1, 20)
    ),
    "join": Family(
        ("the words in the list {x} joined with '{w}'", "the list of strings {x} joined by '{w}'"),
        lambda k, w, x: w.join(x),
        _words,
        LISTS,
        words=_JOINTS,
    ),
}


def source(spec: TaskSpec) -> Programs:
    """Return the source of a task whose rows name families."""
    for row in spec.mixture:
        require(row.dataset, FAMILIES, "family of programs")
    return Programs()


class Programs:
    """Questions that are made without end."""

    finite = False

    def stream(self, row: Row, split: str, seed: int) -> Iterator[Item]:
        """Yield questions of a row, whatever their split; the answer is the tests (t2cli.tasks.unit_tests)."""
        rng = random.Random(seed)  # noqa: S311
        return (question(FAMILIES[row.dataset], rng) for _ in itertools.count())

    def origin(self) -> list[dict[str, str]]:
        """Return no files: the task's mixture says it all."""
        return []


def question(family: Family, rng: random.Random) -> Item:
    """Return a question of `family` and its hidden tests."""
    function = f"{rng.choice(VERBS)}_{rng.choice(NOUNS)}"
    chosen = rng.choice(family.names)
    names = (chosen,) if isinstance(chosen, str) else chosen
    k, w = rng.randint(*family.k), rng.choice(family.words)
    variables: dict[str, object] = {**dict(zip("xy", names, strict=False)), "k": k, "w": w}
    what = rng.choice(family.wordings).format(**variables)
    calls = hidden_calls(family, k, w, rng)
    tests = [f"assert {function}({', '.join(map(repr, arguments))}) == {value!r}" for arguments, value in calls]
    return Item(f"Write a Python function {function}({', '.join(names)}) that returns {what}.", "\n".join(tests))


def hidden_calls(family: Family, k: int, w: str, rng: random.Random) -> list[tuple[tuple[Value, ...], Value]]:
    """Return arguments and the values they must give; drawn anew until no shortcut would pass.

    Raises ValueError for a family whose arguments leave no other way.
    """
    for _ in range(MOST_DRAWS):
        calls = []
        for _ in range(TESTS):
            arguments = family.arguments(rng)
            calls.append((arguments, family.right(k, w, *arguments)))
        if not has_shortcut(calls):
            return calls
    raise ValueError(f"the parameters {k} and {w!r} leave no tests without a shortcut")


def has_shortcut(calls: list[tuple[tuple[Value, ...], Value]]) -> bool:
    """Tell whether a constant or one of the arguments is right too often to show that a function is right."""
    values = [repr(value) for _, value in calls]
    if set(values) <= {"True", "False"}:
        return min(values.count("True"), values.count("False")) < len(values) // 3
    if len(set(values)) < FEWEST_VALUES:
        return True
    positions = range(len(calls[0][0]))
    return any(sum(arguments[i] == value for arguments, value in calls) > len(calls) - 2 for i in positions)
