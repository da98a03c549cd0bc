"""The errors a user can meet. Each says what, why, and what to do next, and has a documented exit code.

Raised anywhere below the command line; rendered once, by `t2cli.cli.output`.
"""

from __future__ import annotations


class T2Error(Exception):
    """A failure that is the user's to read: `message` (what and why) and `hint` (what to do next)."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class DivergedError(T2Error):
    """Numbers grew until they were no longer finite: an expert, or a policy in training, is lost (exit 1)."""


class OutputError(T2Error):
    """Standard output cannot be written: whatever follows would be lost (exit 1)."""


class UsageError(T2Error):
    """The command was called with arguments that cannot work (exit 2)."""

    exit_code = 2


class NotFoundError(T2Error):
    """A base, task, expert, category or file of that name does not exist (exit 3)."""

    exit_code = 3


class IncompatibleBaseError(T2Error):
    """An expert belongs to another base model (exit 4)."""

    exit_code = 4


class CorruptArtifactError(T2Error):
    """A file is damaged, edited, malformed or unsafe (exit 5)."""

    exit_code = 5


class NetworkError(T2Error):
    """Something had to be fetched and could not be (exit 6)."""

    exit_code = 6


class Interrupted(T2Error):  # noqa: N818 - no failure
    """The user pressed Ctrl-C and the work stopped cleanly (exit 130)."""

    exit_code = 130
