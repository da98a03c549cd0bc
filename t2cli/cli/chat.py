"""t2 chat: answers by the experts that suit the question."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from t2cli.cli.chat_output import record, streamed
from t2cli.cli.chat_rows import LONGEST_LINE, lines_of
from t2cli.cli.dispatch_options import Soft, Threshold, dispatch_config
from t2cli.cli.mix_search import chat_examples, few_shot_strategy
from t2cli.cli.options import (
    DEFAULT_BASE,
    AllowForeign,
    AsExpert,
    AsReward,
    Base,
    Device,
    Examples,
    Json,
    Quiet,
    RegistryPath,
    Seed,
)
from t2cli.cli.output import Output
from t2cli.errors import UsageError

if TYPE_CHECKING:
    from t2cli.config import DispatchConfig, SamplingConfig
    from t2cli.dispatch.decision import Strategy
    from t2cli.dispatch.examples import FewShot
    from t2cli.dispatch.two_pass import TwoPass

    Answers = Callable[[TwoPass, Strategy, SamplingConfig], None]

OptionalText = Optional[str]  # noqa: UP045

Adapt = Annotated[
    Literal["auto", "classifier", "prompt", "few-shot", "none"],
    typer.Option(
        "--adapt",
        help="Who chooses: pass 1 by a trained dispatcher (classifier) or by the base itself (prompt), of these the"
        " better one there is (auto), a mix searched with --examples, or nobody.",
    ),
]
Mix = Annotated[str, typer.Option("--mix", metavar="A:0.6,B:0.4", help="Answer as this mix of experts; no pass 1.")]
Jsonl = Annotated[
    bool, typer.Option("--jsonl", help="Each line of standard input is an object; answers in batches, as --json.")
]
AT_A_TIME = 32  # questions of --jsonl
Batch = Annotated[
    int | None,
    typer.Option(
        "--batch", metavar="N", min=1, help="With --jsonl: questions answered at a time.", show_default=str(AT_A_TIME)
    ),
]
Done = Annotated[
    Path | None,
    typer.Option("--done", metavar="FILE", help="With --jsonl: output of an earlier run; its ids are left out."),
]
NoHistory = Annotated[
    bool, typer.Option("--no-history", help="At a terminal: neither read nor keep the history of what was typed.")
]


def chat(
    prompt: Annotated[
        OptionalText, typer.Argument(metavar="PROMPT", help="What to answer; without it, standard input is read.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = 0.0,
    adapt: Adapt = "auto",
    threshold: Threshold = None,
    soft: Soft = False,
    examples: Examples = "",
    reward: AsReward = "",
    expert: AsExpert = "",
    mix: Mix = "",
    jsonl: Jsonl = False,
    batch: Batch = None,
    done: Done = None,
    no_history: NoHistory = False,
    allow_foreign: AllowForeign = False,
    base: Base = DEFAULT_BASE,
    registry: RegistryPath = None,
    device: Device = "auto",
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer questions, each with the experts that suit it.

    Pass 1 looks at the question and chooses an expert, or none; pass 2 answers with it. From a pipe,
    each line is a question and each answer one line (--json keeps its line breaks). At a terminal it
    is a conversation: Ctrl-C stops an answer, Ctrl-D ends it, /help shows its commands.
    """
    out = Output(json=json or jsonl, quiet=quiet)
    weights = by_hand(expert, mix)
    few_shot = chat_examples(adapt, examples, reward, by_hand=bool(weights))
    config = dispatch_config(threshold, soft, adapt, by_hand=bool(weights))
    _check(prompt, temperature, jsonl, batch, done)
    source = _source(out, prompt, batch or AT_A_TIME if jsonl else None, done)
    from t2cli.cli.session import open_two_pass
    from t2cli.config import SamplingConfig

    two_pass = open_two_pass(base, registry, device=device, allow_foreign=allow_foreign, quiet=quiet)
    strategy = _strategy(out, two_pass, adapt, config, weights, few_shot, seed)
    sampling = SamplingConfig(max_new_tokens, temperature, seed)
    if source is not None:
        source(two_pass, strategy, sampling)
    else:
        from t2cli.cli.chat_session import Conversation, hold

        hold(Conversation(out, two_pass, strategy, sampling, adapt, config), keep_history=not no_history)


def _source(out: Output, prompt: str | None, batch: int | None, done: Path | None) -> Answers | None:
    """Return what answers the questions there are, None for a person at a terminal; `batch` is given for --jsonl.

    Raises UsageError where standard input holds no question: no model is loaded for that.
    """
    if batch is not None:
        from t2cli.cli.chat_jsonl import Rows, answer_rows

        return partial(answer_rows, out, Rows(out, batch, done))
    if prompt is not None:
        from t2cli.dispatch.conversation import readable

        return partial(single, out, readable(prompt))  # an argument's bytes may be no UTF-8
    if sys.stdin is not None and sys.stdin.isatty():
        return None
    return partial(piped, out, _first_line_read(out, _lines()))


