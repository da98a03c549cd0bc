"""A Hub on this machine: a real HTTP server that speaks as much of the Hub's protocol as t2 needs.

Repositories are folders that are only read, or `Repo`s with commits and tags that can be written to as on the Hub:
create, preupload, LFS batch and upload, commit on a parent, tag. Faults make it fail as networks and servers do.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml
from hub_repos import COMMIT, Answer, Fault, Hub, Repo

__all__ = ["Answer", "Fault", "Handler", "Hub", "Repo", "running"]


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """Run an empty Hub on the loopback address."""
    offered = Hub()
    handler = type("OwnHandler", (Handler,), {"hub": offered})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    offered.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield offered
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """Answers the Hub's API below /api, LFS uploads, and /<id>/resolve/<rev>/<file>."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet: apart, each answer waits 40 ms for an acknowledgement

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.token = self.headers.get("Authorization")
        self.fault = self.next_fault(path)
        self.sent = self.received()
        self.hub.asked.append((self.command, path, self.token))
        if "Range" in self.headers:
            self.hub.ranges.append(self.headers["Range"])
        time.sleep(self.hub.slow)
        if self.hub.broken:
            return self.reply(503)
        if self.fault is not None and self.fault.status:
            return self.reply(self.fault.status, b"{}", self.fault.headers)
        parts = path.strip("/").split("/")
        if parts[0] == "lfs":
            return self.lfs(parts[1])
        if parts[:2] in (["api", "repos"], ["api", "validate-yaml"]):
            return self.create() if parts[1] == "repos" else self.validate()
        parts = parts[1:] if parts[0] == "datasets" else parts  # files of data sets
        is_api = parts[:2] in (["api", "models"], ["api", "datasets"])
        name = "/".join(parts[2:4] if is_api else parts[:2]).removesuffix(".git")
        rest = parts[4:] if is_api else parts[2:]
        if not self.may_see(name):
            return None
        writes = self.command == "POST"
        if writes and not self.may_write():
            return None
        return self.write(name, rest) if writes else self.read(name, rest, is_api)

    def next_fault(self, path: str) -> Fault | None:
        for fault in self.hub.faults:
            if fault.times and fault.method == self.command and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None

    def may_see(self, name: str) -> bool:
        wanted = self.hub.private.get(name)
        known = self.hub.repos.get(name)
        closed = isinstance(known, Repo) and known.private and self.rights() is None
        if known is None or closed or (wanted and self.token != f"Bearer {wanted}"):
            self.reply(404 if self.token else 401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return False
        if name in self.hub.gated:
            self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"})
            return False
        return True

    def rights(self) -> bool | None:
        """Return whether the token may write, None for a token that is not known."""
        return self.hub.writers.get((self.token or "").removeprefix("Bearer "))

    def may_write(self) -> bool:
        rights = self.rights()
        if rights is None:
            self.reply(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif not rights:
            self.reply(403, b"{}", {"X-Error-Message": "you may not write"})
        return bool(rights)

    def files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return commit and files of a repository at a revision, None if there is no such revision."""
        known = self.hub.repos[name]
        if isinstance(known, Repo):
            commit = {"main": known.head, **known.tags}.get(revision, revision)
            return (commit, known.commits[commit]) if commit in known.commits else None
        if revision not in ("main", COMMIT):
            return None
        paths = (path for path in sorted(known.rglob("*")) if path.is_file())
        return COMMIT, {path.relative_to(known).as_posix(): path.read_bytes() for path in paths}

    def read(self, name: str, rest: list[str], is_api: bool) -> None:
        known = self.hub.repos[name]
        if rest[:1] == ["refs"] and isinstance(known, Repo):
            tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid} for tag, oid in known.tags.items()]
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": known.head}
            return self.reply_json({"branches": [main], "converts": [], "tags": tags})
        found = self.files(name, rest[1] if rest[1:] else "main")
        if found is None:
            return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        commit, files = found
        if is_api and rest[:1] == ["tree"]:
            return self.reply_json(
                [{"type": "file", "path": path, "size": len(blob), "oid": "0"} for path, blob in files.items()]
            )
        if is_api:
            siblings = [self.sibling(path, content) for path, content in files.items()]
            private = isinstance(known, Repo) and known.private
            about = {"_id": "0", "id": name, "modelId": name, "sha": commit, "siblings": siblings, "private": private}
            return self.reply_json(about)
        content = files.get("/".join(rest[2:]))
        if content is None:
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self.reply_file(content, commit)

    def sibling(self, path: str, content: bytes) -> dict[str, object]:
        about = {"rfilename": path, "size": len(content)}
        if (sha256 := hashlib.sha256(content).hexdigest()) in self.hub.uploads:
            lfs = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            return {**about, "blobId": "0" * 40, "lfs": lfs}  # git's hash is that of the pointer
        return {**about, "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}

    def write(self, name: str, rest: list[str]) -> None:
        known = self.hub.repo(name)
        if rest[:1] == ["preupload"]:
            files = [file["path"] for file in json.loads(self.sent)["files"]]
            modes = [
                {"path": path, "uploadMode": "lfs" if path.endswith(".safetensors") else "regular"} for path in files
            ]
            return self.reply_json({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        if rest[-2:] == ["objects", "batch"]:
            objects = json.loads(self.sent)["objects"]
            return self.reply_json({"transfer": "basic", "objects": [self.upload_of(item) for item in objects]})
        if rest[:1] == ["tag"]:
            tag = json.loads(self.sent)["tag"]
            if tag in known.tags:
                return self.reply(409, b"{}")
            known.tags[tag] = known.head if rest[1] == "main" else rest[1]
            return self.reply_json({})
        assert rest == ["commit", "main"], rest
        return self.commit(name, known)

    def commit(self, name: str, known: Repo) -> None:
        if self.hub.before_commit is not None:
            first, self.hub.before_commit = self.hub.before_commit, None
            first()
        header, *operations = [json.loads(line) for line in self.sent.splitlines()]
        if header["value"].get("parentCommit", known.head) != known.head:
            return self.reply(412, b"{}", {"X-Error-Message": "A commit has happened since. Please refresh."})
        files = {}
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif value["oid"] in self.hub.uploads:
                files[value["path"]] = self.hub.uploads[value["oid"]]
            else:
                return self.reply(400, json.dumps({"error": "the LFS object is missing"}).encode())
        oid = known.add(files, header["value"]["summary"])
        return self.reply_json({"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid})

    def upload_of(self, item: dict[str, object]) -> dict[str, object]:
        oid = str(item["oid"])
        if oid in self.hub.uploads:
            return item
        hrefs = {"upload": f"{self.hub.url}/lfs/{oid}", "verify": f"{self.hub.url}/lfs/verify"}
        return {**item, "actions": {key: {"href": href} for key, href in hrefs.items()}}

    def lfs(self, oid: str) -> None:
        if oid == "verify":
            item = json.loads(self.sent)
            return self.reply(200 if len(self.hub.uploads[item["oid"]]) == item["size"] else 400, b"{}")
        if hashlib.sha256(self.sent).hexdigest() != oid:
            return self.reply(400)
        self.hub.uploads[oid] = self.sent
        return self.reply(200)

    def create(self) -> None:
        if not self.may_write():
            return None
        asked = json.loads(self.sent)
        name = f"{asked['organization']}/{asked['name']}"
        about = json.dumps({"url": f"{self.hub.url}/{name}"}).encode()
        if name in self.hub.repos:
            return self.reply(409, about)
        self.hub.repos[name] = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        return self.reply(200, about)

    def validate(self) -> None:
        _, head, _ = json.loads(self.sent)["content"].split("---\n", 2)
        known = re.fullmatch(r"[a-z0-9.-]+", yaml.safe_load(head).get("license", "mit"))
        errors = [] if known else [{"message": '"license" must be one of the known ids'}]
        return self.reply(400 if errors else 200, json.dumps({"errors": errors, "warnings": []}).encode())

    def received(self) -> bytes:
        """Return the body of the request, whichever way its length is told."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while length := int(self.rfile.readline(), 16):
            content += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def reply_json(self, content: object) -> None:
        self.reply(200, json.dumps(content).encode())

    def reply_file(self, content: bytes, commit: str) -> None:
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        if self.fault is not None and self.fault.content is not None:
            content = self.fault.content
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None or (self.fault is not None and not self.fault.ranges):
            return self.reply(200, content, headers)
        begin = int(asked[1])
        headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        return self.reply(206, content[begin:], headers)

    def reply(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        answer = Answer(status, content, {**(headers or {}), "Content-Length": str(len(content))})
        if self.hub.mangle is not None:
            answer = self.hub.mangle(answer)
            self.close_connection = True  # its length may be a lie
        status, content, headers = answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault is not None and self.fault.cut is not None:
            self.wfile.write(content[: self.fault.cut])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.wfile.write(content)
