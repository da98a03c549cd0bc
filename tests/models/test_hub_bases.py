"""Bases from the Hub, by real processes against a real HTTP server; huggingface_hub reads its settings at import."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import json, sys
from t2cli.errors import T2Error
from t2cli.models.catalog import locate
for base in sys.argv[1:]:
    try:
        files = locate(base)
        print(json.dumps({"name": files.name, "folder": str(files.folder), "source": files.source,
                          "revision": files.revision}))
    except T2Error as error:
        print(json.dumps({"error": type(error).__name__, "message": error.message, "hint": error.hint}))
"""
WANTED = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def fetch(tmp_path: Path, hub: Any) -> Callable[..., list[dict[str, str]]]:
    """Return a function that locates bases in a new process and returns what each gave."""

    def run(*bases: str, **settings: str) -> list[dict[str, str]]:
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        environment |= {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "PYTHONPATH": os.pathsep.join(sys.path),
            **settings,
        }
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT, *bases],
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert "Traceback" not in result.stderr
        assert "%|" not in result.stderr, "stderr is no terminal: no progress bars"
        return [json.loads(line) for line in result.stdout.splitlines()]

    return run


@pytest.fixture
def offered(copied: Callable[..., Path], hub: Any) -> Path:
    """Return the folder of a base that the Hub offers as org/Tiny-Model."""
    folder = copied(name="offered")
    hub.repos["org/Tiny-Model"] = folder
    return folder


KNOWN = """
import sys
from t2cli.models.catalog import known_fingerprint, locate
from t2cli.models.identity import identify
base = sys.argv[1]
assert known_fingerprint(base) is None
identity = identify(locate(base))
known = known_fingerprint(base)
assert (known.weights, known.probes) == (identity.weights, identity.probes)
assert known_fingerprint("org/Other") is known_fingerprint("org/a--b") is None
"""


def test_known_without_loading_once_it_was_used(tmp_path: Path, offered: Path, hub: Any) -> None:
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KNOWN, "org/Tiny-Model"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def test_fetched_once_then_from_the_cache_also_offline(fetch: Any, offered: Path, hub: Any) -> None:
    for name in ("pytorch_model.bin", "consolidated.safetensors", "logo.png", "onnx/model.safetensors"):
        (offered / name).parent.mkdir(exist_ok=True)
        (offered / name).write_bytes(b"not wanted")
    (found,) = fetch("org/Tiny-Model")
    assert (found["name"], found["source"]) == ("tiny-model", "hub:org/Tiny-Model")
    assert len(found["revision"]) == 40
    folder = Path(found["folder"])
    assert (folder / "model.safetensors").read_bytes() == (offered / "model.safetensors").read_bytes()
    assert {path.name for path in folder.iterdir()} == hub.downloaded
    assert hub.downloaded >= WANTED - {"generation_config.json"}
    assert not hub.downloaded & {"pytorch_model.bin", "consolidated.safetensors", "logo.png", "onnx/model.safetensors"}

    hub.asked.clear()
    assert fetch("org/Tiny-Model") == [found]
    assert not hub.downloaded
    hub.asked.clear()
    assert fetch("org/Tiny-Model", HF_HUB_OFFLINE="1") == [found]
    assert not hub.asked


def test_revisions(fetch: Any, offered: Path) -> None:
    good, bad = fetch("org/Tiny-Model@main", "org/Tiny-Model@v9")
    assert good["source"] == "hub:org/Tiny-Model"
    assert bad["error"] == "NotFoundError"
    assert "org/Tiny-Model@v9" in bad["message"]


def test_what_the_hub_does_not_have(fetch: Any, offered: Path, hub: Any, tmp_path: Path) -> None:
    (tmp_path / "no-weights").mkdir()
    (tmp_path / "no-weights" / "config.json").write_text("{}")
    hub.repos["org/pickles"] = tmp_path / "no-weights"
    hub.repos["org/gated"] = offered
    hub.gated.add("org/gated")
    unknown, weightless, gated, malformed = fetch("org/unknown", "org/pickles", "org/gated", "org/not--an..id")
    assert {found["error"] for found in (unknown, weightless, gated, malformed)} == {"NotFoundError"}
    assert "org/unknown" in unknown["message"]
    assert "no safetensors" in weightless["message"]
    assert "terms" in gated["message"]
    assert "HF_TOKEN" in gated["hint"]
    assert "org/not--an..id" in malformed["message"]


def test_token_is_sent(fetch: Any, offered: Path, hub: Any) -> None:
    hub.private["org/Tiny-Model"] = "hf_secret"
    (refused,) = fetch("org/Tiny-Model")
    assert refused["error"] == "NotFoundError"
    assert "HF_TOKEN" in refused["hint"]
    (found,) = fetch("org/Tiny-Model", HF_TOKEN="hf_secret")
    assert found["name"] == "tiny-model"
    assert "hf_secret" not in json.dumps(found)


def test_offline_with_nothing_cached(fetch: Any, offered: Path, hub: Any) -> None:
    (found,) = fetch("org/Tiny-Model", HF_HUB_OFFLINE="1")
    assert found["error"] == "NetworkError"
    assert "HF_HUB_OFFLINE is set" in found["message"]
    assert not hub.asked


def test_hub_that_cannot_be_reached(fetch: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (found,) = fetch("org/Tiny-Model", HF_ENDPOINT=f"http://127.0.0.1:{port}")
    assert found["error"] == "NetworkError"
    assert "org/Tiny-Model" in found["message"]
    assert found["hint"]


def test_hub_that_fails(fetch: Any, offered: Path, hub: Any) -> None:
    hub.broken = True
    (found,) = fetch("org/Tiny-Model")
    assert found["error"] == "NetworkError"
