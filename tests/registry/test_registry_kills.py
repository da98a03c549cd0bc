"""Processes that pull, put or remove, killed at random moments: what is there is whole, and all can go on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import Hub

import t2cli
from t2cli.registry.listing import remembered
from t2cli.registry.local import LocalRegistry
from t2cli.registry.manifest import ExpertManifest

NAME = "org/experts"

# Loads everything once; each line "what seconds" forks a process that does it until it is killed.
HELPER = """
import itertools, os, signal, sys, time
from dataclasses import replace
from pathlib import Path
from huggingface_hub import HfApi, get_session, hf_hub_url
from t2cli.registry.hub import HubSource, pull
from t2cli.registry.hub_client import HubRepo
from t2cli.registry.local import LocalRegistry
from t2cli.registry.manifest import ExpertManifest

root, manifest, z, url, name = sys.argv[1:]
manifest, z = ExpertManifest.from_yaml(Path(manifest).read_text(), ""), Path(z).read_bytes()

def act(what):
    registry = LocalRegistry([Path(root)])
    for turn in itertools.count():
        if what == "put":
            registry.put(replace(manifest, name="put", description=str(turn)), z)
        elif what == "remove":
            for entry in registry.list():
                if entry.manifest.name == "gone":
                    registry.remove(entry.reference)
            time.sleep(60)  # all are gone: wait to be killed
        else:
            for pulled in pull(HubRepo(name, endpoint=url), HubSource(name), registry):
                pass
            for entry in registry.list():
                if entry.manifest.name in "abc":
                    registry.remove(entry.reference)

print("ready", flush=True)
for line in sys.stdin:
    what, seconds = line.split()
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr
        try:
            act(what)
        finally:
            os._exit(1)
    time.sleep(float(seconds))
    os.kill(child, signal.SIGKILL)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture
def killed(
    tmp_path: Path, hub: Hub, registry: LocalRegistry, manifest: ExpertManifest, z: bytes
) -> Iterator[Callable[[str, float], int]]:
    """Return a function that lets a process do something for some seconds, kills it, and says how it ended."""
    (tmp_path / "manifest").write_text(manifest.to_yaml())
    (tmp_path / "z").write_bytes(z)
    for name in "abc":
        LocalRegistry([tmp_path / "published"]).put(manifest_named(manifest, name), z)
    hub.repos[NAME] = tmp_path / "published"
    arguments = map(str, (registry.search_path[0], tmp_path / "manifest", tmp_path / "z", hub.url, NAME))
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    with subprocess.Popen(
        [sys.executable, "-c", HELPER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**environment, "PYTHONPATH": str(Path(t2cli.__file__).parents[1])},
    ) as helper:
        assert helper.stdin is not None
        assert helper.stdout is not None
        assert helper.stdout.readline() == "ready\n"

        def kill(what: str, seconds: float) -> int:
            helper.stdin.write(f"{what} {seconds}\n")  # type: ignore[union-attr]
            helper.stdin.flush()  # type: ignore[union-attr]
            return int(helper.stdout.readline())  # type: ignore[union-attr]

        yield kill
        helper.stdin.close()


def manifest_named(manifest: ExpertManifest, name: str) -> ExpertManifest:
    return replace(manifest, name=name)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kills", [8, pytest.param(70, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("what", "longest"), [("put", 0.05), ("remove", 0.05), ("pull", 0.4)])
def test_killed_at_random_moments(
    what: str,
    longest: float,
    kills: int,
    killed: Callable[[str, float], int],
    registry: LocalRegistry,
    manifest: ExpertManifest,
    z: bytes,
    tmp_path: Path,
) -> None:
    draw = random.Random(kills)
    registry.put(manifest_named(manifest, "kept"), z)
    published = {entry.digest for entry in LocalRegistry([tmp_path / "published"]).list()}
    interrupted, left = 0, set[tuple[Path, int]]()
    for _ in range(kills):
        while what == "remove" and sum(entry.manifest.name == "gone" for entry in registry.list()) < 40:
            registry.put(manifest_named(manifest, "gone"), z)
        assert os.WTERMSIG(killed(what, draw.random() * longest)) == signal.SIGKILL
        halves = {(path, path.stat().st_ctime_ns) for path in registry.search_path[0].glob("*/*/.*.tmp")}
        interrupted, left = interrupted + (not halves <= left), halves
        entries = registry.list()
        assert registry.problems == []
        assert [problem for entry in entries for problem in registry.verify(entry)] == []
        assert remembered(registry) == entries
        assert registry.find("kept").reference == "kept@1"
        assert {entry.digest for entry in entries if entry.manifest.name in "abc"} <= published
        for entry in entries:
            if entry.manifest.name == "put" and len(entries) > 30:
                registry.remove(entry.reference)
    print(f"{what}: {interrupted} of {kills} were killed half-way")
    assert interrupted or kills < 70
    registry.put(manifest_named(manifest, "kept"), z)  # the lock is free
