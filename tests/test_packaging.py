"""What `pip install` brings: the wheel's contents and metadata, the pinned versions, the copy under test."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import t2cli
from t2cli import paths

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)")  # no local version such as "+cpu", no URL


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    table: dict[str, Any] = document["project"]
    return table


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of this checkout, with the build backend that is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the wheel, which is all that installing this one does besides the script."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def metadata(installed: Path) -> Message:
    (file,) = installed.glob("*.dist-info/METADATA")
    return Parser().parsestr(file.read_text(encoding="utf-8"))


def files_below(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below `folder` that is not a cache."""
    files = {file.relative_to(folder): file for file in folder.rglob("*") if file.is_file()}
    return {
        name.as_posix(): file.read_bytes()
        for name, file in files.items()
        if not any(part.startswith(".") or part == "__pycache__" for part in name.parts)
    }


def test_the_wheel_holds_the_package_and_the_shipped_experts(installed: Path) -> None:
    package = files_below(ROOT / "t2cli")
    shipped = {f"_shipped_registry/{name}": content for name, content in files_below(ROOT / "registry").items()}
    assert {"py.typed", "tasks/builtin/math.yaml", "cli/app.py"} <= package.keys()
    assert "_shipped_registry/README.md" in shipped
    assert files_below(installed / "t2cli") == package | shipped


def test_an_installed_copy_finds_its_own_experts_and_tasks(installed: Path) -> None:
    program = """if True:
        from t2cli import paths
        from t2cli.tasks.base import task_names
        print(paths.shipped_registry(), *task_names(), sep="\\n")
    """
    # -P keeps the folder this runs in, a checkout perhaps, off the import path.
    run = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(installed)!r})\n{program}"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    registry, *tasks = done.stdout.splitlines()
    assert Path(registry) == installed / "t2cli" / "_shipped_registry"
    assert tasks == sorted(file.stem for file in (ROOT / "t2cli" / "tasks" / "builtin").glob("*.yaml"))


def test_the_wheel_declares_the_script(installed: Path) -> None:
    (file,) = installed.glob("*.dist-info/entry_points.txt")
    scripts = ConfigParser()
    scripts.read_string(file.read_text(encoding="utf-8"))
    assert dict(scripts["console_scripts"]) == {"t2": "t2cli.cli.app:main"}


def test_the_metadata_names_version_licence_and_extras(metadata: Message, installed: Path) -> None:
    assert metadata["Name"] == "t2cli"
    assert metadata["Version"] == t2cli.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra", [])) == {"tasks", "data", "lora", "plot", "tensorboard", "test"}
    (licence,) = installed.glob("*.dist-info/licenses/LICENSE")
    assert "Apache License" in licence.read_text(encoding="utf-8")


def test_the_changelog_tells_of_this_version() -> None:
    assert f"## [{t2cli.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def pins(text: str) -> dict[str, str]:
    """Return the versions that a constraints file pins; ValueError for a line that is anything else."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        if not (match := PIN.fullmatch(line)):
            raise ValueError(f"not NAME==VERSION: {line}")
        found[canonicalize_name(match[1])] = match[2]
    return found


def test_every_requirement_is_pinned_to_a_version_that_it_accepts(project: dict[str, Any]) -> None:
    pinned = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    extras = project["optional-dependencies"].values()
    for requirement in map(Requirement, itertools.chain(project["dependencies"], *extras)):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(version), f"{requirement} does not accept {version}"


@pytest.mark.parametrize(
    "line", ["torch==2.13.0+cpu", "torch>=2", "torch", "torch @ https://example.com/t.whl", "--index-url x", "-e ."]
)
def test_constraints_hold_versions_only(line: str) -> None:
    with pytest.raises(ValueError, match="not NAME==VERSION"):
        pins(line)


def test_the_code_under_test_is_this_checkout() -> None:
    """Fails where an older installed copy is imported: no test would say anything about this code."""
    imported = Path(t2cli.__file__).parent
    files = {name: raw for name, raw in files_below(imported).items() if not name.startswith("_shipped_registry/")}
    assert files == files_below(ROOT / "t2cli"), f"{imported} is not this checkout: run pip install again"


def test_the_shipped_experts_are_found_by_the_code_under_test() -> None:
    assert files_below(paths.shipped_registry()) == files_below(ROOT / "registry")
