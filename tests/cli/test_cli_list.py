"""t2 list: what it shows, what it leaves out, and what it says of it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from t2cli.cli.list import age_text, gain_text, newest
from t2cli.models.catalog import identity_path, weight_files
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.manifest import FingerprintRecord

T2 = Callable[..., subprocess.CompletedProcess[str]]
Make = Callable[..., ExpertEntry]


@pytest.fixture(autouse=True)
def without_the_shipped_experts(tmp_path: Path, environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the search path be the local registry alone: what ships changes from release to release."""
    monkeypatch.setenv("T2_REGISTRY", str(tmp_path / "home" / "registry"))


def experts(result: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["schema"] == "t2.list/1"
    return list(answer["experts"])


@pytest.fixture
def known_base(tmp_path: Path) -> Path:
    """Return a base folder whose weights' digest, 64 times "a", is already remembered."""
    folder = tmp_path / "base"
    folder.mkdir()
    path = identity_path(folder.resolve())
    path.parent.mkdir(parents=True)
    fingerprint = {"weights": "a" * 64, "probes": {"q_proj": [30.0, -40.0]}}
    record = {**fingerprint, "architecture": "LlamaForCausalLM", "files": weight_files(folder)}
    path.write_text(json.dumps(record))
    return folder


def test_the_table_is_golden(t2: T2, registry: Path, golden: Callable[[str, str], None]) -> None:
    result = t2("list", "--registry", registry, "--quiet")
    assert (result.returncode, result.stderr) == (0, "")
    golden("list.txt", result.stdout.replace(str(registry), "<registry>"))


def test_the_table_of_a_local_registry_fits_80_columns(t2: T2, tmp_path: Path, make_expert: Make) -> None:
    make_expert(tmp_path / "home" / "registry", "math")
    assert max(map(len, t2("list").stdout.splitlines())) <= 80


def test_the_json_is_golden_and_one_line(t2: T2, registry: Path, golden: Callable[[str, str], None]) -> None:
    result = t2("list", "--registry", registry, "--json")
    assert result.stdout.count("\n") == 1
    fields = {"schema": "t2.list/1", "experts": experts(result)}
    text = json.dumps(fields, indent=2).replace(str(registry), "<registry>")
    text = re.sub(r'"created": "[^"]+"', '"created": "<time>"', text)
    golden("list.json", re.sub(r'"digest": "[0-9a-f]{64}"', '"digest": "<sha256>"', text) + "\n")


def test_a_category_can_be_asked_for_and_an_unknown_one_is_an_error(t2: T2, tmp_path: Path, make_expert: Make) -> None:
    make_expert(tmp_path / "home" / "registry", "sums", category="math")
    make_expert(tmp_path / "home" / "registry", "puzzles", category="reasoning")
    for name in ("math", " Math"):  # one category, as for pass 1
        found = experts(t2("list", "--json", "--category", name))
        assert [expert["name"] for expert in found] == ["sums"]
    unknown = t2("list", "--category", "maths")
    assert (unknown.returncode, unknown.stdout) == (3, "")
    assert "no category of experts named 'maths'" in unknown.stderr
    assert "did you mean math?" in unknown.stderr


def test_json_says_what_the_registry_holds(t2: T2, registry: Path) -> None:
    found = {entry.digest: entry for entry in LocalRegistry([registry]).list()}
    shown = experts(t2("list", "--registry", registry, "--json", "--all"))
    assert {item["digest"] for item in shown} == set(found)
    for item in shown:
        entry = found[str(item["digest"])]
        assert (item["name"], item["version"]) == (entry.manifest.name, entry.manifest.version)
        assert item["fingerprint"] == entry.manifest.base.fingerprint.weights


def test_only_the_newest_version_of_each_name_and_base_unless_all(t2: T2, registry: Path) -> None:
    def versions(*options: str) -> list[tuple[object, ...]]:
        found = experts(t2("list", "--registry", registry, "--json", *options))
        return [(item["name"], item["base"], item["version"]) for item in found]

    rest = [("both", "smollm2-135m", 1), ("code", "smollm2-135m", 1), ("math", "qwen3-0.6b", 1)]
    assert versions() == [*rest, ("math", "smollm2-135m", 2)]
    assert versions("--all") == [*rest, ("math", "smollm2-135m", 1), ("math", "smollm2-135m", 2)]


@pytest.mark.parametrize("versions", [(1, 2), (2, 1), (2, 2)])
def test_newest_is_the_version_that_the_bare_name_means(
    versions: tuple[int, int], tmp_path: Path, make_expert: Make
) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder, count in zip(folders, versions, strict=True):
        for _ in range(count):
            make_expert(folder, "math")
    both = LocalRegistry(folders)
    [shown] = newest(both.list())
    assert shown.path == both.find("math").path


def named(result: subprocess.CompletedProcess[str]) -> list[tuple[object, object]]:
    return [(item["name"], item["base"]) for item in experts(result)]


def test_base_filters_by_weights_where_they_are_known_and_by_name(t2: T2, registry: Path, known_base: Path) -> None:
    result = t2("list", "--registry", registry, "--json", "--base", known_base)
    assert named(result) == [(name, "smollm2-135m") for name in ("both", "code", "math")]
    assert [item["compatible"] for item in experts(result)] == [True] * 3
    assert f"1 of 4 cannot be used with {known_base}" in result.stderr
    for name in ("qwen3-0.6b", "qwen3-0.6b-bbbbbbbbbbbb", "example/Qwen3-0.6B", "example/qwen3-0.6b@main"):
        result = t2("list", "--registry", registry, "--json", "--base", name)
        assert named(result) == [("math", "qwen3-0.6b")], name
        assert [item["compatible"] for item in experts(result)] == [None], name
    assert experts(t2("list", "--registry", registry, "--json", "--base", "example/never-loaded")) == []


def test_a_base_that_no_expert_is_for_is_told_from_those_that_there_are(t2: T2, registry: Path) -> None:
    mistyped = t2("list", "--registry", registry, "--base", "smollm2-13m")
    assert (mistyped.returncode, mistyped.stdout) == (0, "")
    assert "for other base models than smollm2-13m: did you mean smollm2-135m?" in mistyped.stderr
    other = t2("list", "--registry", registry, "--base", "qwen3-0.6b", "--kind", "mix")
    assert "other base models" not in other.stderr


def test_compatible_leaves_out_what_cannot_be_used(t2: T2, registry: Path, known_base: Path, make_expert: Make) -> None:
    first = LocalRegistry([registry]).find("code")
    for name, digit, probe in (("near", "c", -40.1), ("far", "d", 40.0)):
        fingerprint = FingerprintRecord(digit * 64, {"q_proj": [3.5]}, {"q_proj": [30.0, probe]})
        make_expert(registry, name, base=replace(first.manifest.base, name=name, fingerprint=fingerprint))
    asked = ("list", "--registry", registry, "--json", "--compatible", "--base")
    assert named(t2(*asked, known_base)) == [
        *((name, "smollm2-135m") for name in ("both", "code", "math")),
        ("near", "near"),
    ]
    unknown = t2(*asked, "example/never-loaded")
    assert experts(unknown) == []
    assert "nothing is known of example/never-loaded yet: t2 decompose" in unknown.stderr


def test_kind_filters(t2: T2, registry: Path) -> None:
    assert named(t2("list", "--registry", registry, "--json", "--kind", "mix")) == [("both", "smollm2-135m")]
    assert "but none of those" in t2("list", "--registry", registry, "--kind", "dispatcher").stderr
    assert t2("list", "--kind", "mixes").returncode == 2


def test_an_unreadable_expert_is_a_warning_and_the_others_are_listed(t2: T2, registry: Path) -> None:
    [damaged] = [entry for entry in LocalRegistry([registry]).list() if entry.manifest.name == "code"]
    (damaged.path / "expert.yaml").write_text("schema: 1\nname: [")
    result = t2("list", "--registry", registry, "--json", "--quiet")
    assert [item["name"] for item in experts(result)] == ["both", "math", "math"]
    [warning] = result.stderr.splitlines()
    assert warning.startswith("warning: ")
    assert "code" in warning


def test_an_empty_registry_is_no_failure_and_says_what_to_do(t2: T2, tmp_path: Path) -> None:
    result = t2("list", "--registry", tmp_path / "none")
    assert (result.returncode, result.stdout) == (0, "")
    assert str(tmp_path / "none") in result.stderr
    assert "t2 train" in result.stderr
    assert t2("list", "--registry", tmp_path / "none", "--quiet").stderr == ""
    assert experts(t2("list", "--registry", tmp_path / "none", "--json")) == []


@pytest.mark.parametrize(
    ("age", "text"),
    [
        (timedelta(seconds=-5), "now"),
        (timedelta(seconds=59), "now"),
        (timedelta(minutes=59), "59min"),
        (timedelta(hours=23), "23h"),
        (timedelta(days=29), "29d"),
        (timedelta(days=31), "1mo"),
        (timedelta(days=800), "2y"),
    ],
)
def test_age(age: timedelta, text: str) -> None:
    now = datetime(2026, 11, 23, 10, tzinfo=UTC)
    assert age_text((now - age).isoformat().replace("+00:00", "Z"), now) == text


def test_gain_is_that_of_the_task_trained_for(tmp_path: Path, make_expert: Make) -> None:
    entry = make_expert(tmp_path, "math")
    [own] = entry.manifest.evaluation
    other = replace(own, task="other", gain=-0.05, gain_ci95=None)
    assert gain_text(replace(entry.manifest, evaluation=(other, own))) == "+21.2 [16.0, 26.4]"
    assert gain_text(replace(entry.manifest, evaluation=(other, own), training=None)) == "-5.0"
    assert gain_text(replace(entry.manifest, evaluation=())) == "-"
