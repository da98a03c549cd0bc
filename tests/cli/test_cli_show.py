"""t2 show: all of an expert's manifest, how its base relates to another, and what a mix was made from."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from t2cli.models.catalog import CATALOG, identity_path, weight_files
from t2cli.paths import converted_folder
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.manifest import BaseRecord, FingerprintRecord, ParentRecord

T2 = Callable[..., subprocess.CompletedProcess[str]]
Make = Callable[..., ExpertEntry]

PROBES = {"q_proj": [30.0, -40.0]}


def remembered(folder: Path, weights: str = "a" * 64) -> Path:
    """Make a base folder whose fingerprint is remembered, without any weights."""
    folder.mkdir(parents=True)
    path = identity_path(folder.resolve())
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"weights": weights, "probes": PROBES, "architecture": "LlamaForCausalLM", "files": weight_files(folder)}
    path.write_text(json.dumps(record))
    return folder


def record_of(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded


def made_for(entry: ExpertEntry, digit: str, probes: dict[str, list[float]]) -> BaseRecord:
    fingerprint = FingerprintRecord(digit * 64, {"q_proj": [3.5]}, probes)
    return replace(entry.manifest.base, name="other", fingerprint=fingerprint)


def row(result: Any, label: str) -> str:
    (line,) = [line for line in result.stdout.splitlines() if line.startswith(f"{label} ")]
    return str(line.removeprefix(label).strip())


def test_the_text_is_golden(run: Callable, registry: Path, golden: Callable[[str, str], None], tmp_path: Path) -> None:
    result = run("show", "both", "--registry", registry, "--base", remembered(tmp_path / "base"))
    assert (result.exit_code, result.stderr) == (0, "")
    text = result.stdout.replace(str(registry), "<registry>").replace(str(tmp_path / "base"), "<base>")
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "<time>", text)
    golden("show.txt", re.sub(r"(?m)^(digest +)[0-9a-f]{64}$", r"\1<sha256>", text))


def test_json_has_every_field_of_the_manifest_and_where_it_is(run: Callable, registry: Path, tmp_path: Path) -> None:
    result = run("show", "math@1", "--registry", registry, "--json", "--base", remembered(tmp_path / "base"))
    record = record_of(result)
    entry = LocalRegistry([registry]).find("math@1", base_digest="a" * 64)
    fields = entry.manifest.to_dict()
    assert (record.pop("schema"), record.pop("manifest_schema")) == ("t2.show/1", fields.pop("schema"))
    assert record.pop("relation") == {"kind": "same", "drift": 0.0}
    (moved,) = record.pop("deviation")
    assert moved == {
        "weight": "model.layers.0.self_attn.q_proj.weight",
        "layer": 0,
        "module": "self_attn.q_proj",
        "rms": pytest.approx((0.5**2 / 2) ** 0.5),
        "largest": 0.5,
    }
    place = [record.pop(key) for key in ("digest", "path", "source")]
    assert place == [entry.digest, str(entry.path), entry.source]
    assert record == fields


@pytest.mark.parametrize(
    ("probes", "kind", "words"),
    [
        ({"q_proj": [30.1, -40.0]}, "relative", "a close relative (weights differ by 0.2 %); used with a warning"),
        (
            {"q_proj": [-30.0, 40.0]},
            "foreign",
            "a foreign base (weights differ by 200 %); only used with --allow-foreign",
        ),
        ({"k_proj": [30.0, -40.0]}, "foreign", "a foreign base; only used with --allow-foreign"),
        ({}, "unknown", "not known, for the manifest has no probes of the weights; treated as foreign"),
    ],
)
def test_the_relation_of_another_base_in_words(
    probes: dict[str, list[float]], kind: str, words: str, run: Callable, make_expert: Make, tmp_path: Path
) -> None:
    first = make_expert(tmp_path / "experts", "code")
    make_expert(tmp_path / "experts", "math", base=made_for(first, "b", probes))
    asked = ("show", "math", "--registry", tmp_path / "experts", "--base", remembered(tmp_path / "base"))
    assert row(run(*asked), "relation").startswith(f"to {tmp_path / 'base'}: {words}")
    assert record_of(run(*asked, "--json"))["relation"]["kind"] == kind


def test_a_base_that_was_never_seen_here_is_said_to_be_unknown(run: Callable, registry: Path) -> None:
    asked = ("show", "code", "--registry", registry, "--base", "org/not-here-yet")
    assert record_of(run(*asked, "--json"))["relation"] == {"kind": "unknown", "drift": None}
    make_probes = "not known, for the manifest has no probes"
    assert make_probes in row(run(*asked), "relation")


def test_with_probes_on_one_side_it_says_how_to_know(run: Callable, make_expert: Make, tmp_path: Path) -> None:
    first = make_expert(tmp_path / "experts", "code")
    make_expert(tmp_path / "experts", "math", base=made_for(first, "b", PROBES))
    result = run("show", "math", "--registry", tmp_path / "experts", "--base", "org/not-here-yet")
    assert row(result, "relation") == "to org/not-here-yet: not known yet, run t2 decompose org/not-here-yet"
    # a named base has a pinned digest, but no probes before it was used
    result = run("show", "math", "--registry", tmp_path / "experts")
    assert row(result, "relation") == "to smollm2-135m: not known yet, run t2 decompose smollm2-135m"
    (named,) = CATALOG.values()
    remembered(converted_folder(named.name), named.weights)
    result = run("show", "math", "--registry", tmp_path / "experts")
    assert row(result, "relation").startswith("to smollm2-135m: a close relative (weights differ by less than 0.01 %)")


def test_the_expert_of_the_asked_base_is_shown(run: Callable, registry: Path, tmp_path: Path) -> None:
    ours, theirs = remembered(tmp_path / "ours"), remembered(tmp_path / "theirs", "b" * 64)
    bases = [
        record_of(run("show", "math@1", "--registry", registry, "--json", "--base", base))["base"]["name"]
        for base in (ours, theirs)
    ]
    assert bases == ["smollm2-135m", "qwen3-0.6b"]


def test_the_lineage_of_a_mix_of_mixes_is_a_tree(run: Callable, registry: Path, make_expert: Make) -> None:
    experts = LocalRegistry([registry])
    both, code = (experts.find(name, base_digest="a" * 64) for name in ("both", "code"))
    gone = ParentRecord("gone@4", "c" * 64, 0.125)
    parents = (*(ParentRecord(entry.reference, entry.digest, 0.5) for entry in (both, code)), gone)
    more = make_expert(registry, "more", kind="mix", parents=parents)
    last = (ParentRecord("more@1", more.digest, 1.0), ParentRecord("both@1", both.digest, -0.25))
    make_expert(registry, "last", kind="mix", parents=last)
    result = run("show", "last", "--registry", registry)
    assert result.stdout.partition("made from\n")[2].splitlines() == [
        "  1 more@1",
        "    0.5 both@1",
        "      0.5 math@2",
        "      0.5 code@1",
        "    0.5 code@1",
        "    0.125 gone@4 (not here: sha256:cccccccccccc)",
        "  -0.25 both@1 (as above)",
    ]


def test_a_damaged_parent_is_said_to_be(run: Callable, registry: Path) -> None:
    (LocalRegistry([registry]).find("code").path / "expert.yaml").write_text("schema: 1\n")
    result = run("show", "both", "--registry", registry)
    assert "  0.5 code@1 (damaged here)\n" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["mth"], 3, ["'mth'", "did you mean math"]),
        (["math@9"], 3, ["math@9"]),
        (["Math"], 2, ["'Math'"]),
        ([], 2, ["EXPERT"]),
    ],
)
def test_what_is_not_there_is_an_error(
    arguments: list[str], code: int, said: list[str], run: Callable, refused: Callable, registry: Path
) -> None:
    refused(run("show", *arguments, "--registry", registry), code, *said)


def test_a_damaged_z_is_a_warning_and_the_manifest_is_shown(run: Callable, registry: Path) -> None:
    (LocalRegistry([registry]).find("code").path / "z.safetensors").write_bytes(b"x" * 200)
    result = run("show", "code", "--registry", registry, "--quiet")
    assert result.exit_code == 0
    assert row(result, "expert") == "code@1"
    assert "layer" not in result.stdout
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("warning: ")
    assert "SHA-256 differs; t2 verify code@1" in warning
    assert record_of(run("show", "code", "--registry", registry, "--json"))["deviation"] is None


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_picture_is_drawn(run: Callable, registry: Path, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    result = run("show", "code", "--registry", registry, "--plot", tmp_path / f"map{suffix}")
    assert result.exit_code == 0, result.stderr
    begins = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert (tmp_path / f"map{suffix}").read_bytes().startswith(begins)
    assert f"wrote {tmp_path}" in result.stderr


def test_a_picture_of_another_kind_or_without_matplotlib_is_refused_before_anything(
    run: Callable, refused: Callable, registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(run("show", "code", "--registry", registry, "--plot", tmp_path / "map.txt"), 2, "map.txt", ".png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    refused(run("show", "code", "--registry", registry, "--plot", tmp_path / "map.png"), 1, "matplotlib", "t2cli[plot]")
    assert not list(tmp_path.glob("map*"))


def test_it_loads_no_torch(registry: Path, tmp_path: Path) -> None:
    arguments = ["show", "both", "--registry", str(registry), "--base", str(remembered(tmp_path / "base"))]
    program = f"""if True:
        import sys
        from typer.testing import CliRunner
        from t2cli.cli.app import app
        assert CliRunner().invoke(app, {arguments!r}).exit_code == 0
        print(*sorted({{"torch", "transformers", "matplotlib"}} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
