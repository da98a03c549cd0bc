"""The examples of a few-shot search: questions with right answers, one JSON object per line.

    {"prompt": "What is 3 + 4?", "answer": "7"}
    {"messages": [{"role": "user", "content": "Is ice cold?"}], "answer": "yes", "reward": "yesno"}

How an answer is judged (t2cli.tasks.verify), where neither the line nor the caller says: a number as `number`; the
other answers as `yesno` where each is yes or no, as `choice` where each is a letter from A to E, else as `exact`.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from t2cli.dispatch.conversation import chat_of, readable
from t2cli.dispatch.decision import Messages
from t2cli.errors import NotFoundError, T2Error, UsageError
from t2cli.lookup import near_matches
from t2cli.paths import expanded
from t2cli.tasks.verify import REWARDS

FEWEST = 4  # two to search with and two to hold out
SEARCHED = 16  # at most; a search asks each of them hundreds of times, and one held out as often as there are rivals
LARGEST = 16 << 20  # bytes; examples are few
KEYS = ("prompt", "messages", "answer", "reward")

_NUMBER = re.compile(r"[-+\u2212]?\s?[$€£¥]?\s?(\d[\d,]*\.?\d*|\.\d+)(\s?/\s?\d+|[eE][-+]?\d+)?\s?%?")
_YESNO = re.compile(r"yes|no", re.IGNORECASE)
_CHOICE = re.compile(r"\(?[A-E][).]?")


class Shot(Protocol):
    """What a search needs of an example: a chat, the right answer as the model would write it, and a judge."""

    @property
    def messages(self) -> Messages: ...  # noqa: D102
    @property
    def answer(self) -> str: ...  # noqa: D102
    @property
    def line(self) -> int: ...  # noqa: D102

    def is_right(self, completion: str) -> bool:
        """Tell whether a completion gives the right answer."""


AnyShot = TypeVar("AnyShot", bound=Shot)


@dataclass(frozen=True)
class FewShot:
    """A chat to be answered, the right answer, a row of REWARDS that judges, and the line it was read from."""

    messages: Messages
    answer: str
    reward: str
    line: int

    def is_right(self, completion: str) -> bool:
        """Tell whether a completion gives the right answer."""
        return REWARDS[self.reward](self.answer, completion)


def read_examples(path: str, reward: str = "") -> list[FewShot]:
    """Return the examples in a file of JSON lines, judged by `reward` where their line names none; "" means guess.

    Blank lines are skipped and a repeated line counts once. Raises NotFoundError for a missing file, and UsageError,
    naming the line, for one that is no example, for two answers to one question, and for fewer than four examples.
    """
    file = expanded(path)
    try:
        if not file.is_file():
            hint = 'one JSON object per line: {"prompt": ..., "answer": ...}'
            raise NotFoundError(f"{path} is a folder" if file.is_dir() else f"there is no file {path}", hint=hint)
        if file.stat().st_size > LARGEST:
            raise UsageError(f"{path} is larger than {LARGEST >> 20} MiB", hint="a few dozen examples are enough")
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no UTF-8 text", hint="save it as UTF-8") from error
    except OSError as error:
        raise T2Error(f"{path} could not be read: {error.strerror or error}", hint="check its permissions") from error
    if reward:
        _check_reward(reward, "--reward")
    read = [_example(text, f"{path}, line {n}", n) for n, text in enumerate(lines, start=1) if text.strip()]
    examples = [_judged(example, path) for example in _with_rewards(_different(read, path), reward)]
    if len(examples) < FEWEST:
        raise UsageError(
            f"{path} has {len(examples)} different examples, and at least {FEWEST} are needed",
            hint="a part of them chooses the mix, the others say how good it is",
        )
    return examples


def divided(examples: Sequence[AnyShot], seed: int) -> tuple[list[AnyShot], list[AnyShot]]:
    """Return the examples to search with, at random one half but at most SEARCHED, and those to hold out."""
    order = random.Random(seed).sample(range(len(examples)), len(examples))  # noqa: S311 - no secret
    n = min((len(examples) + 1) // 2, SEARCHED)
    return [examples[i] for i in sorted(order[:n])], [examples[i] for i in sorted(order[n:])]


def _example(text: str, where: str, line: int) -> FewShot:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is no JSON: {error}", hint='write {"prompt": ..., "answer": ...}') from error
    if not isinstance(record, dict):
        raise UsageError(f"{where} is no JSON object", hint='write {"prompt": ..., "answer": ...}')
    if unknown := sorted(set(record) - set(KEYS)):
        raise UsageError(f"{where} has the unknown key {unknown[0][:80]!r}", hint=f"known: {', '.join(KEYS)}")
    try:
        messages = chat_of(record)
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", hint=error.hint) from error
    answer = record.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise UsageError(f"{where}: answer must be a text or a number that is not empty", hint="one right answer each")
    reward = record.get("reward", "")
    if reward != "":
        _check_reward(reward, where)
    return FewShot(messages, readable(answer.strip()), reward, line)


def _check_reward(reward: object, where: str) -> None:
    if not isinstance(reward, str) or reward not in REWARDS:
        raise UsageError(f"{where}: there is no reward {str(reward)[:80]!r}", hint=near_matches(str(reward), REWARDS))


def _different(examples: Iterable[FewShot], path: str) -> list[FewShot]:
    """Return the examples with every question once: a repeated one would be searched with and held out."""
    first: dict[str, FewShot] = {}
    for example in examples:
        known = first.setdefault(json.dumps(example.messages, sort_keys=True), example)
        if (known.answer, known.reward) != (example.answer, example.reward):
            raise UsageError(
                f"{path}, lines {known.line} and {example.line} ask the same and differ in the answer or its reward",
                hint="keep one of them",
            )
    return list(first.values())


def _with_rewards(examples: Sequence[FewShot], reward: str) -> list[FewShot]:
    """Return the examples, each with the reward that judges it."""
    texts = [example.answer for example in examples if not example.reward and not _NUMBER.fullmatch(example.answer)]
    text_reward = "exact"
    if texts and all(_YESNO.fullmatch(text) for text in texts):
        text_reward = "yesno"
    elif texts and all(_CHOICE.fullmatch(text) for text in texts):
        text_reward = "choice"
    return [
        replace(
            example,
            reward=example.reward or reward or ("number" if _NUMBER.fullmatch(example.answer) else text_reward),
        )
        for example in examples
    ]


def _judged(example: FewShot, path: str) -> FewShot:
    """Return the example if its answer can be judged at all."""
    try:
        example.is_right("")
    except ValueError as error:
        raise UsageError(
            f"{path}, line {example.line}: {error}", hint="choose another reward, or correct the answer"
        ) from error
    return example
