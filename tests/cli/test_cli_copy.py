"""t2 copy: the same numbers under another name or in another registry, and where they came from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from t2cli.registry.local import LocalRegistry
from t2cli.registry.manifest import ParentRecord


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_copy_keeps_everything_but_name_version_time_and_parents(
    run: Callable, registry: Path, tmp_path: Path, elsewhere: bool
) -> None:
    target = tmp_path / "other" if elsewhere else registry
    to = ("--to", target) if elsewhere else ()
    result = run("copy", "math@2", "sums", *to, "--registry", registry, "--json")
    assert result.exit_code == 0, result.stderr
    source, made = LocalRegistry([registry]).find("math@2"), LocalRegistry([target]).find("sums")
    parent = ParentRecord("math@2", source.digest, 1.0)
    expected = replace(source.manifest, name="sums", version=1, created=made.manifest.created, parents=(parent,))
    assert made.manifest == expected
    assert made.z_bytes() == source.z_bytes()
    assert LocalRegistry([target]).verify(made) == []
    record = json.loads(result.stdout)
    assert (record["schema"], record["expert"], record["digest"]) == ("t2.copy/1", "sums@1", made.digest)
    assert (record["path"], record["parents"][0]["digest"]) == (str(made.path), source.digest)
    again = run("copy", "math@2", "sums", *to, "--registry", registry)
    assert again.stdout.startswith("sums@2 is a copy of math@2: ")
    if not elsewhere:
        assert "made from\n  1 math@2\n" in run("show", "sums", "--registry", registry).stdout


def test_without_a_name_it_goes_elsewhere_under_its_own(run: Callable, registry: Path, tmp_path: Path) -> None:
    assert run("copy", "both", "--to", tmp_path / "b", "--registry", registry).exit_code == 0
    (made,) = LocalRegistry([tmp_path / "b"]).list()
    assert (made.reference, made.manifest.kind) == ("both@1", "mix")
    assert [parent.ref for parent in made.manifest.parents] == ["both@1"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["code"], 2, "needs a new name or another registry"),
        (["code", "../evil"], 2, "'../evil'"),
        (["code", "Sums"], 2, "'Sums'"),
        (["cod", "sums"], 3, "did you mean code"),
        (["code@7", "sums"], 3, "code@7"),
    ],
)
def test_what_cannot_be_copied_is_refused(
    arguments: list[str], code: int, said: str, run: Callable, refused: Callable, registry: Path
) -> None:
    before = sorted(registry.rglob("*"))
    refused(run("copy", *arguments, "--registry", registry), code, said)
    assert sorted(registry.rglob("*")) == before


def test_a_damaged_expert_is_not_copied(run: Callable, refused: Callable, registry: Path) -> None:
    (LocalRegistry([registry]).find("code").path / "z.safetensors").write_bytes(b"x" * 150)
    refused(run("copy", "code", "more", "--registry", registry), 5, "SHA-256 differs")
    assert not list(registry.glob("*/more/*"))
