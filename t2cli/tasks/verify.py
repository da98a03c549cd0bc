"""Rewards: is a completion right? Every rule is strict, 0 or 1, and cannot be met by naming many answers.

Each kind commits the completion to one answer (the last number, the first yes or no, one letter, one
word, one line) and compares that with the right one. Partial credit, as in reasoning-gym's
`score_answer`, would pay a policy for answers that are wrong. A new kind is one function and one row of
`REWARDS`. An empty completion is wrong under every kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple, Protocol

from t2cli.tasks.math_reward import math


class Reward(Protocol):
    """A rule that says whether `completion` gives `answer`.

    `candidates` are the answers a question offers, where a task names them; most kinds need none.
    """

    def __call__(self, answer: str, completion: str, candidates: Sequence[str] = ()) -> bool:
        """Tell whether the completion is right."""


# Hyphen, minus and their wide and small forms. The en dash serves as a minus too; the em dash never does.
_MINUS = re.compile("[\u2212\u2012\u2013\ufe63\uff0d]")
# LaTeX: 1{,}234 and 1\,234, and \frac{3}{4} or \frac34 in all its sizes, after a whole number as in 2\frac{1}{2}.
_LATEX_COMMA = re.compile(r"(?<=\d)(?:\{,\}|\\,|\u202f|\u2009|\u00a0)(?=\d)")
_LATEX_FRACTION = re.compile(
    r"(?:(\d)\s{0,3})?\\[dtc]?frac\s*(?:\{\s*(-?)\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}|([0-9])\s*([0-9]))"
)
# Digits inside a name (x2, H2O) or a unit's exponent (m^2, \text{cm}^{-2}) are no numbers. 300 digits are more than any
# answer has, and keep Python's limit on converting long integers out of reach.
_NUMBER = re.compile(
    r"""(?<![A-Za-z0-9]) (?<![A-Za-z}]\^) (?<![A-Za-z}]\^\{) (?<![A-Za-z}]\^-) (?<![A-Za-z}]\^\{-)
    (?P<body>
        [1-9][0-9]{0,2} (?:,[0-9]{3})+ (?!,?[0-9]) (?:\.[0-9]+)?    # 1,234,567.89
      | [0-9]+ (?:\.[0-9]+)? (?: [eE][+-]?[0-9]{1,2} (?![A-Za-z0-9]) )?    # 42, 3.14, 1e5
      | (?<![0-9]\.) \.[0-9]+    # .5
    )""",
    re.VERBOSE,
)
_FRACTION = re.compile(r"(?<![\d/.,])(?P<over>[0-9]{1,100})\s?/\s?(?P<under>[0-9]{1,100})(?![\d/.,]*\d)")
_WHOLE = re.compile(r"(?<![\w.,/^])([0-9]{1,9})[ ]$")  # of a mixed number: 2 1/2
_LONGEST = 300
# What may stand between a sign and its digits: a currency sign, for LaTeX with its backslash.
_CURRENCY = re.compile(r"\\?[$€£¥]\s?$")
_NEGATIVE_AFTER_EQUALS = re.compile(r"[={]\s*-\s*$")  # or after a brace: \boxed{ - 8 }
_NEGATIVE_WORD = re.compile(  # not in 10 minus 8, or x minus 8
    r"\b(?:negative|(?<![\d)\]}%]\s)(?<!\b[a-z]\s)minus)\s+$", re.IGNORECASE
)
_OPERATOR = re.compile(r"(?:[A-Za-z0-9)\]}%-]|[0-9][ \t]+)-$")


def extract_number(text: str, *, unreduced: bool = False) -> Fraction | None:
    r"""Return the last number of `text`, exactly, or None when it has none.

    Read: integers, decimals (also `.5`), `1e5`, thousands separated by commas (also LaTeX's `{,}` and
    `\,`), fractions `3/4` and `\frac{3}{4}` in lowest terms, and mixed numbers `2 1/2`. An unreduced
    fraction (`12/4`) is a calculation and not yet an answer, so only its last number counts; otherwise
    repeating the question would be rewarded; `unreduced` reads it, for what is known to be an answer.
    Units, currencies, `%`, Markdown, `\boxed{}` and final punctuation are passed over. Digits directly
    after a letter (`x2`) and a unit's exponent (`m^2`) are part of a name, not numbers.

    A minus (`-`, U+2212, an en dash) is a sign when it touches its number, or follows `=` or `{`, and no
    number, letter or closing bracket stands before it: `17-25` and `17 -25` end in 25, `= -8` in -8,
    and the bullet `- 8` in 8. So are the words "negative", and "minus" where no number stands before it.
    Of dates, times and lists the last number counts.
    """
    text = _LATEX_COMMA.sub(",", _MINUS.sub("-", text))
    text = _LATEX_FRACTION.sub(_plain_fraction, text)
    numbers = list(_NUMBER.finditer(text))
    if not numbers or len(numbers[-1]["body"]) > _LONGEST:
        return None
    last = numbers[-1]
    start, value = last.start(), Fraction(last["body"].replace(",", ""))
    for fraction in _FRACTION.finditer(text):
        over, under = int(fraction["over"]), int(fraction["under"])
        if fraction.end() != last.end() or under == 0:
            continue
        if unreduced or (under > 1 and Fraction(over, under).denominator == under):
            start, value = fraction.start(), Fraction(over, under)
            if over < under and (whole := _WHOLE.search(text, max(0, start - 16), start)):
                start, value = whole.start(), value + int(whole[1])
    return -value if _is_negative(text[max(0, start - 64) : start]) else value


def _plain_fraction(found: re.Match[str]) -> str:
    r"""Return a LaTeX fraction as `3/4`, set off from the whole number of a mixed one: `2 1/2` for `2\frac{1}{2}`."""
    whole, sign, over, under, digit, other = found.groups(default="")
    return f"{whole}{' ' if whole else ''}{sign}{over or digit}/{under or other}"


def _is_negative(before: str) -> bool:
    """Tell whether the text `before` a number ends in a minus that is a sign and not an operator."""
    before = _CURRENCY.sub("", before)
    if _NEGATIVE_AFTER_EQUALS.search(before) or _NEGATIVE_WORD.search(before):
        return True
    return before.endswith("-") and not _OPERATOR.search(before)


def number(answer: str, completion: str, candidates: Sequence[str] = ()) -> bool:
    """Tell whether the last number of the completion equals the answer exactly (see `extract_number`)."""
    expected = extract_number(answer, unreduced=True)
    if expected is None:
        raise ValueError(f"the right answer {answer!r} holds no number")
    return extract_number(completion) == expected


# Markdown's emphasis with underscores, which are word characters: _yes_ is emphasised, is_yes_ and _yes are names.
_UNDERSCORED = re.compile(r"(?<!\w)(_{1,3})(?![_\s])([^\n]{0,200}?[^_\s])\1(?!\w)")


def _without_underscores(text: str) -> str:
    return _UNDERSCORED.sub(r"\2", text)


_EITHER = re.compile(r"\b(?:yes\s*(?:or|/)\s*no|no\s*(?:or|/)\s*yes)\b", re.IGNORECASE)
# "No" before a noun is a quantifier ("No dogs are cats"); before these words it is an answer.
_YES_OR_NO = re.compile(
    r"""(?<!\w) (?<!\w-)
    (yes | no (?! [ \t]+ (?! (?:it|this|that|there|the|they|we|you|I|not|because|since|as)\b ) \w ))
    (?!\w|-\w)""",
    re.IGNORECASE | re.VERBOSE,
)


def yesno(answer: str, completion: str, candidates: Sequence[str] = ()) -> bool:
    """Tell whether the first "yes" or "no" of the completion, in any case, is the answer.

    A "no" that quantifies a noun ("No dogs are cats") and the phrase "yes or no" are passed over:
    both come from the question, and repeating it would pay more often than guessing.
    """
    found = _YES_OR_NO.search(_EITHER.sub(" ", _without_underscores(completion)))
    return found is not None and found[1].casefold() == answer.strip().casefold()


class _Choices(NamedTuple):
    """Patterns of a label: stated as the answer, stated as a choice, alone, or set off."""

    answers: re.Pattern[str]
    options: re.Pattern[str]
    alone: re.Pattern[str]
    marked: re.Pattern[str]


def _choice_patterns(one: str) -> _Choices:
    """Return the patterns; `one` are the characters of a label. Each has the label in one of its groups."""
    # A small letter is one too, but for the article: "answer: b", "(a)". Nor is "A plant" a choice, or one of "A or B".
    small = one.lower().replace("a", "")
    label = rf"(?:([{one}{small}])|(?<=\()(a)(?=\)))(?![\w'\u2019]|[.,]\d)"
    label += rf"(?!(?<=A)[ \t]+(?!(?:because|since|as|is|for|but|so)\b)[a-z])(?!\s*(?:,|/|&|or\b|and\b)\s*\(?[{one}]\b)"

    def stated(as_what: str) -> str:
        gap = r"[*_]{0,3}\s{0,3}"  # bounded: where several could share a long run of spaces, time would be its cube
        before = r"(?:\\boxed\{|\\text\{|[*_(\[\"'`$]){0,6}"
        return rf"(?i:\b(?:{as_what})){gap}(?i:is\b)?\s{{0,3}}:?{gap}{before}{label}"

    alone = rf"[\s*_(\[\"'`]*([{one}{one.lower()}])[\s*_)\]\"'`.:,!]*"
    marked = rf"""\(([{one}])\) | (?<!\w)([{one}])\) | \*\*([{one}])\*\* | \\boxed\{{(?:\\text\{{)?([{one}])\}}
    | ^\s*[*_\["']*([{one}])[*_"']*(?:[\].:,](?!\d)|\s*$)    # B. Paris"""
    return _Choices(
        re.compile(stated("answer")),
        re.compile(stated("option|choice")),
        re.compile(alone),
        re.compile(marked, re.VERBOSE | re.MULTILINE),
    )


_LETTERS, _LABELS = _choice_patterns("ABCDE"), _choice_patterns("ABCDE12345")


def choice(answer: str, completion: str, candidates: Sequence[str] = ()) -> bool:
    """Tell whether the completion chooses the letter (A to E) that is the answer.

    The choice is the first of these that is there: the letter that is the whole completion ("b.");
    the last letter stated as the answer ("The answer is B"); the last one named as a choice ("Option (B)");
    the only letter set off as "(B)", "B)", "**B**", `\\boxed{B}`, or at the start of a line as "B." or alone.
    A completion that sets off two different letters, or none, is wrong, and so is "A or B". The article
    "A" is no choice.

    Where the answer is a digit, 1 to 5, the question's choices are numbered: then "2" chooses as "B"
    does. Elsewhere a digit chooses nothing: "The answer is 3." may name what choice B says.
    """
    wanted = answer.strip(" ().").upper()
    patterns = _LABELS if wanted.isdigit() else _LETTERS
    chosen: str | None = None
    if alone := patterns.alone.fullmatch(completion):
        chosen = alone[1].upper()
    elif stated := patterns.answers.findall(completion) or patterns.options.findall(completion):
        chosen = "".join(stated[-1]).upper()
    else:
        marked = {_letter("".join(groups)) for groups in patterns.marked.findall(completion)}
        chosen = marked.pop() if len(marked) == 1 else None
    return chosen is not None and _letter(chosen) == _letter(wanted)


def _letter(label: str) -> str:
    """Return the letter of a choice; of one that has a number, the letter of that place."""
    return "ABCDE"["12345".index(label)] if label and label in "12345" else label


def exact(answer: str, completion: str, candidates: Sequence[str] = ()) -> bool:
    """Tell whether the completion, or its last line that is not blank, is the answer's text.

    Case, the amount of white space, Markdown emphasis or quotes around the text, and punctuation at
    its end make no difference; everything else does.
    """
    wanted = plain_text(answer)
    lines = [line for line in completion.splitlines() if line.strip()]
    return bool(wanted) and bool(lines) and wanted in (plain_text(completion), plain_text(lines[-1]))


def plain_text(text: str) -> str:
    """Return what `exact` compares of a text; "" where that is nothing, as of punctuation alone."""
    collapsed = " ".join(text.casefold().split())
    return collapsed.strip("*_`\"'\u201c\u201d\u2018\u2019 ").rstrip(".,;:!?*_`\"'\u201c\u201d\u2018\u2019 ")


def word(answer: str, completion: str, candidates: Sequence[str] = ()) -> bool:
    """Tell whether the answer is the only candidate that occurs in the completion.

    `candidates` are the words the question offers, such as the names in a story; the answer counts
    as one of them. They are matched as whole words and with their case, so "Aaron" is not found in
    "Aaron-James" and the name "Will" not in "will". "Chad is committed to pigs." is right where Chad
    is; repeating the story, or listing its names, is wrong whatever the answer. Of "water vapor" and
    "water", which are candidates of more than one word, "water vapor" holds the longer one alone.
    """
    offered = {answer, *candidates}
    text = completion if any("_" in each for each in offered) else _without_underscores(completion)
    return _held(text, offered) == {answer}


def term(answer: str, completion: str, candidates: Sequence[str] = ()) -> bool:
    """Tell whether the answer is the only one of the candidates that occurs in the completion, in any case.

    As `word`, for a fixed list of words that a question does not name, such as "father" and "father-in-law", and for
    the texts of choices.
    """
    return word(answer.lower(), completion.lower(), [each.lower() for each in candidates])


def _held(text: str, offered: set[str]) -> set[str]:
    """Return which of `offered` occur in the text, as whole words and not only as a part of a longer one."""
    spans = {
        each: [found.span() for found in re.finditer(rf"(?<!\w)(?<!\w[-'\u2019]){re.escape(each)}(?!\w|-\w)", text)]
        for each in offered
    }

    def stands_alone(start: int, end: int) -> bool:
        within = (a <= start and end <= b and (a, b) != (start, end) for found in spans.values() for a, b in found)
        return not any(within)

    return {each for each, found in spans.items() if any(stands_alone(*span) for span in found)}


def unit_tests(answer: str, completion: str, candidates: Sequence[str] = ()) -> bool:
    """Tell whether the completion's code passes the unit tests that are the answer, run in a sandbox.

    Raises T2Error where none works (t2cli.tasks.unit_tests, which also judges many at a time).
    """
    from t2cli.tasks.unit_tests import judge

    return judge([answer], [completion])[0].passed


REWARDS: Mapping[str, Reward] = {
    "number": number,
    "math": math,
    "yesno": yesno,
    "choice": choice,
    "exact": exact,
    "word": word,
    "term": term,
    "tests": unit_tests,
}
