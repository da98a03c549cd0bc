"""t2 chat at a terminal: a conversation that survives stopped answers, mistyped commands and experts that are gone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from t2cli.cli.chat_output import record, streamed, who
from t2cli.cli.output import write_stderr
from t2cli.config import DispatchConfig
from t2cli.dispatch.decision import FEW_SHOT
from t2cli.errors import OutputError, T2Error, UsageError

if TYPE_CHECKING:
    from t2cli.cli.output import Output
    from t2cli.config import SamplingConfig
    from t2cli.dispatch.decision import Decision, Messages, Strategy
    from t2cli.dispatch.two_pass import TwoPass

PROMPT = "> "
WELCOME = "Ctrl-C stops an answer, Ctrl-D ends the conversation, /help shows the commands."


class Conversation:
    """What was said so far, and who answers next. `automatic` names the strategy that `/expert auto` goes back to."""

    def __init__(
        self,
        out: Output,
        two_pass: TwoPass,
        strategy: Strategy,
        sampling: SamplingConfig,
        automatic: str,
        config: DispatchConfig = DispatchConfig(),  # noqa: B008 (frozen)
    ) -> None:
        self.out = out
        self.two_pass = two_pass
        self.strategy = strategy
        self.sampling = sampling
        self.automatic = automatic
        self.config = config
        self.searched = strategy if automatic == FEW_SHOT else None  # the mix that --examples speak for
        self.messages: Messages = []
        self.question: Messages | None = None  # the last question, with what came before it
        self.decision: Decision | None = None  # and the decision on it
        self.forgotten = 0  # turns that no longer fit into the context
        self.saved: set[Path] = set()
        self.ended = False

    def tell(self, text: str) -> None:
        """Write what a command was asked for to stderr, also where talk is silenced."""
        write_stderr(text)

    def turn(self, question: str) -> None:
        """Answer a question; what stops the answer leaves the conversation as it was."""
        messages = [*self.messages, {"role": "user", "content": question}]
        try:
            text = self.answer(self._fitted(messages))
        except KeyboardInterrupt:
            self.out.say("\n(stopped)")
        except OutputError:
            raise  # nobody could read an answer any more
        except T2Error as error:
            self.failed(error)
        else:
            self.messages = [*messages, {"role": "assistant", "content": text}]

    def answer(self, messages: Messages) -> str:
        """Print and return the answer to the last of the messages."""
        self.question, self.decision = messages, None
        self.decision = self.decided(messages)
        answer = streamed(self.out, self.two_pass, messages, self.decision, self.sampling)
        self.out.emit("chat", record(None, answer))
        return answer.text

    def decided(self, messages: Messages) -> Decision:
        """Return which experts answer. Where one of them is gone or damaged: the rest, or the base, with a warning."""
        decision = self.strategy.decide(messages)
        self.warned()
        try:
            self._check(decision)
        except T2Error as error:
            self.out.warn(f"{who(decision)} cannot answer: {error.message}")
        else:
            return decision
        by_hand = decision.category is None
        try:
            self.strategy = self.strategy_of("none" if by_hand else self.automatic)
            decision = self.strategy.decide(messages)
            self._check(decision)
        except T2Error:  # the strategy itself may lack what it needs now
            decision = self.two_pass.strategy("none").decide(messages)
        if not decision.weights:
            self.out.warn("the base model answers" + ("; /expert and /mix choose others" if by_hand else ""))
        return decision

    def strategy_of(self, name: str) -> Strategy:
        """Return the strategy `name`. Raises NotFoundError if unknown, and UsageError for a search without examples."""
        if name != FEW_SHOT:
            return self.two_pass.strategy(name, self.config)
        if self.searched is None:
            raise UsageError(
                f"{FEW_SHOT} needs examples", hint=f"begin with t2 chat --adapt {FEW_SHOT} --examples FILE.jsonl"
            )
        return self.searched

    def warned(self) -> None:
        """Say what is new to say of the experts that were found."""
        for warning in self.two_pass.resolver.new_warnings():
            self.out.warn(warning)

    def failed(self, error: T2Error) -> None:
        """Say why something could not be done."""
        self.out.warn(error.message)
        if error.hint:
            self.tell(f"hint: {error.hint}")

    def reset(self) -> None:
        """Begin a new conversation."""
        self.messages, self.question, self.decision, self.forgotten = [], None, None, 0

    def _check(self, decision: Decision) -> None:
        """Raise T2Error unless the experts are still there: those in memory may have been removed since."""
        for reference in decision.weights:
            self.two_pass.resolver.find(reference)
        self.two_pass.z_of(decision.weights)

    def _fitted(self, messages: Messages) -> Messages:
        """Return what of the conversation fits into the context, and say when that becomes less."""
        from t2cli.dispatch.conversation import fitted

        kept, dropped = fitted(self.two_pass.adapted.base, messages, self.sampling.max_new_tokens)
        if dropped > self.forgotten:
            turns = "turn is" if dropped == 1 else f"{dropped} turns are"
            self.out.warn(f"the conversation is longer than the context: its first {turns} forgotten")
        self.forgotten = dropped
        return kept


def hold(conversation: Conversation, *, keep_history: bool) -> None:
    """Hold a conversation until Ctrl-D or /exit; Ctrl-C stops an answer, or empties the line."""
    from t2cli.cli.chat_commands import is_command, run

    ask = _asker(conversation, keep_history)
    conversation.out.say(WELCOME)
    while not conversation.ended:
        try:
            line = ask().encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()
        except EOFError:
            conversation.out.say("")
            return
        except KeyboardInterrupt:
            conversation.out.say("")
            continue
        if is_command(line):
            run(conversation, line)
        elif line:
            conversation.turn(line)


def _asker(conversation: Conversation, keep_history: bool) -> Callable[[], str]:
    """Return what reads a line: with editing where prompts can be shown, without on terminals that only print."""
    shown = next((stream for stream in (sys.stderr, sys.stdout) if stream is not None and stream.isatty()), None)
    if shown is None or os.environ.get("TERM") in ("dumb", "unknown"):
        return _plain
    from t2cli.cli.chat_prompt import line_reader
    from t2cli.paths import chat_history

    return line_reader(conversation, shown, chat_history() if keep_history else None)


def _plain() -> str:
    """Read a line as it comes. Where standard output goes elsewhere it carries answers only."""
    if sys.stdout is not None and sys.stdout.isatty():
        sys.stdout.write(PROMPT)
        sys.stdout.flush()
    elif sys.stderr is not None:
        sys.stderr.write(PROMPT)
        sys.stderr.flush()
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return line.decode("utf-8", "replace")
