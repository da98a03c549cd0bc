"""t2 chat: answers by the experts that suit the question."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

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
    from t2cli.config import SamplingConfig
    from t2cli.dispatch.decision import Decision, Messages, Strategy
    from t2cli.dispatch.examples import FewShot
    from t2cli.dispatch.two_pass import Answer, TwoPass

OptionalText = Optional[str]  # noqa: UP045


def chat(
    prompt: Annotated[
        OptionalText, typer.Argument(metavar="PROMPT", help="What to answer; without it, standard input is read.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = 0.0,
    adapt: Annotated[
        Literal["prompt", "few-shot", "none"],
        typer.Option("--adapt", help="Who chooses: pass 1, a mix searched with --examples, or nobody."),
    ] = "prompt",
    examples: Examples = "",
    reward: AsReward = "",
    expert: AsExpert = "",
    mix: Annotated[
        str, typer.Option("--mix", metavar="A:0.6,B:0.4", help="Answer as this mix of experts; no pass 1.")
    ] = "",
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
    is a conversation: Ctrl-C stops an answer, Ctrl-D ends it.
    """
    out = Output(json=json, quiet=quiet)
    weights = _by_hand(expert, mix)
    few_shot = chat_examples(adapt, examples, reward, by_hand=bool(weights))
    _check(prompt, temperature)
    at_terminal = sys.stdin is not None and sys.stdin.isatty()
    questions = None if prompt is not None or at_terminal else _first_line_read(_lines())
    from t2cli.cli.session import open_two_pass
    from t2cli.config import SamplingConfig

    two_pass = open_two_pass(base, registry, device=device, allow_foreign=allow_foreign, quiet=quiet)
    strategy = _strategy(out, two_pass, adapt, weights, few_shot, seed)
    for warning in (*(problem.message for problem in two_pass.registry.problems), *two_pass.resolver.warnings):
        out.warn(warning)
    session = _Session(out, two_pass, strategy, SamplingConfig(max_new_tokens, temperature, seed))
    if prompt is not None:
        session.single(prompt)
    elif questions is not None:
        session.piped(questions)
    else:
        session.interactive()


def _check(prompt: str | None, temperature: float) -> None:
    if not math.isfinite(temperature):
        raise UsageError("--temperature must be a finite number", hint="0 is greedy, 1 is the model's own variety")
    if prompt is not None and not prompt.strip():
        raise UsageError("the prompt is empty", hint='ask something, as in: t2 chat "What is 17 + 25?"')


def _strategy(
    out: Output, two_pass: TwoPass, adapt: str, weights: dict[str, float], examples: list[FewShot], seed: int
) -> Strategy:
    """Return who chooses: a search on examples where there are any, the user's weights, or the strategy `adapt`."""
    if examples:
        return few_shot_strategy(out, two_pass, examples, seed)
    return two_pass.by_hand(weights) if weights else two_pass.strategy(adapt)


def _by_hand(expert: str, mix: str) -> dict[str, float]:
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
    """Yield the lines of standard input with their numbers; bytes that are no UTF-8 are replaced."""
    for number, line in enumerate(sys.stdin.buffer if sys.stdin is not None else (), start=1):
        yield number, line.decode("utf-8", errors="replace").strip()


