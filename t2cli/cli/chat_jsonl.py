"""t2 chat --jsonl: many questions from a pipe, answered in batches while more are read, in their order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from t2cli.cli.chat_output import failure, record
from t2cli.cli.chat_rows import WINDOW, Id, Line, ReadAhead, Row, done_ids, end_last_line, parsed, standard_input
from t2cli.cli.progress import progress
from t2cli.errors import T2Error, UsageError

if TYPE_CHECKING:
    from t2cli.cli.output import Output
    from t2cli.config import SamplingConfig
    from t2cli.dispatch.batch import Question
    from t2cli.dispatch.decision import Strategy
    from t2cli.dispatch.two_pass import TwoPass


class Rows:
    """The rows on standard input, opened before a model is loaded: where there are none it need not be.

    Raises UsageError for an empty input, and NotFoundError for a `done` that is not there.
    """

    def __init__(self, out: Output, batch: int, done: Path | None) -> None:
        self.batch = batch
        self.done: set[Id] = set()
        if done is not None:
            self.done = done_ids(done, out.warn)
            end_last_line(done)
        self.ahead = ReadAhead(standard_input(), WINDOW * batch)
        if not self.ahead.any():
            raise UsageError("standard input holds no question", hint='each line is an object: {"prompt": "..."}')


def answer_rows(out: Output, rows: Rows, two_pass: TwoPass, strategy: Strategy, sampling: SamplingConfig) -> None:
    """Answer all rows. Raises T2Error at the end if some lines have no answer."""
    Answers(out, two_pass, strategy, sampling).answer(rows)


class Answers:
    """A loaded model that answers rows: lines that are none are told on stderr, failures in the row's own object."""

    def __init__(self, out: Output, two_pass: TwoPass, strategy: Strategy, sampling: SamplingConfig) -> None:
        self.out = out
        self.two_pass = two_pass
        self.strategy = strategy
        self.sampling = sampling
        self.rows = self.skipped = self.failed = 0
        self.left_out: set[Id] = set()

    def answer(self, rows: Rows) -> None:
        """Answer all rows. Raises T2Error at the end if some lines have no answer."""
        with progress("answering", unit="rows", quiet=self.out.quiet) as bar:
            for lines in rows.ahead.windows():
                window = self._parsed(lines, rows.done)
                self._window(window, rows.batch)
                bar.advance(len(window))
        if self.skipped or self.failed:
            raise T2Error(
                f"{self.skipped + self.failed} of {self.rows} rows have no answer: {self.skipped} were no questions, "
                f"{self.failed} failed",
                hint="the warnings say why; all others were answered",
            )

    def _parsed(self, lines: list[Line], done: set[Id]) -> list[Row]:
        """Return the rows of a window that are to be answered; those that are none are counted and told."""
        found = []
        for number, line in lines:
            try:
                row = parsed(number, line)
            except UsageError as error:
                self.rows, self.skipped = self.rows + 1, self.skipped + 1
                self.out.warn(f"line {number} is skipped: {error.message}" + (f" ({error.hint})" if error.hint else ""))
                continue
            if row is None:
                continue
            if row.id not in done:
                self.rows += 1
                found.append(row)
            elif row.id in self.left_out:
                self.out.warn(f"line {number} is left out as answered: it has the id of an earlier line, {row.id!r}")
            self.left_out.update({row.id} & done)
        return found

    def _window(self, rows: list[Row], batch: int) -> None:
        """Answer the rows of a window and write them in their order, each as soon as those before it are there."""
        from t2cli.dispatch.batch import answer_each

        ready: dict[int, dict[str, object]] = {}
        questions: dict[int, Question] = {}
        named: dict[str, Strategy | T2Error] = {}
        for place, row in enumerate(rows):
            try:
                questions[place] = self._question(row, named)
            except T2Error as error:
                ready[place] = self._failure(row, error)
        places = list(questions)
        written = self._write(ready, 0)
        for index, answer in answer_each(self.two_pass, list(questions.values()), self.sampling, batch):
            place = places[index]
            row = rows[place]
            ready[place] = self._failure(row, answer) if isinstance(answer, T2Error) else record(row.id, answer)
            written = self._write(ready, written)

    def _write(self, ready: dict[int, dict[str, object]], written: int) -> int:
        """Write what is ready from place `written` on without a gap; return the place of the next."""
        while written in ready:
            self.out.emit("chat", ready.pop(written))
            written += 1
        return written

    def _failure(self, row: Row, error: T2Error) -> dict[str, object]:
        self.failed += 1
        self.out.warn(f"line {row.number} has no answer: {error.message}")
        return failure(row.id, error)

    def _question(self, row: Row, named: dict[str, Strategy | T2Error]) -> Question:
        """Return a row's question; `named` remembers the strategies of this window. Raises as Resolver.find."""
        from t2cli.dispatch.batch import Question
        from t2cli.dispatch.conversation import fitted

        strategy = self._strategy(row.weights, named)
        messages, dropped = fitted(self.two_pass.adapted.base, row.messages, self.sampling.max_new_tokens)
        if dropped:
            self.out.warn(f"line {row.number} is longer than the context: its first {dropped} turns are left out")
        return Question(messages, strategy)

    def _strategy(self, weights: Mapping[str, float] | None, named: dict[str, Strategy | T2Error]) -> Strategy:
        key = json.dumps(weights if weights is None else list(weights.items()))
        if key not in named:
            try:
                named[key] = self._made(weights)
            except T2Error as error:
                named[key] = error
            for warning in self.two_pass.resolver.new_warnings():
                self.out.warn(warning)
        found = named[key]
        if isinstance(found, T2Error):
            raise found
        return found

    def _made(self, weights: Mapping[str, float] | None) -> Strategy:
        from t2cli.dispatch.renewed import still_there

        if weights is None:
            return still_there(self.two_pass.resolver, self.strategy)
        return self.two_pass.by_hand(weights) if weights else self.two_pass.strategy("none")
