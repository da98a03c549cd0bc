"""Remembered manifests: the same list as without, whatever happens to the registry or to the cache."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t2cli.registry.listing import cache_path, remembered
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.manifest import BaseRecord, ExpertManifest

Make = Callable[..., ExpertManifest]


@pytest.fixture
def filled(registry: LocalRegistry, make: Make, other_base: BaseRecord, z: bytes) -> LocalRegistry:
    """Return a registry of five versions, of two bases, that were all published some time ago."""
    mix = make("both", kind="mix", training=None, evaluation=(), examples=("a: b", "c"))
    for manifest in (make(), make(), make("code"), mix, make(base=other_base)):
        registry.put(manifest, z)
    return settled(registry)


def settled(registry: LocalRegistry) -> LocalRegistry:
    """Make every manifest look a minute old: a younger one might still change within a tick of the clock."""
    then = time.time() - 60
    for path in registry.search_path[0].rglob("expert.yaml"):
        os.utime(path, (then, then))
    return registry


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the places whose manifests were parsed since the last `clear`."""
    read, seen = LocalRegistry.read, []

    def counted(self: LocalRegistry, slot: Any) -> ExpertEntry:
        seen.append(slot.reference)
        return read(self, slot)

    monkeypatch.setattr(LocalRegistry, "read", counted)
    return seen


def assert_lists_as_ever(registry: LocalRegistry) -> None:
    shown = remembered(registry)
    problems = [str(problem) for problem in registry.problems]
    assert shown == registry.list()
    assert problems == [str(problem) for problem in registry.problems]


def test_the_list_is_the_same_and_parsed_once(filled: LocalRegistry, parsed: list[str]) -> None:
    assert_lists_as_ever(filled)
    parsed.clear()
    assert len(remembered(filled)) == 5
    assert parsed == []


def test_what_was_just_published_need_not_be_parsed(
    registry: LocalRegistry, make: Make, z: bytes, parsed: list[str]
) -> None:
    entry = registry.put(make(), z)
    parsed.clear()
    assert remembered(registry) == [entry]
    assert parsed == []


def test_a_change_of_a_manifest_is_seen(filled: LocalRegistry, parsed: list[str]) -> None:
    remembered(filled)
    path = filled.find("code").path / "expert.yaml"
    text, before = path.read_text(), path.stat()
    path.write_text(text.replace("two-digit", "six-digit"))
    assert path.stat().st_size == before.st_size
    assert_lists_as_ever(filled)
    assert [e.manifest.description for e in remembered(filled) if e.manifest.name == "code"] == ["six-digit sums"]
    # another file with the same size and time in its place
    other = path.with_name("new")
    other.write_text(text.replace("two-digit", "ten-digit"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert_lists_as_ever(filled)
    path.write_text("schema: 1\n")
    assert_lists_as_ever(filled)
    assert len(remembered(filled)) == 4
    shutil.rmtree(path.parent)
    assert_lists_as_ever(filled)


def test_a_manifest_that_changed_just_now_is_not_remembered(filled: LocalRegistry, parsed: list[str]) -> None:
    path = filled.find("code").path / "expert.yaml"
    path.write_text(path.read_text().replace("two-digit", "six-digit"))
    remembered(filled)
    parsed.clear()
    remembered(filled)
    assert parsed == ["code@1"]


def test_links_are_refused_although_they_were_remembered(filled: LocalRegistry, tmp_path: Path) -> None:
    remembered(filled)
    home = filled.find("code").path.parent
    for path in (home / "1" / "expert.yaml", home / "1", home):
        outside = tmp_path / f"outside-{path.name}"
        path.rename(outside)  # the inode stays
        path.symlink_to(outside)
        assert_lists_as_ever(filled)
        assert len(remembered(filled)) == 4
        path.unlink()
        outside.rename(path)


@pytest.mark.parametrize("damage", ["empty", "cut", "binary", "flipped", "json", "older", "folder"])
def test_a_damaged_cache_is_passed_over(filled: LocalRegistry, damage: str) -> None:
    remembered(filled)
    path = cache_path(filled.search_path[0])
    raw = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        older = raw.replace(b'"manifest"', b'"manifesto"')
        flipped = raw.replace(b"two-digit", b"one-digit")  # the checksum no longer fits
        path.write_bytes(
            {"empty": b"", "cut": raw[: len(raw) // 2], "binary": os.urandom(500), "flipped": flipped}.get(
                damage, b"[" * 5000 + b"\n00000000 - {}\n" if damage == "json" else older
            )
        )
    for _ in range(2):
        assert_lists_as_ever(filled)


def test_every_cut_of_the_cache_gives_the_same_list(filled: LocalRegistry) -> None:
    remembered(filled)
    path = cache_path(filled.search_path[0])
    raw = path.read_bytes()
    expected = filled.list()
    for length in range(0, len(raw), 211):
        path.write_bytes(raw[:length])
        assert remembered(filled) == expected
        assert remembered(filled) == expected  # what was appended after the cut counts too


def test_the_cache_does_not_grow_for_ever(filled: LocalRegistry, make: Make, z: bytes) -> None:
    path = cache_path(filled.search_path[0])
    for _ in range(150):
        filled.remove(filled.put(make("passing"), z).reference)
    assert len(path.read_bytes().splitlines()) > 250
    assert_lists_as_ever(filled)
    lines = [line for line in path.read_bytes().splitlines() if line]
    assert len(lines) == 7  # five versions and two bases
    assert_lists_as_ever(filled)


def test_a_home_that_cannot_be_written_to_is_no_reason_not_to_list(
    filled: LocalRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make, z: bytes
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("T2_HOME", str(tmp_path / "file"))
    assert_lists_as_ever(filled)
    assert filled.put(make(), z).reference == "math@3"


def test_registries_do_not_share_what_is_remembered(tmp_path: Path, make: Make, z: bytes) -> None:
    for name in ("a", "b"):
        LocalRegistry([tmp_path / name]).put(make(description=name), z)
    both = LocalRegistry([tmp_path / "b", tmp_path / "a"])
    for _ in range(2):
        assert [entry.manifest.description for entry in remembered(both)] == ["b", "a"]