def _check(prompt: str | None, temperature: float, jsonl: bool, batch: int | None, done: Path | None) -> None:
    """Raise UsageError for options that cannot work, before a model is loaded."""
    if not math.isfinite(temperature):
        raise UsageError("--temperature must be a finite number", hint="0 is greedy, 1 is the model's own variety")
    if prompt is not None and not prompt.strip():
        raise UsageError("the prompt is empty", hint='ask something, as in: t2 chat "What is 17 + 25?"')
    if prompt is not None and jsonl:
        raise UsageError("--jsonl reads standard input, and a prompt was given", hint="give one of them")
    if done is not None and not jsonl:
        raise UsageError("--done belongs to --jsonl", hint="add --jsonl, or leave --done out")
    if batch is not None and not jsonl:
        raise UsageError("--batch belongs to --jsonl", hint="add --jsonl, or leave --batch out")


def _strategy(
    out: Output,
    two_pass: TwoPass,
    adapt: str,
    config: DispatchConfig,
    weights: dict[str, float],
    examples: list[FewShot],
    seed: int,
) -> Strategy:
    """Return who chooses: a search on examples where there are any, the user's weights, or the strategy `adapt`.

    Warns of what is wrong with the registry, and of experts that are not the base's own.
    """
    from t2cli.dispatch.renewed import renewed

    if examples:
        strategy = few_shot_strategy(out, two_pass, examples, seed)
    elif weights:
        strategy = two_pass.by_hand(weights)
    else:
        strategy = renewed(lambda: two_pass.strategy(adapt, config), two_pass.resolver, out.warn)
    for warning in (*(problem.message for problem in two_pass.registry.problems), *two_pass.resolver.new_warnings()):
        out.warn(warning)
    return strategy


def by_hand(expert: str, mix: str) -> dict[str, float]:
    """Return the experts chosen by --expert or --mix. Raises UsageError for both."""
    from t2cli.cli.mix import parse_weights

    if expert and mix:
        raise UsageError("--expert and --mix exclude each other", hint="name the expert inside the mix: --mix A:1")
    if expert:
        return {expert: 1.0}
    if not mix:
        return {}
    members = [part.strip() for part in mix.split(",") if part.strip()]
    if not members:
        raise UsageError("--mix names no expert", hint="write it as in --mix math:0.6,reasoning:0.4")
    return parse_weights(members)


def _lines() -> Iterator[tuple[int, str]]:
    """Yield the lines of standard input with their numbers; bytes that are no UTF-8 are replaced.

    Raises UsageError for a line that no model reads: one without an end would fill the memory.
    """
    for number, line in lines_of(sys.stdin.buffer) if sys.stdin is not None else ():
        if line is None:
            raise UsageError(
                f"line {number} is longer than {LONGEST_LINE >> 20} MB", hint="a question per line, each with an end"
            )
        text = line.decode("utf-8", errors="replace")
        yield number, (text.removeprefix("\ufeff") if number == 1 else text).strip()  # a byte order mark is no question


def _first_line_read(out: Output, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Answer the blank lines before the first question, and return what follows.

    Raises UsageError if there is no question: no model is loaded for that.
    """
    import itertools

    for number, line in lines:
        if line:
            return itertools.chain([(number, line)], lines)
        _answer_blank(out, number)
    raise UsageError("standard input holds no question", hint='pipe a line into it: echo "What is 17 + 25?" | t2 chat')


def _answer_blank(out: Output, number: int) -> None:
    out.warn(f"line {number} is empty")
    out.data("")


def single(out: Output, prompt: str, two_pass: TwoPass, strategy: Strategy, sampling: SamplingConfig) -> None:
    """Answer one prompt as it is."""
    messages = [{"role": "user", "content": prompt}]
    out.emit("chat", record(None, streamed(out, two_pass, messages, strategy.decide(messages), sampling)))


def piped(
    out: Output,
    questions: Iterator[tuple[int, str]],
    two_pass: TwoPass,
    strategy: Strategy,
    sampling: SamplingConfig,
) -> None:
    """Answer line by line: one line each, in their order; a blank line gives a blank line."""
    from t2cli.dispatch.renewed import still_there

    for number, question in questions:
        if not question:
            _answer_blank(out, number)
            continue
        messages = [{"role": "user", "content": question}]
        try:
            decision = still_there(two_pass.resolver, strategy).decide(messages)
            answer = streamed(out, two_pass, messages, decision, sampling, one_line=True)
        except UsageError as error:
            raise UsageError(f"line {number}: {error.message}", hint=error.hint) from error
        out.emit("chat", record(number, answer))
