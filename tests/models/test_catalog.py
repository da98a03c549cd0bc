"""Names of bases: folders, unknown names, and names that registries can hold."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from t2cli.errors import NotFoundError
from t2cli.models.catalog import CATALOG, DEFAULT_BASE, locate, short_name
from t2cli.registry.reference import NAME_PATTERN


def test_local_folder(base_folder: Callable[[str], Path]) -> None:
    files = locate(str(base_folder("llama-grouped")))
    assert (files.name, files.folder, files.source) == ("llama-grouped", base_folder("llama-grouped"), "local")


def test_relative_folder_and_home(
    base_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(base_folder("llama"), tmp_path / "My Model v1.0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("My Model v1.0", "./My Model v1.0", "~/My Model v1.0"):
        assert locate(name).folder == tmp_path / "My Model v1.0"
    assert locate("./My Model v1.0").name == "my-model-v1.0"
    monkeypatch.chdir(tmp_path / "My Model v1.0")
    assert locate(".").name == "my-model-v1.0"


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no config\.json") as caught:
        locate(str(tmp_path))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["smollm2", "smollm2-135", "smolm2-135m"])
def test_unknown_name_suggests_the_one_meant(name: str) -> None:
    with pytest.raises(NotFoundError, match=name) as caught:
        locate(name)
    assert f"did you mean {DEFAULT_BASE}?" in caught.value.hint


@pytest.mark.parametrize("name", ["", "a/b/c", "/no/such/folder", "./no/such", "../x", "-x/y", "a b/c"])
def test_what_is_no_name_at_all(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError):
        locate(name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
        ("Qwen3-0.6B", "qwen3-0.6b"),
        ("__weird  name__", "weird-name"),
        ("...", "base"),
        ("模型", "base"),
        ("x" * 99, "x" * 48),
    ],
)
def test_short_names(text: str, name: str) -> None:
    assert short_name(text) == name
    assert re.fullmatch(NAME_PATTERN, name)


def test_catalog_is_pinned() -> None:
    assert DEFAULT_BASE in CATALOG
    for name, base in CATALOG.items():
        assert short_name(name) == base.name == name
        assert re.fullmatch(r"[0-9a-f]{64}", base.wheel.sha256)
        assert base.wheel.size > 0
        assert base.wheel.member.startswith(f"{base.wheel.module}/")


def test_catalog_loads_no_torch() -> None:
    script = (
        "import sys; from t2cli.models.catalog import known_digest; known_digest('smollm2-135m'); known_digest('.')\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
