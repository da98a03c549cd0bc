"""A Hub on this machine: a real HTTP server that speaks as much of the Hub's protocol as a download needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server offers and what it was asked: `repos` maps an id to the folder whose files it has."""

    repos: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    private: dict[str, str] = field(default_factory=dict)  # id -> the token that opens it
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Authorization
    broken: bool = False  # answers every request with a server error
    url: str = ""

    @property
    def downloaded(self) -> set[str]:
        """Return the names of the files that were fetched."""
        return {path.partition(f"/resolve/{COMMIT}/")[2] for method, path, _ in self.asked if method == "GET"} - {""}


class Handler(BaseHTTPRequestHandler):
    """Answers /api/models/<id>[/revision/<rev>|/tree/<rev>] and /<id>/resolve/<rev>/<file>."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization")
        self.hub.asked.append((self.command, path, token))
        parts = path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if is_api else parts[:2])
        rest = parts[4:] if is_api else parts[2:]
        if self.hub.broken:
            return self.reply(503, b"", {}, body)
        wanted = self.hub.private.get(repo)
        if repo not in self.hub.repos or (wanted and token != f"Bearer {wanted}"):
            return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        if repo in self.hub.gated:
            return self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"}, body)
        if rest[1:2] and rest[1] not in ("main", COMMIT):
            return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        folder = self.hub.repos[repo]
        if is_api:
            return self.reply(200, json.dumps(self.described(repo, folder, rest)).encode(), {}, body)
        file = folder.joinpath(*rest[2:])
        if not file.is_file():
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        content = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return self.reply(200, content, headers, body)

    def described(self, repo: str, folder: Path, rest: list[str]) -> object:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        if rest[:1] == ["tree"]:
            return [
                {"type": "file", "path": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "oid": "0"}
                for path in files
            ]
        siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in files]
        return {"_id": "0", "id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "private": False}

    def reply(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Run an empty Hub on the loopback address."""
    offered = Hub()
    handler = type("OwnHandler", (Handler,), {"hub": offered})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    offered.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield offered
    server.shutdown()
    server.server_close()
    thread.join()
