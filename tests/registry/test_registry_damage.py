"""Damaged, edited and hostile registries: listed without them, refused by name, never another exception."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from t2cli.errors import CorruptArtifactError
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.manifest import ExpertManifest

Make = Callable[..., ExpertManifest]


@pytest.fixture
def entry(registry: LocalRegistry, make: Make, z: bytes) -> ExpertEntry:
    """Return math@2; math@1 and code@1 are there too and stay sound."""
    registry.put(make(), z)
    registry.put(make("code"), z)
    return registry.put(make(), z)


def assert_passed_over(registry: LocalRegistry, *, problems: int = 1) -> None:
    assert [shown.reference for shown in registry.list()] == ["code@1", "math@1"]
    assert len(registry.problems) == problems
    assert all(problem.message and problem.hint for problem in registry.problems)


def edit(entry: ExpertEntry, change: Callable[[dict[str, object]], object]) -> None:
    path = entry.path / "expert.yaml"
    document = yaml.safe_load(path.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document))


def replaced(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"\xff\xfe\x00", b"name: math", b"[" * 100_000, b"a: &a [*a]", b"x" * (1 << 21), b"schema: 2"],
    ids=lambda content: repr(content[:12]),
)
def test_a_broken_manifest(registry: LocalRegistry, entry: ExpertEntry, content: bytes) -> None:
    replaced(entry.path / "expert.yaml", content)
    assert_passed_over(registry)
    for ref in ("math@2", "math"):  # never silently the older version
        with pytest.raises(CorruptArtifactError) as caught:
            registry.find(ref)
        assert caught.value.exit_code == 5
        assert str(entry.path / "expert.yaml") in caught.value.message
    assert registry.find("math@1").reference == "math@1"
    assert len(registry.verify(entry)) == 1
    registry.remove("math@2")
    assert registry.find("math").reference == "math@1"


def test_every_truncation_of_the_manifest_is_refused(registry: LocalRegistry, entry: ExpertEntry) -> None:
    text = (entry.path / "expert.yaml").read_bytes()
    for length in range(0, len(text) - 1, 7):
        (entry.path / "expert.yaml").write_bytes(text[:length])
        with pytest.raises(CorruptArtifactError):
            registry.find("math@2")


def test_a_missing_manifest_or_an_empty_version(registry: LocalRegistry, entry: ExpertEntry) -> None:
    (entry.path / "expert.yaml").unlink()
    (entry.path.parent / "7").mkdir()
    assert_passed_over(registry, problems=2)
    with pytest.raises(CorruptArtifactError, match="missing"):
        registry.find("math@2")


def test_a_valid_edit_of_the_manifest_is_noticed(registry: LocalRegistry, entry: ExpertEntry) -> None:
    edit(entry, lambda document: document.update(description="better"))
    problems = registry.verify(entry)
    assert len(problems) == 1
    assert "has changed" in problems[0]


@pytest.mark.parametrize("key", ["name", "version", "base"])
def test_a_manifest_that_lies_about_its_place(registry: LocalRegistry, entry: ExpertEntry, key: str) -> None:
    other = {"name": "poems", "version": 9, "base": {**entry.manifest.to_dict()["base"], "name": "other"}}  # type: ignore[dict-item]
    edit(entry, lambda document: document.update({key: other[key]}))
    assert_passed_over(registry)
    with pytest.raises(CorruptArtifactError, match="not where it lies"):
        registry.find("math@2")


def test_a_truncated_or_edited_z(registry: LocalRegistry, entry: ExpertEntry, z: bytes) -> None:
    path = entry.path / "z.safetensors"
    edited = bytes([*z[:-1], z[-1] ^ 1])
    for content, said in [
        *((z[:length], r"truncated|SHA-256") for length in (0, 1, 8, 40, len(z) - 4, len(z) - 1)),
        (edited, "SHA-256 differs"),
        (z + b"x", "SHA-256 differs"),
        (z + bytes(10 << 20), "larger"),
    ]:
        path.write_bytes(content)
        with pytest.raises(CorruptArtifactError, match=said) as caught:
            entry.z_bytes()
        assert str(path) in caught.value.message
        assert len(registry.verify(entry)) == 1
    path.unlink()
    with pytest.raises(CorruptArtifactError, match="missing"):
        entry.z_bytes()
    assert entry in registry.list()  # listing reads manifests only


def test_a_z_that_fits_its_hash_but_not_its_manifest(
    registry: LocalRegistry, entry: ExpertEntry, make_z: Callable[..., bytes]
) -> None:
    for blob, said in [
        (make_z(value=float("nan")), "NaN"),
        (make_z({"w": 11}), "1 matrices and 11 numbers"),
        (b"\xff" * 100, "truncated or no safetensors"),
    ]:
        (entry.path / "z.safetensors").write_bytes(blob)
        digest = hashlib.sha256(blob).hexdigest()
        edit(entry, lambda document: document["z"].update(sha256=digest))  # type: ignore[attr-defined]  # noqa: B023
        problems = registry.verify(registry.find("math@2"))
        assert len(problems) == 1
        assert said in problems[0]


def test_links_out_of_the_registry_are_refused(tmp_path: Path, registry: LocalRegistry, entry: ExpertEntry) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(entry.path, outside)
    for name in ("expert.yaml", "z.safetensors"):
        (entry.path / name).unlink()
        (entry.path / name).symlink_to(outside / name)
        with pytest.raises(CorruptArtifactError, match="symbolic link"):
            (registry.find("math@2") if name == "expert.yaml" else entry).z_bytes()
        assert registry.verify(entry)
        replaced(entry.path / name, (outside / name).read_bytes())
    assert registry.verify(entry) == []
    shutil.rmtree(entry.path)
    entry.path.symlink_to(outside)
    assert_passed_over(registry)
    registry.remove("math@2")
    assert sorted(path.name for path in outside.iterdir()) == ["README.md", "expert.yaml", "z.safetensors"]


def test_nothing_is_written_or_removed_through_a_link(
    tmp_path: Path, registry: LocalRegistry, entry: ExpertEntry, make: Make, z: bytes
) -> None:
    outside = tmp_path / "outside"
    shutil.move(entry.path.parent, outside)
    entry.path.parent.symlink_to(outside)
    before = sorted(outside.rglob("*"))
    with pytest.raises(CorruptArtifactError, match="symbolic link"):
        registry.put(make(), z)
    with pytest.raises(CorruptArtifactError, match="symbolic link"):
        registry.remove("math@2")
    assert sorted(outside.rglob("*")) == before
    assert [shown.reference for shown in registry.list()] == ["code@1"]


def test_a_registry_may_itself_be_a_link(tmp_path: Path, registry: LocalRegistry, entry: ExpertEntry) -> None:
    link = tmp_path / "link"
    link.symlink_to(registry.search_path[0])
    linked = LocalRegistry([link])
    assert len(linked.list()) == 3
    assert linked.find("math").digest == entry.digest


def test_pipes_loops_and_folders_in_the_place_of_files(registry: LocalRegistry, entry: ExpertEntry) -> None:
    path = entry.path / "expert.yaml"
    path.unlink()
    os.mkfifo(path)
    assert_passed_over(registry)
    path.unlink()
    path.mkdir()
    assert_passed_over(registry)
    path.rmdir()
    path.symlink_to(path.name)
    assert_passed_over(registry)
    shutil.rmtree(entry.path)
    entry.path.write_text("a file")
    with pytest.raises(CorruptArtifactError):
        registry.find("math@2")


def test_stray_files_are_no_experts(registry: LocalRegistry, make: Make, z: bytes) -> None:
    entry = registry.put(make(), z)
    root, home = registry.search_path[0], entry.path.parent
    for path in (root / "README.md", root / ".DS_Store", entry.path.parents[1] / "notes.txt", home / "old"):
        path.write_text("x")
    for name in ("0", "01", "-1", "1.5", "1 ", "²", "9" * 40, ".2.abcdef.tmp", "backup"):
        shutil.copytree(entry.path, home / name)
    (root / "an empty folder").mkdir()
    assert (registry.list(), registry.problems) == ([entry], [])
    assert registry.put(make(), z).reference == "math@2"


def test_an_edited_base_is_another_base(registry: LocalRegistry, entry: ExpertEntry) -> None:
    weights = "c" * 64
    base = replace(entry.manifest.base, fingerprint=replace(entry.manifest.base.fingerprint, weights=weights))
    home = registry.search_path[0] / base.folder / "math" / "2"
    shutil.copytree(entry.path, home)
    with pytest.raises(CorruptArtifactError, match="not where it lies"):
        registry.find("math@2", base_digest=weights)
