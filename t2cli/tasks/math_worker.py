"""The process behind t2cli.tasks.math_reward: a JSON line [answer, completion, question] in, "true" or "false" out."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import sys
from typing import Any

MEMORY = 2 << 30  # bytes of address space
SECONDS = 2  # math-verify's own limit for each step: reading both formulas, comparing them


def main() -> None:
    """Judge answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints must not answer for us
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows; a limit that is lower already
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    import math_verify  # noqa: F401 - before "ready": it takes a second

    logging.disable()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        answer, completion, question = json.loads(line)
        try:
            right = same(answer, completion, question)
        except Exception:  # a parser met what it was not made for: any class, MemoryError and RecursionError too
            right = False
        print(json.dumps(right), file=answers, flush=True)


def same(answer: str, completion: str, question: str = "") -> bool:
    """Tell whether the completion's final formula means the same as the LaTeX `answer`, and is not only the question.

    math-verify would calculate what the question asks for: "Compute $1+2+3$." would be an answer to itself.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    said = final(completion)
    if not said:
        return False
    if plain(said) == plain(answer):  # also names, as in \text{Evelyn}
        return True
    if is_calculation(plain(said), plain(answer), plain(question)):
        return False
    gold = _gold(answer)
    target = parse(f"${said}$", [LatexExtractionConfig()], parsing_timeout=SECONDS)
    return bool(gold) and bool(verify(gold, target, timeout_seconds=SECONDS))


_NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?|\\frac\{\d+\}\{\d+\})")
_OPERATORS = re.compile(r"[+*!]|\\(?:times|cdot|div|[dt]?binom|sum|prod)(?![a-z])|\d-\d|\)\(|\)-|-\(")


def is_calculation(said: str, answer: str, question: str) -> bool:
    """Tell whether a formula is still to be worked out: a part of the question, or sums and products for a number.

    All three are `plain`.
    """
    if _NUMBER.fullmatch(said):
        return False
    return said in question or (_NUMBER.fullmatch(answer) is not None and _OPERATORS.search(said) is not None)


@functools.lru_cache(maxsize=4096)
def _gold(answer: str) -> Any:
    from math_verify import LatexExtractionConfig, parse

    return parse(f"${answer.strip().strip('$')}$", [LatexExtractionConfig()], parsing_timeout=SECONDS)


# Amounts of money are no formula: "$5, so two cost $10". White space is inside of both dollars or of none, and no digit
# follows the second.
_FORMULA = re.compile(
    r"""\$\$(.+?)\$\$ | \$(?!\s)([^$\n]+)(?<!\s)\$(?!\d) | \$[ \t]([^$\n]+)[ \t]\$(?![ \t]?\d)
    | \\\((.+?)\\\) | \\\[(.+?)\\\]""",
    re.DOTALL | re.VERBOSE,
)
_BEFORE_ANSWER = re.compile(r"(?<!\d):|:(?!\d)|\bis\b")  # not the colon of 3:4


def final(completion: str) -> str:
    r"""Return the one formula that a completion ends in: the last `\boxed{}`, else the last one.

    Without LaTeX's marks: what follows the last "=", ":" or "is" of the last line. Many answers are one long formula,
    which means something else than any of them.
    """
    if (start := completion.rfind("\\boxed{")) >= 0:
        return _braced(completion[start + len("\\boxed{") :])
    formulas = _FORMULA.findall(completion)
    lines = [line for line in completion.splitlines() if line.strip()]
    text = "".join(formulas[-1]) if formulas else lines[-1] if lines else ""
    if not formulas:
        text = _BEFORE_ANSWER.split(text)[-1]
    return text.rpartition("=")[2].strip("*`$ \t").rstrip(".,;*`$ \t")


def _braced(text: str) -> str:
    """Return `text` up to the brace that closes it; "" if none does."""
    depth = 1
    for position, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[:position].strip()
    return ""


def plain(text: str) -> str:
    r"""Return LaTeX without what changes no meaning: white space, `\left`, `\text{}`, `$`."""
    text = re.sub(r"\\(?:left|right|,|;|!|:| )", "", text.strip().strip("$"))
    text = re.sub(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\s+", "", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))


if __name__ == "__main__":
    main()
