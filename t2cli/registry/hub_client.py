"""One repository on the Hugging Face Hub: what it holds at a commit, its files, and commits to it.

huggingface_hub does the talking, so HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and proxies mean here what they mean there.
What this file adds are bounds on sizes, tries and waits, reads that go on where a connection was cut, and T2Errors.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from t2cli import __version__
from t2cli.errors import CorruptArtifactError, NetworkError, NotFoundError, T2Error, UsageError
from t2cli.models.targets import first_line
from t2cli.paths import hub_endpoint

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TRIES = 5
FIRST_PAUSE = 0.5  # seconds; doubled after each try
LONGEST_PAUSE = 30  # a Hub that asks for a longer one is not waited for
TIMEOUT = 60.0  # seconds without a byte

TOO_MANY_REQUESTS = 429
CONFLICTS = (409, 412)  # another commit came first
Result = TypeVar("Result")


class HubConflictError(T2Error):
    """Somebody else committed to the repository in the meantime."""


@dataclass(frozen=True)
class HubFile:
    """What the Hub says of a file: its bytes, and the SHA-256 of a large one or git's own hash of a small one."""

    size: int
    sha256: str | None = None
    blob: str | None = None

    def is_it(self, content: bytes | bytearray) -> bool:
        """Tell whether `content` is the file."""
        if self.sha256 is not None:
            return hashlib.sha256(content).hexdigest() == self.sha256
        # git's own hash, not a choice: it tells a broken transfer, and expert.yaml holds the SHA-256 that counts
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        return len(content) == self.size and self.blob in (None, blob)


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit: its files by their paths, and who may see it."""

    commit: str
    files: Mapping[str, HubFile]
    private: bool


class HubRepo:
    """The model repository `name` ("org/repo") on the Hub at `endpoint` (None: HF_ENDPOINT, else the public one).

    `received` is told of bytes of files as they come, and of a negative number where they must come again.
    Every method raises NotFoundError for what does not exist or may not be seen, NetworkError when the Hub cannot be
    reached, fails, or must not be asked (HF_HUB_OFFLINE), and T2Error when it refuses.
    """

    def __init__(
        self, name: str, *, endpoint: str | None = None, received: Callable[[int], None] = lambda count: None
    ) -> None:
        self.name, self.kind = name, "model"  # or "dataset"
        self._endpoint = endpoint or hub_endpoint()
        self._received = received

    def snapshot(self, revision: str | None = None) -> Snapshot:
        """Return the repository at a branch, tag or commit; None: the newest commit."""
        what = self.name if revision is None else f"{self.name}@{revision}"
        ask: Callable[..., Any] = self._api.dataset_info if self.kind == "dataset" else self._api.model_info
        info = self._asked(what, lambda: ask(self.name, revision=revision, files_metadata=True, timeout=TIMEOUT))
        if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
            raise NetworkError(f"the Hub does not say which commit {what} is", hint="check HF_ENDPOINT")
        files = dict(_file_of(file, what) for file in info.siblings or [])
        return Snapshot(info.sha, files, bool(info.private))

    def read(self, snapshot: Snapshot, path: str, limit: int) -> bytes:
        """Return a file of the snapshot. Nothing is fetched of one larger than `limit` bytes: CorruptArtifactError."""
        what = f"{self.name}/{path}"
        file = snapshot.files[path]
        if file.size > limit:
            raise CorruptArtifactError(f"{what} has {file.size} bytes, more than the {limit} it can have", hint=BROKEN)
        content = bytearray()
        self._asked(what, lambda: self._receive(snapshot.commit, path, file.size, content))
        if not file.is_it(content):
            raise CorruptArtifactError(f"{what} is not the file of {file.size} bytes that the Hub lists", hint=BROKEN)
        return bytes(content)

    def create(self, *, private: bool) -> None:
        """Create the repository unless it is there. T2Error if it is public already and should be private."""
        try:
            there = self.snapshot()
        except NotFoundError:
            make = self._api.create_repo
            self._asked(self.name, lambda: make(self.name, private=private or None, exist_ok=True))
            return
        if private and not there.private:
            raise T2Error(
                f"{self.name} is public already", hint="make it private in its settings first, or leave out --private"
            )

    def commit(self, files: Mapping[str, bytes], message: str, parent: str) -> str:
        """Add or replace files in one commit after the commit `parent`, and return its id.

        Raises HubConflictError if `parent` is no longer the newest.
        """
        from huggingface_hub import CommitOperationAdd

        def send() -> str:
            added = [CommitOperationAdd(path, content) for path, content in files.items()]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the Hub's advice on metadata that a card may leave out
                done = self._api.create_commit(self.name, added, commit_message=message, parent_commit=parent)
            return str(done.oid)

        return self._asked(self.name, send)

    def tags(self) -> set[str]:
        """Return the names of the repository's tags."""
        refs = self._asked(self.name, lambda: self._api.list_repo_refs(self.name))
        return {tag.name for tag in refs.tags}

    def tag(self, name: str, commit: str) -> None:
        """Give a commit a tag, unless there is one of that name."""
        self._asked(self.name, lambda: self._api.create_tag(self.name, tag=name, revision=commit, exist_ok=True))

    @property
    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(endpoint=self._endpoint, library_name="t2", library_version=__version__)

    def _receive(self, commit: str, path: str, size: int, content: bytearray) -> None:
        """Append to `content` what it lacks of a file; what came before a cut stays there for the next try."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

        url = hf_hub_url(self.name, path, repo_type=self.kind, revision=commit, endpoint=self._endpoint)
        headers = build_hf_headers(library_name="t2", library_version=__version__) | {"Accept-Encoding": "identity"}
        if content:
            headers["Range"] = f"bytes={len(content)}-"
        with get_session().stream("GET", url, headers=headers) as response:
            hf_raise_for_status(response)
            if response.status_code != 206:  # the whole file, whatever was asked for
                self._received(-len(content))
                content.clear()
            for chunk in response.iter_bytes():  # as they come: a fixed size would lose what came before a cut
                content.extend(chunk)
                self._received(len(chunk))
                if len(content) > size:
                    return

    def _asked(self, what: str, call: Callable[[], Result]) -> Result:
        """Return what `call` returns, tried again where that may help; its errors become T2Errors about `what`."""
        from huggingface_hub import constants, get_session

        if constants.HF_HUB_OFFLINE:
            raise NetworkError(
                f"{what} is on the Hub, and HF_HUB_OFFLINE is set",
                hint="unset it; what was fetched before can be used by its version, as in hf://org/repo/math@2",
            )
        tried = 0
        while True:
            try:
                _bound(get_session())
                return call()
            except T2Error:
                raise
            except Exception as error:  # transport errors have no common class across huggingface_hub's versions
                tried += 1
                pause = _pause(error, tried)
                if pause is None or tried == TRIES:
                    raise _explained(error, what) from error
                time.sleep(pause)


BROKEN = "do not use it; tell the owner of the repository"
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def _file_of(file: Any, what: str) -> tuple[str, HubFile]:
    """Return the path of a listed file and what the Hub says of it; NetworkError if that is not what a Hub can say."""
    name, size, sha256, blob = file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None, file.blob_id
    texts = isinstance(name, str) and all(isinstance(digest, str | None) for digest in (sha256, blob))
    if not (texts and type(size) is int and size >= 0):
        raise NetworkError(f"the Hub's list of the files of {what} makes no sense", hint="check HF_ENDPOINT")
    return name, HubFile(size, sha256, blob)


def _bound(client: Any) -> None:
    """Let huggingface_hub's HTTP client wait neither for ever, as it does by default, nor as long as a Hub asks.

    Nor shall it talk of each try.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what fails for good, an error of ours says
    client.timeout = TIMEOUT
    hooks = client.event_hooks
    if _refuse_long_waits not in hooks["response"]:
        client.event_hooks = {**hooks, "response": [*hooks["response"], _refuse_long_waits]}


