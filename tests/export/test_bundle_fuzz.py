"""Generated bad bundles: each is refused, or gives experts that verify; nothing is written outside the registry."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from bundles import members as taken_apart
from fuzzing import JUNK, changed_at, edited, generate, paths_of, tree
from hypothesis import strategies as st
from typer.testing import CliRunner

from t2cli.cli.app import app
from t2cli.errors import CorruptArtifactError
from t2cli.export.bundle import import_bundle
from t2cli.registry.local import LocalRegistry

COUNTS = [80, pytest.param(1_700, marks=pytest.mark.slow)]  # two tests: more than 3,000 in all

Members = list[tuple[str, bytes]]


def sealed(members: Members) -> bytes:
    """Return a bundle as t2 would write it, whatever it holds."""
    blocks = []
    for name, raw in members:
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.mtime = len(raw), 0o644, 0
        blocks.append(member.tobuf(tarfile.USTAR_FORMAT, "ascii", "replace") + raw + bytes(-len(raw) % 512))
    return b"".join(blocks) + bytes(1024)


def digest(raw: bytes) -> bytes:
    return hashlib.sha256(raw).hexdigest().encode()


def replaced(members: Members, number: int, raw: bytes) -> Members:
    """Return members with one replaced, and every hash and path that tells of it made to fit, as a forger would."""
    changed = list(members)
    name, old = changed[number]
    changed[number] = (name, raw)
    if name.endswith("z.safetensors"):
        manifest = changed[number - 1][1].replace(digest(old), digest(raw))
        return replaced(changed, number - 1, manifest)
    if number:
        changed[0] = (changed[0][0], changed[0][1].replace(digest(old), digest(raw)))
    return changed


@pytest.fixture
def checked(bundle: Path, tmp_path: Path) -> Callable[[bytes], None]:
    """Return a function that imports a file and asserts that it was refused, or gave sound experts only."""
    target, path = tmp_path / "fuzzed", tmp_path / "fuzzed.t2"
    target.mkdir()
    path.touch()
    before = tree(tmp_path, target, path)
    ends = {"refused": 0, "taken": 0}

    def check(raw: bytes) -> None:
        path.write_bytes(raw)
        shutil.rmtree(target)
        target.mkdir()
        registry = LocalRegistry([target])
        if sum(ends.values()) % 10 == 0:  # some by the command line
            result = CliRunner().invoke(app, ["import", str(path), "--registry", str(target)], prog_name="t2")
            assert result.exit_code in (0, 5), result.output
            assert "bug in t2" not in result.output
            refused = bool(result.exit_code)
        else:
            refused = False
            try:
                import_bundle(registry, path)
            except CorruptArtifactError:
                refused = True
        ends["refused" if refused else "taken"] += 1
        entries = registry.list()
        assert registry.problems == []
        assert [problem for entry in entries for problem in registry.verify(entry)] == []
        assert not refused or not entries
        assert tree(tmp_path, target, path) == before

    return check


@pytest.mark.parametrize("count", [300, *COUNTS[1:]])
def test_any_edit(count: int, bundle: Path, checked: Callable[[bytes], None]) -> None:
    cuts = st.tuples(st.integers(0, 100_000), st.integers(0, 600), st.binary(max_size=16))

    def check(edits: list[tuple[int, int, bytes]]) -> None:
        raw = bundle.read_bytes()
        for cut in edits:
            raw = edited(raw, *cut)
        checked(raw)

    generate(count, st.lists(cuts, min_size=1, max_size=2), check)


@pytest.mark.parametrize("count", COUNTS)
def test_any_forgery(count: int, bundle: Path, checked: Callable[[bytes], None]) -> None:
    members = [(member.name, raw) for member, raw in taken_apart(bundle)]
    index = json.loads(members[0][1])
    manifests = {number: yaml.safe_load(raw) for number, (name, raw) in enumerate(members) if name.endswith("yaml")}

    def forged_index(place: int, junk: object) -> Members:
        places = list(paths_of(index))
        changed = changed_at(index, places[place % len(places)], junk)
        return replaced(members, 0, json.dumps(changed, indent=1).encode())

    def forged_manifest(number: int, place: int, junk: object) -> Members:
        places = list(paths_of(manifests[number]))
        changed = changed_at(manifests[number], places[place % len(places)], junk)
        raw = yaml.safe_dump(changed, sort_keys=False, allow_unicode=True).encode(errors="surrogatepass")
        return replaced(members, number, raw)

    def forged_bytes(number: int, begin: int, length: int, inserted: bytes) -> Members:
        return replaced(members, number, edited(members[number][1], begin, length, inserted))

    def shuffled(order: list[int]) -> Members:
        return [members[number] for number in order]

    numbers = st.integers(0, len(members) - 1)
    place = st.integers(0, 10_000)
    forgeries: st.SearchStrategy[Any] = (
        st.builds(forged_index, place, JUNK)
        | st.builds(forged_manifest, st.sampled_from(list(manifests)), place, JUNK)
        | st.builds(forged_bytes, numbers, place, st.integers(0, 20), st.binary(max_size=8))
        | st.builds(shuffled, st.lists(numbers, max_size=len(members) + 1))
    )
    generate(count, forgeries, lambda forged: checked(sealed(forged)))
