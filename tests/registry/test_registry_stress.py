"""Many processes on the same names, and processes killed at random moments: nothing lost, doubled or half there."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import t2cli
from t2cli.registry.listing import remembered
from t2cli.registry.local import LocalRegistry
from t2cli.registry.manifest import ExpertManifest

Make = Callable[..., ExpertManifest]

# Puts, lists, removes and reads the same three names until the time is over; every exception but "not there" ends it.
WORKER = """
import json, random, struct, sys, time
from dataclasses import replace
from pathlib import Path
from t2cli.errors import NotFoundError
from t2cli.registry.listing import remembered
from t2cli.registry.local import LocalRegistry
from t2cli.registry.manifest import ExpertManifest

root, manifest, z, number, seconds = sys.argv[1:]
registry, draw = LocalRegistry([Path(root)]), random.Random(int(number))
manifest, z = ExpertManifest.from_yaml(Path(manifest).read_text(), ""), Path(z).read_bytes()
done = {"put": [], "removed": [], "listed": 0, "read": 0}
end = time.monotonic() + float(seconds)
while time.monotonic() < end:
    name = draw.choice(["a", "b", "c"])
    what = draw.choice(["put", "put", "list", "remembered", "remove", "read", "read"])
    try:
        if what == "put":
            mark = f"{number}/{len(done['put'])}"
            blob = z[:-4] + struct.pack("<f", len(done["put"]) + int(number) / 16)
            entry = registry.put(replace(manifest, name=name, description=mark), blob)
            assert entry.manifest.description == mark and entry.z_bytes() == blob
            done["put"].append([entry.reference, entry.digest])
        elif what in ("list", "remembered"):
            entries = registry.list() if what == "list" else remembered(registry)
            assert not registry.problems, registry.problems
            references = [entry.reference for entry in entries]
            assert len(set(references)) == len(references), references
            done["listed"] += 1
        elif what == "remove":
            mine = [entry for entry in registry.list() if entry.manifest.name == name]
            if len(mine) > 3:
                done["removed"].append(str(registry.remove(draw.choice(mine).reference)))
        else:
            entry = registry.find(name)
            number_read = struct.unpack("<f", entry.z_bytes()[-4:])[0]
            worker, _, count = entry.manifest.description.partition("/")
            assert number_read == int(count) + int(worker) / 16, (number_read, entry.manifest.description)
            done["read"] += 1
    except NotFoundError:
        pass
print(json.dumps(done))
"""


@pytest.fixture
def work(
    tmp_path: Path, registry: LocalRegistry, manifest: ExpertManifest, z: bytes
) -> Callable[..., subprocess.Popen]:
    """Return a function that starts a worker."""
    (tmp_path / "manifest").write_text(manifest.to_yaml())
    (tmp_path / "z").write_bytes(z)
    environment = {**os.environ, "PYTHONPATH": str(Path(t2cli.__file__).parents[1])}

    def start(number: int, seconds: float) -> subprocess.Popen[str]:
        arguments = map(str, (registry.search_path[0], tmp_path / "manifest", tmp_path / "z", number, seconds))
        command = [sys.executable, "-c", WORKER, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    return start


@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_eight_processes_lose_and_double_nothing(
    seconds: int, registry: LocalRegistry, work: Callable[..., subprocess.Popen[str]]
) -> None:
    processes = [work(number, seconds) for number in range(8)]
    outputs = [process.communicate(timeout=seconds + 120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, [errors for _, errors in outputs]
    done = [json.loads(out) for out, _ in outputs]
    put = dict(pair for worker in done for pair in worker["put"])
    removed = [reference for worker in done for reference in worker["removed"]]
    assert len(put) == sum(len(worker["put"]) for worker in done)  # no version was given twice
    assert len(set(removed)) == len(removed)  # and none was removed twice
    assert removed
    assert all(worker["read"] and worker["listed"] for worker in done)
    left = {entry.reference: entry.digest for entry in registry.list()}
    assert left == {reference: digest for reference, digest in put.items() if reference not in set(removed)}
    assert remembered(registry) == registry.list()
    assert [registry.verify(entry) for entry in registry.list()] == [[]] * len(left)
    for name in "abc":
        versions = sorted(int(ref.partition("@")[2]) for ref in put if ref.startswith(name))
        assert versions == list(range(1, len(versions) + 1))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kills", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_lists_and_verifies(
    kills: int, registry: LocalRegistry, make: Make, z: bytes
) -> None:
    draw = random.Random(kills)
    registry.put(make("kept"), z)
    interrupted = 0
    for round_ in range(kills):
        ready, say = os.pipe()
        child = os.fork()
        if child == 0:  # never returns into the test
            os.write(say, b"x")
            for turn in range(10_000):
                entry = registry.put(replace(make("math"), description=str(turn)), z)
                if turn % 3 or round_ % 2:
                    registry.remove(entry.reference)
            os._exit(1)
        os.read(ready, 1)
        time.sleep(draw.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        os.close(ready)
        os.close(say)
        home = registry.search_path[0] / make().base.folder / "math"
        interrupted += any(home.glob(".*.tmp"))
        entries = registry.list()
        assert not registry.problems
        assert [registry.verify(entry) for entry in entries] == [[]] * len(entries)
        assert remembered(registry) == entries
        assert registry.find("kept").reference == "kept@1"
        if len(entries) > 20:
            for entry in entries[1:]:
                registry.remove(entry.reference)
    assert interrupted  # some were killed in the middle of writing or deleting
    versions = [entry.manifest.version for entry in registry.list() if entry.manifest.name == "math"]
    assert registry.put(make("math"), z).manifest.version > max(versions, default=0)
    assert not list(home.glob(".*.tmp"))  # what they left behind is cleared away