def _refuse_long_waits(response: Any) -> None:
    asked = str(response.headers.get("Retry-After", ""))
    if response.status_code == TOO_MANY_REQUESTS and asked.isdigit() and int(asked) > LONGEST_PAUSE:
        raise NetworkError(
            f"the Hub takes no more requests at present: it asks to wait {asked} seconds", hint="try again later"
        )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from: uploads wrap theirs."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _response(error: BaseException) -> Any:
    """Return the HTTP response that an error came with, None for another kind of error."""
    return next((found for cause in _causes(error) if (found := getattr(cause, "response", None)) is not None), None)


def _failed_connection(error: BaseException, kind: str = "TransportError") -> bool:
    """Tell whether a connection was refused, timed out or cut half-way; "ConnectError": whether there never was one."""
    from huggingface_hub import get_session

    client = importlib.import_module(type(get_session()).__module__.partition(".")[0])  # httpx, or its successor
    return any(isinstance(cause, getattr(client, kind)) for cause in _causes(error))


def _pause(error: BaseException, tried: int) -> float | None:
    """Return how many seconds to wait before the next try, None if another try would not help."""
    again = FIRST_PAUSE * 2 ** (tried - 1)
    response = _response(error)
    if response is None:
        hopeless = tried > 1 and _failed_connection(error, "ConnectError")  # no network: say so soon
        return again if _failed_connection(error) and not hopeless else None
    if response.status_code != TOO_MANY_REQUESTS and response.status_code < 500:
        return None
    asked = str(response.headers.get("Retry-After", ""))
    return float(min(int(asked), LONGEST_PAUSE)) if asked.isdigit() else again


def _explained(error: Exception, what: str) -> T2Error:
    """Return the T2Error that tells a user what the Hub's answer means."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if ours := next((cause for cause in _causes(error) if isinstance(cause, T2Error)), None):
        return ours
    response = _response(error)
    status = None if response is None else int(response.status_code)
    login = "log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, HFValidationError):
        return UsageError(f"{what} cannot be a repository on the Hub", hint="write it as ORG/REPO")
    if isinstance(error, GatedRepoError):
        return NotFoundError(
            f"{what} asks its users to accept its terms first", hint=f"accept them there, then {login}"
        )
    if isinstance(error, RepositoryNotFoundError):
        return NotFoundError(
            f"the Hub has no repository {what} (or it is private)", hint=f"check the name; for a private one {login}"
        )
    if isinstance(error, (RevisionNotFoundError, EntryNotFoundError)) or status == 404:
        return NotFoundError(f"the Hub has no {what}", hint="check the name and the revision")
    if status == 401:
        return T2Error(f"the Hub does not know who asks for {what}", hint=f"the token is missing or wrong: {login}")
    if status == 403:
        return T2Error(f"the token may not do this with {what}", hint="use a token that may write to the repository")
    if status in CONFLICTS:
        return HubConflictError(f"{what} was changed by somebody else at the same time", hint="try again")
    if status == TOO_MANY_REQUESTS:
        return NetworkError(f"the Hub takes no more requests for {what} at present", hint="try again later")
    if status is not None and status < 500:
        return T2Error(f"the Hub refused {what}: {' '.join(str(error).split())[:300]}", hint="change what it names")
    why = f"the Hub failed with status {status}" if status else first_line(error)
    return NetworkError(
        f"{what}: the Hub could not be reached or failed: {why}",
        hint="check the network and HF_ENDPOINT, then try again",
    )
