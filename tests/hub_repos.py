"""What a test's Hub holds and what goes wrong with it: repositories with a history, faults, who asked for what."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

COMMIT = "0123456789abcdef0123456789abcdef01234567"  # of every folder


@dataclass
class Repo:
    """A repository that can be written to; `commits` is its history, oldest first."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.add({".gitattributes": b""}, "initial commit")

    @property
    def head(self) -> str:
        """Return the newest commit."""
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        """Return the files of the newest commit."""
        return self.commits[self.head]

    def add(self, files: dict[str, bytes], message: str) -> str:
        """Commit files on top of the newest commit and return the new one."""
        content = dict(self.files) if self.commits else {}
        content |= files
        oid = hashlib.sha1(repr((len(self.commits), message, sorted(content))).encode()).hexdigest()
        self.commits[oid] = content
        self.messages.append(message)
        return oid


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match: a status, or a cut after `cut` bytes of the body."""

    method: str
    path: str  # a regular expression
    times: int = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    ranges: bool = True  # whether a part may be asked for
    content: bytes | None = None  # instead of the body, which a proxy or an attacker changed


class Answer(NamedTuple):
    """What the server sends."""

    status: int
    content: bytes
    headers: dict[str, str]


@dataclass
class Hub:
    """What the server offers and what it was asked: `repos` maps an id to a Repo, or to a folder of its files."""

    repos: dict[str, Path | Repo] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    private: dict[str, str] = field(default_factory=dict)  # id -> the token that opens it
    writers: dict[str, bool] = field(default_factory=dict)  # token -> whether it may write
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Authorization
    ranges: list[str] = field(default_factory=list)  # Range headers
    faults: list[Fault] = field(default_factory=list)
    mangle: Callable[[Answer], Answer] | None = None  # makes another answer of each
    before_commit: Callable[[], None] | None = None  # called once, when a commit comes in
    uploads: dict[str, bytes] = field(default_factory=dict)  # LFS objects by SHA-256
    slow: float = 0.0  # seconds before each answer
    broken: bool = False  # answers every request with a server error
    url: str = ""

    @property
    def downloaded(self) -> set[str]:
        """Return the names of the files that were fetched."""
        paths = [path for method, path, _ in self.asked if method == "GET"]
        return {path.partition("/resolve/")[2].partition("/")[2] for path in paths} - {""}

    def repo(self, name: str) -> Repo:
        """Return a repository that can be written to."""
        repo = self.repos[name]
        assert isinstance(repo, Repo)
        return repo

    def methods(self) -> list[str]:
        """Return the methods of all requests."""
        return [method for method, _, _ in self.asked]
