"""How an expert is named: "math", "math@3", "math@sha256:3fa91c02be11", "hf://org/repo/math@3"."""

from __future__ import annotations

import re
from dataclasses import dataclass

from t2cli.errors import UsageError

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
VERSION_PATTERN = re.compile(r"[1-9][0-9]{0,8}")
DIGEST_PATTERN = re.compile(r"[0-9a-f]{12,64}")
REPO_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")

HUB_SCHEME = "hf://"
FORMS = "write NAME, NAME@VERSION, NAME@sha256:<at least 12 hex digits> or hf://ORG/REPO/NAME@VERSION"


NO_NAMES = ("none", "auto")  # the base itself, and whatever pass 1 chooses


def check_name(name: str) -> None:
    """Raise UsageError unless `name` can be an expert's name: it becomes a folder's name too."""
    if not NAME_PATTERN.fullmatch(name):
        raise UsageError(
            f"{name[:80]!r} cannot be an expert's name",
            hint="use 1 to 64 lower-case letters, digits, '.', '_' or '-', starting with a letter or digit",
        )


def check_new_name(name: str) -> None:
    """Raise UsageError unless `name` can be a new expert's name; the words that stand for none of them cannot."""
    check_name(name)
    if name in NO_NAMES:
        raise UsageError(
            f"an expert cannot be called {name!r}, which is what t2 chat calls a choice of another kind",
            hint="use another name",
        )


@dataclass(frozen=True)
class ExpertRef:
    """What a user may write for an expert; without version and digest it means the newest version.

    `digest` is a prefix (12 to 64 hex digits) of the expert's digest, `repo` is "org/repo" on the Hub.
    Raises UsageError when a field is malformed or both a version and a digest are given.
    """

    name: str
    version: int | None = None
    digest: str | None = None
    repo: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.version is not None and not VERSION_PATTERN.fullmatch(str(self.version)):
            raise UsageError(f"{self.version} cannot be the version of an expert", hint=FORMS)
        if self.digest is not None and not DIGEST_PATTERN.fullmatch(self.digest):
            raise UsageError(f"{self.digest[:80]!r} is no digest of an expert", hint=FORMS)
        if self.version is not None and self.digest is not None:
            raise UsageError("an expert is named by its version or by its digest, not by both", hint=FORMS)
        if self.repo is not None and not REPO_PATTERN.fullmatch(self.repo):
            raise UsageError(f"{self.repo[:160]!r} cannot be a repository on the Hub", hint=FORMS)

    @classmethod
    def parse(cls, text: str) -> ExpertRef:
        """Return the reference that `text` writes; UsageError if it is malformed."""
        rest, repo = text.strip(), None
        if rest.startswith(HUB_SCHEME):
            repo, _, rest = rest.removeprefix(HUB_SCHEME).rpartition("/")
        name, at, selector = rest.partition("@")
        if not at:
            return cls(name, repo=repo)
        if selector.startswith("sha256:"):
            return cls(name, digest=selector.removeprefix("sha256:").lower(), repo=repo)
        if not VERSION_PATTERN.fullmatch(selector):
            raise UsageError(f"{text[:160]!r} names no version of an expert", hint=FORMS)
        return cls(name, version=int(selector), repo=repo)

    def __str__(self) -> str:
        """Return the canonical text, which `parse` reads back."""
        name = f"{HUB_SCHEME}{self.repo}/{self.name}" if self.repo else self.name
        if self.version is not None:
            return f"{name}@{self.version}"
        return f"{name}@sha256:{self.digest}" if self.digest else name