def _first_line_read(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Return `lines` from its first question on. Raises UsageError if there is none: no model is loaded for that."""
    import itertools

    blank: list[tuple[int, str]] = []
    for number, line in lines:
        if line:
            return itertools.chain(blank, [(number, line)], lines)
        blank.append((number, line))
    raise UsageError("standard input holds no question", hint='pipe a line into it: echo "What is 17 + 25?" | t2 chat')


class _Session:
    """A loaded model with its strategy, and the three ways to talk to it."""

    def __init__(self, out: Output, two_pass: TwoPass, strategy: Strategy, sampling: SamplingConfig) -> None:
        self.out = out
        self.two_pass = two_pass
        self.strategy = strategy
        self.sampling = sampling

    def single(self, prompt: str) -> None:
        """Answer one prompt as it is."""
        messages = [{"role": "user", "content": prompt}]
        answer = self._streamed(messages, one_line=False)
        self._emit(None, answer)

    def piped(self, questions: Iterator[tuple[int, str]]) -> None:
        """Answer line by line: one line each, in their order; a blank line gives a blank line."""
        for number, question in questions:
            if not question:
                self.out.warn(f"line {number} is empty")
                self.out.data("")
                continue
            try:
                answer = self._streamed([{"role": "user", "content": question}], one_line=True)
            except UsageError as error:
                raise UsageError(f"line {number}: {error.message}", hint=error.hint) from error
            self._emit(number, answer)

    def interactive(self) -> None:
        """Hold a conversation until Ctrl-D or /exit; Ctrl-C stops an answer."""
        import contextlib

        with contextlib.suppress(ImportError):  # line editing and history, where Python has them
            import readline  # noqa: F401
        self.out.say("Ctrl-C stops an answer, Ctrl-D ends the conversation, /reset begins a new one.")
        messages: Messages = []
        while (question := self._ask()) is not None:
            if question == "/reset":
                messages = []
                self.out.say("(a new conversation)")
            elif question in ("/exit", "/quit"):
                return
            elif question:
                messages = self._turn([*messages, {"role": "user", "content": question}])

    def _ask(self) -> str | None:
        at_terminal = sys.stdout is not None and sys.stdout.isatty()
        try:
            if at_terminal:
                return input("> ").strip()
            sys.stderr.write("> ")  # standard output goes elsewhere, and carries answers only
            sys.stderr.flush()
            return input().strip()
        except EOFError:
            self.out.say("")
            return None
        except KeyboardInterrupt:
            self.out.say("")
            return ""

    def _turn(self, messages: Messages) -> Messages:
        """Answer the last message and return the conversation with the answer."""
        try:
            messages = self._fitted(messages)
            answer = self._streamed(messages, one_line=False)
        except KeyboardInterrupt:
            self.out.say("\n(stopped)")
            return messages[:-1]
        except UsageError as error:
            self.out.warn(error.message)
            return messages[:-1]
        self._emit(None, answer)
        return [*messages, {"role": "assistant", "content": answer.text}]

    def _fitted(self, messages: Messages) -> Messages:
        """Return the conversation without its oldest turns if an answer would not fit into the context."""
        base = self.two_pass.adapted.base
        dropped = 0
        while len(messages) > 2 and len(base.encode(messages)) + self.sampling.max_new_tokens > base.context:
            messages, dropped = messages[2:], dropped + 1
        if dropped:
            self.out.warn(f"the conversation is longer than the context: its first {dropped} turns are forgotten")
        return messages

    def _streamed(self, messages: Messages, *, one_line: bool) -> Answer:
        """Answer while the text is printed; as one line if asked, white space folded."""
        decision = self.strategy.decide(messages)
        self.out.aside(explained(decision))
        writer = _Folded(self.out) if one_line else None
        show = (lambda text: self.out.data(text, end="")) if writer is None else writer.add
        answer = self.two_pass.answer(messages, decision, self.sampling, on_text=show)
        self.out.data("")
        return answer

    def _emit(self, number: int | None, answer: Answer) -> None:
        decision = answer.decision
        self.out.emit(
            "chat",
            {
                "id": number,
                "answer": answer.text,
                "dispatch": {
                    "strategy": decision.strategy,
                    "category": decision.category,
                    "probabilities": {name: round(p, 6) for name, p in decision.probabilities.items()},
                    "weights": dict(decision.weights),
                    "abstained": decision.abstained,
                },
                "timing": {
                    "dispatch_seconds": round(decision.seconds, 4),
                    "first_token_seconds": round(answer.first_token_seconds, 4),
                    "answer_seconds": round(answer.answer_seconds, 4),
                    "prompt_tokens": answer.prompt_tokens,
                    "answer_tokens": answer.answer_tokens,
                },
            },
        )


class _Folded:
    """Prints text as it comes, its white space folded to single spaces and none at the ends."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._begun = False
        self._space = False

    def add(self, text: str) -> None:
        """Print the next piece."""
        for part in text.splitlines(keepends=True) or [text]:
            words = part.split()
            if part[:1].isspace():
                self._space = True
            for index, word in enumerate(words):
                gap = " " if self._begun and (self._space or index) else ""
                self._out.data(gap + word, end="")
                self._begun, self._space = True, False
            if part[-1:].isspace():
                self._space = True


def explained(decision: Decision) -> str:
    """Return the dispatch line: who answers, and why."""
    who = " + ".join(
        reference if alpha == 1 else f"{alpha:g} {reference}" for reference, alpha in decision.weights.items()
    )
    if decision.category is None:
        return f"[{who or 'base model'}]"
    certainty = decision.probabilities.get(decision.category, 0.0)
    return f"[{decision.category} {certainty:.0%} -> {who or 'base model'}]"
