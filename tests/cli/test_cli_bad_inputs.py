"""Generated bad manifests, z files and names: each ends in a documented exit code, and nothing is written elsewhere."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import JUNK, changed_at, edited, generate, paths_of, tree
from hypothesis import strategies as st
from typer.testing import Result

from t2cli.errors import UsageError
from t2cli.registry.local import LocalRegistry
from t2cli.registry.reference import ExpertRef

COUNTS = [60, pytest.param(3_400, marks=pytest.mark.slow)]  # three tests: more than 10,000 in all


@pytest.fixture
def victim(registry: Path, tmp_path: Path) -> Iterator[Path]:
    """Return the folder of an expert to be damaged; afterwards nothing outside the registry has changed."""
    (tmp_path / "home" / "cache" / "listings").mkdir(parents=True, exist_ok=True)
    (tmp_path / "outside").write_text("untouched")
    before = tree(tmp_path, registry)
    yield LocalRegistry([registry]).find("code").path
    assert tree(tmp_path, registry) == before


def check_end(result: Result, *codes: int) -> None:
    """Assert that a command ended as documented: with one of the codes, said in three lines, and not by a bug."""
    assert result.exit_code in codes, result.output
    errors = [line for line in result.stderr.splitlines() if not line.startswith("warning: ")]
    assert "bug in t2" not in result.stderr
    if result.exit_code:
        assert errors[0].startswith("error: ")
        assert len(errors) <= 3, result.stderr
    assert all(c.isprintable() or c == "\n" for c in result.output)


@pytest.mark.parametrize("count", COUNTS)
def test_bad_manifests(count: int, run: Callable[..., Result], registry: Path, victim: Path) -> None:
    path = victim / "expert.yaml"
    text = path.read_text()
    places = list(paths_of(yaml.safe_load(text)))

    def dumped(place: tuple[Any, ...], junk: object) -> bytes:
        document = changed_at(yaml.safe_load(text), place, junk)
        return yaml.safe_dump(document, allow_unicode=True).encode(errors="surrogatepass")

    changed = st.builds(dumped, st.sampled_from(places), JUNK)
    cut = st.builds(edited, st.just(text.encode()), st.integers(0, 10_000), st.integers(0, 60), st.binary(max_size=12))
    commands = st.sampled_from([("show", "code"), ("verify", "code"), ("list", "--all"), ("copy", "code", "code2")])

    def check(case: tuple[bytes, tuple[str, ...]]) -> None:
        raw, command = case
        path.write_bytes(raw)
        check_end(run(*command, "--registry", registry, "--quiet"), 0, 5, *([2] if command[0] == "copy" else []))
        shutil.rmtree(victim.parent.parent / "code2", ignore_errors=True)

    generate(count, st.tuples(changed | cut | st.binary(max_size=80), commands), check)


@pytest.mark.parametrize("count", COUNTS)
def test_bad_z_files(count: int, run: Callable[..., Result], registry: Path, victim: Path) -> None:
    manifest, z = victim / "expert.yaml", victim / "z.safetensors"
    text, sound = manifest.read_text(), z.read_bytes()
    digest = yaml.safe_load(text)["z"]["sha256"]

    def framed(header: object, data: bytes) -> bytes:
        raw = json.dumps(header).encode()
        return struct.pack("<Q", len(raw)) + raw + data

    name = "model.layers.0.self_attn.q_proj.weight"
    keys = st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.just("F32") | JUNK,
            "shape": st.just([2]) | st.lists(st.integers(-2, 2**70), max_size=2) | JUNK,
            "data_offsets": st.just([0, 8]) | st.lists(st.integers(-2, 2**70), max_size=3) | JUNK,
            "more": JUNK,
        },
    )
    headers = st.dictionaries(st.just(name) | st.just("../../evil") | st.text(max_size=6), keys | JUNK, max_size=3)
    files = (
        st.builds(framed, headers | JUNK, st.binary(max_size=16))
        | st.builds(edited, st.just(sound), st.integers(0, 10_000), st.integers(0, 20), st.binary(max_size=8))
        | st.binary(max_size=120)
    )
    commands = st.sampled_from(
        [("verify", "code"), ("show", "code"), ("diff", "code", "math"), ("copy", "code", "code2")]
    )

    def check(case: tuple[bytes, tuple[str, ...]]) -> None:
        raw, command = case
        z.write_bytes(raw)  # with the hash that the manifest says, so that the header is what is judged
        manifest.write_text(text.replace(digest, hashlib.sha256(raw).hexdigest()))
        check_end(run(*command, "--registry", registry, "--quiet"), 0, 5, *([4] if command[0] == "diff" else []))
        shutil.rmtree(victim.parent.parent / "code2", ignore_errors=True)

    generate(count, st.tuples(files, commands), check)


def on_the_hub(name: str) -> bool:
    """Tell whether this is a sound reference to the Hub, which would be asked for it."""
    try:
        return ExpertRef.parse(name).repo is not None
    except UsageError:
        return False


@pytest.mark.parametrize("count", COUNTS)
def test_bad_names(count: int, run: Callable[..., Result], registry: Path, victim: Path) -> None:
    parts = st.sampled_from(
        ["..", "/", "code", "@", "sha256:", "hf://", "a/b", "\x00", "~", "*", "$(x)", "C:\\", "1", " "]
    )
    names = (st.lists(parts, min_size=1, max_size=5).map("".join) | st.text(max_size=70)).filter(
        lambda name: (
            not name.strip().startswith(("-", "code")) and name.strip() not in ("math", "both") and not on_the_hub(name)
        )
    )
    # after --, so that a name that begins with a dash is a name
    commands = st.sampled_from(
        [["show"], ["verify"], ["rm", "--yes"], ["copy", "--to", str(registry.parent / "elsewhere")], ["diff", "code"]]
    )
    before = tree(registry, registry / "none")

    def check(case: tuple[str, list[str]]) -> None:
        name, command = case
        check_end(run(*command, "--registry", registry, "--", name), 2, 3)
        check_end(run("copy", "--registry", registry, "--", "code", f"{name}/"), 2)  # no name that could be
        check_end(run("list", "--category", f"{name}/", "--registry", registry), 3)
        check_end(run("list", "--base", name or "x", "--registry", registry, "--quiet"), 0)

    generate(count, st.tuples(names, commands), check)
    assert tree(registry, registry / "none") == before
