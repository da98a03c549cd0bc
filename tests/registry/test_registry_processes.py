"""What only real processes show: concurrent puts, a full disk, a killed put, and what an import loads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import t2cli
from t2cli.registry.local import LocalRegistry
from t2cli.registry.manifest import ExpertManifest, TargetsRecord

resource = pytest.importorskip("resource")

PUT = """
import sys
from pathlib import Path
from t2cli.errors import T2Error
from t2cli.registry.local import LocalRegistry
from t2cli.registry.manifest import ExpertManifest
registry, manifest, z, times, limit, killed = sys.argv[1:]
manifest = ExpertManifest.from_yaml(Path(manifest).read_text(), "expert.yaml")
z = Path(z).read_bytes()
if int(limit):
    import resource, signal
    if killed == "killed":
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    for _ in range(int(times)):
        print(LocalRegistry([Path(registry)]).put(manifest, z).reference, flush=True)
except T2Error as error:
    sys.exit(f"T2Error {error.exit_code}: {error.message}")
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(t2cli.__file__).parents[1])},
    )


@pytest.fixture
def put(tmp_path: Path, registry: LocalRegistry) -> Callable[..., subprocess.Popen[str]]:
    """Return a function that starts a process which puts an expert `times` times into `registry`."""

    def begin(
        manifest: ExpertManifest, z: bytes, *, times: int = 1, limit: int = 0, killed: bool = False
    ) -> subprocess.Popen[str]:
        text, blob = tmp_path / "manifest.yaml", tmp_path / "z"
        text.write_text(manifest.to_yaml())
        blob.write_bytes(z)
        return start(PUT, registry.search_path[0], text, blob, times, limit, "killed" if killed else "")

    return begin


def test_concurrent_processes_get_distinct_contiguous_versions(
    registry: LocalRegistry, put: Callable[..., subprocess.Popen[str]], manifest: ExpertManifest, z: bytes
) -> None:
    processes = [put(manifest, z, times=5) for _ in range(4)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    given = sorted(int(line.removeprefix("math@")) for out, _ in outputs for line in out.splitlines())
    assert given == list(range(1, 21))
    entries = registry.list()
    assert [entry.manifest.version for entry in entries] == given
    assert registry.problems == []
    assert [registry.verify(entry) for entry in entries] == [[]] * 20
    assert sorted(path.name for path in entries[0].path.parent.iterdir()) == sorted(map(str, given))


LARGE = {f"model.layers.{i}.mlp.up_proj.weight": 64 for i in range(8)}


@pytest.mark.parametrize("limit", [200, 2500], ids=["in the z", "in the card"])
@pytest.mark.parametrize("killed", [False, True], ids=["an error", "a kill"])
def test_a_put_that_cannot_finish_writing_leaves_no_version(
    registry: LocalRegistry,
    put: Callable[..., subprocess.Popen[str]],
    make: Callable[..., ExpertManifest],
    z: bytes,
    make_z: Callable[..., bytes],
    limit: int,
    killed: bool,
) -> None:
    # The limit on file sizes ends a write half-way, as a full disk does; with its default signal it kills instead.
    sound = registry.put(make(), z)
    blob = make_z(LARGE) if limit == 200 else z
    targets = TargetsRecord("all", 8, 512) if limit == 200 else make().targets
    text = "long" * 450
    process = put(make(targets=targets, description=text), blob, limit=limit, killed=killed)
    _, errors = process.communicate(timeout=60)
    home = sound.path.parent
    if killed:
        assert process.returncode == -signal.SIGXFSZ
        assert any(path.name.endswith(".tmp") for path in home.iterdir())
    else:
        assert process.returncode == 1
        assert errors.startswith("T2Error 1: ")
        assert str(home / "2") in errors
        assert [path.name for path in home.iterdir()] == ["1"]
    assert (registry.list(), registry.problems) == ([sound], [])
    assert registry.find("math") == sound
    assert registry.put(make(targets=targets), blob).reference == "math@2"  # the lock is free again
    assert sorted(path.name for path in home.iterdir()) == ["1", "2"]
    assert [registry.verify(entry) for entry in registry.list()] == [[], []]


def test_importing_the_registry_loads_nothing_heavy() -> None:
    modules = sorted(path.stem for path in (Path(t2cli.__file__).parent / "registry").glob("*.py"))
    assert {"local", "manifest", "reference", "zfile", "card"} <= set(modules)
    code = f"""
import importlib, sys
for name in {[name for name in modules if name != "__init__"]}:
    importlib.import_module("t2cli.registry." + name)
heavy = {{"torch", "numpy", "transformers", "huggingface_hub", "safetensors"}} & set(sys.modules)
print("loaded:", *heavy)
"""
    assert start(code).communicate(timeout=60) == ("loaded:\n", "")


def test_listing_opens_manifests_only(registry: LocalRegistry, manifest: ExpertManifest, z: bytes) -> None:
    for _ in range(3):
        registry.put(manifest, z)
    code = """
import sys
from pathlib import Path
from t2cli.registry.local import LocalRegistry
root, opened = sys.argv[1], []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
registry = LocalRegistry([Path(root)])
entries = registry.list()
registry.find("math")
assert len(entries) == 3 and not registry.problems
assert "torch" not in sys.modules and "numpy" not in sys.modules
print(*sorted({Path(path).name for path in opened if path.startswith(root)}))
"""
    out, errors = start(code, registry.search_path[0]).communicate(timeout=60)
    assert (out, errors) == ("expert.yaml\n", "")
