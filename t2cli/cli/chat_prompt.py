"""The line that a person types in t2 chat: editing, history and completion. Loaded at a terminal only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.output import create_output

from t2cli.cli.chat_commands import AUTO, COMMANDS, NONE
from t2cli.cli.chat_session import PROMPT
from t2cli.dispatch.decision import FEW_SHOT

if TYPE_CHECKING:
    from t2cli.cli.chat_session import Conversation


def line_reader(conversation: Conversation, shown: TextIO, history: Path | None) -> Callable[[], str]:
    """Return a function that reads one line, which is edited on the terminal `shown`.

    It raises EOFError at Ctrl-D and KeyboardInterrupt at Ctrl-C. `history` is the file of earlier lines; None: no file.
    """
    kept = InMemoryHistory() if history is None else _PrivateHistory(history)
    session: PromptSession[str] = PromptSession(
        history=kept,
        completer=Words(conversation),
        complete_while_typing=False,
        output=create_output(stdout=shown),
    )
    return lambda: session.prompt(PROMPT)


class _PrivateHistory(FileHistory):
    """A history that only its owner reads; a disk that cannot be written loses lines, never the session."""

    def load_history_strings(self) -> Iterable[str]:
        with contextlib.suppress(OSError):
            return super().load_history_strings()
        return []

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):
            path = Path(os.fsdecode(self.filename))
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            super().store_string(string.encode("utf-8", "replace").decode())


class Words(Completer):
    """Completes commands, and their arguments: experts, strategies, files."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield what may follow the text before the cursor."""
        text = document.text_before_cursor
        name, blank, argument = text.partition(" ")
        if not blank:
            yield from _beginning(text, COMMANDS if text.startswith("/") else ())
        elif name == "/save":
            yield from self._files.get_completions(Document(argument), complete_event)
        elif name == "/adapt":
            from t2cli.dispatch.two_pass import STRATEGIES

            searched = () if self._conversation.searched is None else (FEW_SHOT,)
            yield from _beginning(argument, [*STRATEGIES, *searched])
        elif name == "/expert":
            yield from _beginning(argument, [AUTO, NONE, *self._experts(argument)])
        elif name == "/mix":
            member = argument.rpartition(",")[2].lstrip()
            yield from _beginning(member, self._experts(member))

    def _experts(self, begun: str) -> list[str]:
        """Return the names of this base's experts, or their versions once there is an @."""
        two_pass = self._conversation.two_pass
        slots = [slot for slot in two_pass.registry.slots() if slot.is_for(two_pass.adapted.base.identity.weights)]
        return sorted({slot.reference if "@" in begun else slot.name for slot in slots})


def _beginning(begun: str, words: Iterable[str]) -> Iterable[Completion]:
    return (Completion(word, start_position=-len(begun)) for word in words if word.startswith(begun))
