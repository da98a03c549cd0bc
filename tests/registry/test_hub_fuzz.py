"""Generated bad answers of a Hub: the real client ends in a T2Error or in sound experts, and writes nowhere else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzzing import JUNK, changed_at, edited, generate, paths_of, tree
from hub_server import Answer, Hub
from hypothesis import strategies as st

from t2cli.errors import T2Error
from t2cli.registry import hub_client
from t2cli.registry.hub import HubSource, hub_registry, listed, pull
from t2cli.registry.hub_client import HubRepo
from t2cli.registry.local import LocalRegistry
from t2cli.registry.manifest import ExpertManifest

NAME = "org/experts"
COUNTS = [60, pytest.param(2_000, marks=pytest.mark.slow)]

STATUSES = [200, 201, 204, 206, 301, 302, 304, 307, 308, 400, 401, 403, 404, 409, 410, 412, 416, 429, 500, 503, 599]
PLACES = ["/", "/org/experts/resolve/main/README.md", "file:///etc/passwd", "//", "http://127.0.0.1:1/x", "../../../x"]
PLACES += ["http://[", "ftp://127.0.0.1/x", "?", "\xff", "http://127.0.0.1:99999/"]
NUMBERS = ["0", "-1", "1", "1e9", "nan", "9" * 30, "", "12, 13", "Wed, 21 Oct 2026 07:28:00 GMT"]
HEADERS = {
    "Location": PLACES,
    "Content-Length": NUMBERS,
    "Content-Encoding": ["gzip", "deflate", "br", "zstd", "x", ""],
    "Content-Range": ["bytes 0-1/2", "bytes 9-", "bytes */0", "x"],
    "Content-Type": ["text/html", "application/json; charset=utf-7", "\xff", "application/json; charset=nonsense"],
    "Retry-After": NUMBERS,
    "Transfer-Encoding": ["chunked", "gzip", "x"],
    "X-Error-Code": ["RepoNotFound", "GatedRepo", "RevisionNotFound", "EntryNotFound", "x", "\xff"],
    "X-Error-Message": ["\x1b[2J", "x" * 3000, "\xff"],
    "X-Repo-Commit": ["../../x", "", "\xff"],
    "ETag": ['"x"', "../../x", ""],
}


@st.composite
def manglings(draw: st.DrawFn) -> Callable[[Answer], Answer]:
    """Draw what one answer is turned into."""
    kind = draw(st.sampled_from(["json", "json", "json", "body", "body", "status", "header", "header"]))
    if kind == "json":
        which, junk, gone = draw(st.integers(0, 10_000)), draw(JUNK), draw(st.booleans())
        return lambda answer: answer._replace(content=with_junk(answer.content, which, junk, gone))
    if kind == "body":
        cut = draw(st.tuples(st.integers(0, 10_000), st.integers(0, 90), st.binary(max_size=12)))
        whole = draw(st.none() | st.sampled_from([b"", b"[]", b"null", b"[" * 9000, b'{"a":' * 9000, b"\xff\xfe"]))
        return lambda answer: answer._replace(content=edited(answer.content, *cut) if whole is None else whole)
    if kind == "status":
        status = draw(st.sampled_from(STATUSES))
        place = draw(st.sampled_from(PLACES))
        return lambda answer: answer._replace(status=status, headers={**answer.headers, "Location": place})
    name = draw(st.sampled_from(list(HEADERS)))
    value = draw(st.sampled_from(HEADERS[name]))
    return lambda answer: answer._replace(headers={**answer.headers, name: value})


def with_junk(content: bytes, which: int, junk: object, gone: bool) -> bytes:
    """Return JSON with another value at one place, or without it; anything else as it is."""
    try:
        document = json.loads(content)
    except ValueError:
        return content
    if not (places := list(paths_of(document))):
        return json.dumps(junk).encode()
    place = places[which % len(places)]
    changed = changed_at(document, place, junk)
    if gone:
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        del inner[place[-1]]
    return json.dumps(changed).encode()


def fitting(answer: Answer) -> Answer:
    """Return an answer whose length is that of its content, unless that is what was mangled."""
    honest = answer.headers.get("Content-Length", "0") not in NUMBERS[3:]
    return answer._replace(headers={**answer.headers, "Content-Length": str(len(answer.content))}) if honest else answer


@pytest.mark.parametrize("count", COUNTS)
def test_bad_answers(
    count: int,
    hub: Hub,
    registry: LocalRegistry,
    make: Callable[..., ExpertManifest],
    z: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"FIRST_PAUSE": 0.0001, "LONGEST_PAUSE": 0.001, "TIMEOUT": 0.2, "TRIES": 3}.items():
        monkeypatch.setattr(hub_client, name, value)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    ours = LocalRegistry([tmp_path / "published"])
    for name in ("math", "story"):
        ours.put(make(name), z)
    hub.repos[NAME] = tmp_path / "published"
    repo, fetched = HubRepo(NAME, endpoint=hub.url), hub_registry(NAME)
    assert len(list(pull(repo, HubSource(NAME), registry))) == 2
    written = [local.search_path[0] for local in (registry, fetched)]
    for folder in written:
        folder.mkdir(parents=True, exist_ok=True)
    before = tree(tmp_path, *written)
    outcomes: dict[str, int] = {}
    ways: dict[str, Callable[[], object]] = {
        "pull": lambda: list(pull(repo, HubSource(NAME), registry)),
        "list": lambda: listed(repo, None),
        "find": lambda: registry.find(f"hf://{NAME}/math"),
    }

    def check(case: tuple[str, dict[int, Callable[[Answer], Answer]]]) -> None:
        way, changes = case
        for folder in written:
            shutil.rmtree(folder)
            folder.mkdir()
        asked = 0

        def mangle(answer: Answer) -> Answer:
            nonlocal asked
            asked += 1
            return fitting(changes[asked - 1](answer)) if asked - 1 in changes else answer

        hub.mangle = mangle
        hub.asked.clear()
        try:
            ways[way]()
            end = "went well"
            refused = None
        except T2Error as error:
            refused, end = error, type(error).__name__
        assert refused is None or (refused.message and refused.exit_code in (1, 3, 5, 6))
        outcomes[end] = outcomes.get(end, 0) + 1
        assert len(hub.asked) <= 30
        for local in (registry, fetched):
            entries = local.list()
            assert local.problems == []
            assert [problem for entry in entries for problem in local.verify(entry)] == []

    number = st.integers(0, 5)
    cases = st.tuples(st.sampled_from(list(ways)), st.dictionaries(number, manglings(), min_size=1, max_size=3))
    generate(count, cases, check)
    hub.mangle = None
    assert tree(tmp_path, *written) == before
    print(outcomes)
    assert len(outcomes) > 2, outcomes
