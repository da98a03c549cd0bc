"""t2 export and t2 import: what they say they did is what is on disk, and mistakes are said in three lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from t2cli.models.base import BaseModel, load_base
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.manifest import ParentRecord
from t2cli.registry.vectors import read_z
from t2cli.svf.basis import basis_of
from t2cli.svf.zvector import ZVectors

Run = Callable[..., Any]

COMMON = ["schema", "to", "expert", "digest", "base", "fingerprint", "path"]


@pytest.fixture
def experts(put_tiny: Callable[..., ExpertEntry]) -> dict[str, ExpertEntry]:
    """Return two experts of the tiny base in a registry, a mix of them, and one of a foreign base."""
    found = {name: put_tiny(name, seed) for seed, name in enumerate("ab")}
    parents = tuple(ParentRecord(entry.reference, entry.digest, 0.5) for entry in found.values())
    mix = put_tiny("both", 2, kind="mix", parents=parents)
    return {**found, "both": mix, "foreign": put_tiny("foreign", 3, variant="qwen2")}


@pytest.fixture
def export(run: Run, base: Path, experts: dict[str, ExpertEntry], tmp_path: Path) -> Run:
    """Return a function that runs t2 export on them."""
    return lambda *arguments: run("export", *arguments, "--base", base, "--registry", tmp_path / "experts")


@pytest.fixture
def imported(run: Run, base: Path, tmp_path: Path) -> Run:
    """Return a function that runs t2 import into another registry."""
    return lambda *arguments: run("import", *arguments, "--base", base, "--registry", tmp_path / "there")


def record_of(result: Any) -> dict[str, Any]:
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded


def test_a_lora_with_the_share_that_is_kept_per_layer(
    export: Run, experts: dict[str, ExpertEntry], load: Callable[[str], BaseModel], tmp_path: Path
) -> None:
    record = record_of(export("a", "--to", "lora", "--rank", "4", "-o", tmp_path / "lora", "--json", "-q"))
    identity = load("llama").identity
    fields = [
        "schema",
        "to",
        "expert",
        "digest",
        "base",
        "fingerprint",
        "path",
        "parameters",
        "kept",
        "error",
        "layers",
    ]
    assert list(record) == fields
    assert (record["schema"], record["to"], record["expert"]) == ("t2.export/1", "lora", "a@1")
    assert (record["digest"], record["fingerprint"]) == (experts["a"].digest, identity.weights)
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert record["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert [set(layer) for layer in record["layers"]] == [{"name", "rank", "kept", "error"}] * 14
    for layer in record["layers"]:
        assert layer["rank"] == 4
        assert layer["kept"] == pytest.approx(1 - layer["error"] ** 2)

    result = export("a", "--to", "lora", "--rank", "4", "-o", tmp_path / "again")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["MATRIX", "RANK", "KEPT", "ERROR"]
    rows = [[layer["name"].removesuffix(".weight"), f"{100 * layer['kept']:.2f}"] for layer in record["layers"]]
    assert [[line.split()[0], line.split()[2]] for line in lines[1:-1]] == rows
    assert f"{100 * record['kept']:.2f} % of the change kept" in lines[-1]


def test_an_adapter_as_large_as_the_model_is_advised_against(export: Run, tmp_path: Path) -> None:
    result = export("a", "--to", "lora", "-o", tmp_path / "lora")
    assert result.exit_code == 0
    assert "--to merged" in result.stderr
    assert export("a", "--to", "lora", "--rank", "1", "-o", tmp_path / "small").stderr == ""


def test_a_merged_checkpoint_is_a_base_of_its_own(export: Run, run: Run, tmp_path: Path) -> None:
    arguments = ("--to", "merged", "--max-shard-size", "50KB", "--dtype", "bfloat16", "-o", tmp_path / "merged")
    record = record_of(export("both", *arguments, "--json", "-q"))
    assert list(record) == [*COMMON, "dtype", "shards", "bytes", "targets"]
    assert (record["dtype"], record["targets"]) == ("bfloat16", 14)
    assert sorted(record["shards"]) == sorted(path.name for path in (tmp_path / "merged").glob("*.safetensors"))
    assert len(record["shards"]) > 1
    assert load_base(str(tmp_path / "merged"), device="cpu", quiet=True).identity.weights != record["fingerprint"]
    answer = run("chat", "what", "--base", tmp_path / "merged", "--adapt", "none", "--max-new-tokens", "4")
    assert answer.exit_code == 0


def test_a_bundle_goes_to_another_machine(
    export: Run, imported: Run, experts: dict[str, ExpertEntry], tmp_path: Path
) -> None:
    record = record_of(export("both", "--to", "bundle", tmp_path / "both.t2", "--json"))
    assert list(record) == ["schema", "to", "experts", "missing", "path", "bytes", "sha256"]
    assert [(expert["path"].split("/")[1], expert["asked"]) for expert in record["experts"]] == [
        ("a", False),
        ("b", False),
        ("both", True),
    ]
    assert record["bytes"] == (tmp_path / "both.t2").stat().st_size
    again = export("both", "--to", "bundle", "-o", tmp_path / "same.t2")
    assert f"SHA-256 {record['sha256']}" in again.stdout
    assert (tmp_path / "same.t2").read_bytes() == (tmp_path / "both.t2").read_bytes()

    there = record_of(imported(tmp_path / "both.t2", "--json"))
    assert (there["schema"], there["from"]) == ("t2.import/1", "bundle")
    assert [list(expert) for expert in there["experts"]] == [["expert", "digest", "path", "base", "new", "asked"]] * 3
    for expert in there["experts"]:
        name = expert["expert"].partition("@")[0]
        assert (expert["digest"], expert["new"]) == (experts[name].digest, True)
        entry = LocalRegistry([tmp_path / "there"]).find(name)
        assert (str(entry.path), entry.z_bytes()) == (expert["path"], experts[name].z_bytes())
    assert imported(tmp_path / "both.t2").stdout.count("(is here already)") == 3


def test_a_version_that_is_taken_is_refused(
    export: Run,
    imported: Run,
    refused: Callable[..., None],
    publish: Callable[..., ExpertEntry],
    load: Callable[[str], BaseModel],
    tmp_path: Path,
) -> None:
    mine = publish(tmp_path / "there", load("llama").identity, "a", ZVectors({"w": torch.ones(3)}))
    export("a", "--to", "bundle", tmp_path / "a.t2")
    refused(imported(tmp_path / "a.t2"), 1, "a@1 here is another expert", "t2 copy")
    assert LocalRegistry([tmp_path / "there"]).list() == [mine]


def test_the_files_of_the_papers_code(
    imported: Run, run: Run, load: Callable[[str], BaseModel], tmp_path: Path
) -> None:
    model = load("llama").model
    p = {name: torch.randn(min(W.shape)).bfloat16() for name, W in model.state_dict().items() if "mlp" in name}
    torch.save(
        {f"learnable_params_module_list.{i}": q for i, q in enumerate(p.values())}, tmp_path / "policy_params.pt"
    )
    arguments = ("--name", "gsm8k", "--category", "math")
    record = record_of(imported(tmp_path / "policy_params.pt", *arguments, "--json", "-q"))
    assert (record["from"], record["experts"][0]["expert"]) == ("reference", "gsm8k@1")
    registry = LocalRegistry([tmp_path / "there"])
    entry = registry.find("gsm8k")
    assert registry.verify(entry) == []
    assert (entry.manifest.category, entry.manifest.targets.selection) == ("math", "mlp")
    assert "policy_params.pt" in entry.manifest.description
    z = read_z(entry)
    for name, q in p.items():
        S, factor = basis_of(model.get_parameter(name).detach()).S, torch.sigmoid(q.double())
        assert torch.equal(z[name], (factor * (S.sum() / (S * factor).sum())).float())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["a", "--to", "lora"], 2, ["-o PATH"]),
        (["a", "--to", "merged", "out"], 2, ["-o PATH"]),
        (["a", "--to", "bundle"], 2, ["-o PATH"]),
        (["a", "b", "--to", "lora", "-o", "out"], 2, ["one expert", "t2 mix"]),
        (["a", "--to", "lora", "-o", "."], 2, ["there already"]),
        (["a", "--to", "lora", "--rank", "0", "-o", "out"], 2, ["'0'", "auto"]),
        (["a", "--to", "lora", "--rank", "all", "-o", "out"], 2, ["'all'", "auto"]),
        (["a", "--to", "lora", "--keep", "0", "-o", "out"], 2, ["cannot be kept"]),
        (["a", "--to", "lora", "--keep", "nan", "-o", "out"], 2, ["cannot be kept"]),
        (["a", "--to", "lora", "--rank", "4", "--keep", "0.5", "-o", "out"], 2, ["--rank auto"]),
        (["a", "--to", "lora", "--dtype", "float16", "-o", "out"], 2, ["--dtype is for --to merged"]),
        (["a", "--to", "merged", "--rank", "4", "-o", "out"], 2, ["--rank is for --to lora"]),
        (["a", "--to", "merged", "--max-shard-size", "5", "-o", "out"], 2, ["'5'", "5GB"]),
        (["a", "--to", "gguf", "-o", "out"], 2, ["'gguf'"]),
        (["ac", "--to", "lora", "-o", "out"], 3, ["'ac'"]),
        (["foreign", "--to", "merged", "-o", "out"], 4, ["foreign", "--allow-foreign"]),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(
    arguments: list[str],
    code: int,
    said: list[str],
    export: Run,
    refused: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    refused(export(*arguments), code, *said)
    assert list(folder.iterdir()) == []


def test_a_foreign_expert_is_exported_where_that_is_asked_for(export: Run, tmp_path: Path) -> None:
    result = export("foreign", "--to", "lora", "--rank", "2", "-o", tmp_path / "lora", "--allow-foreign")
    assert result.exit_code == 0
    assert "warning: foreign@1 was made for qwen2" in result.stderr


@pytest.mark.parametrize(
    ("content", "arguments", "code", "said"),
    [
        (None, [], 3, ["there is no file"]),
        (b"", [], 5, ["neither a bundle"]),
        (b"bundle.json\0", [], 5, ["cut short"]),
        (b"bundle.json\0", ["--name", "x"], 2, ["--name"]),
        (b"PK\x03\x04", [], 2, ["--name"]),
        (b"PK\x03\x04", ["--name", "X"], 2, ["'X'"]),
        (b"PK\x03\x04", ["--name", "x"], 5, ["damaged"]),
    ],
)
def test_what_cannot_be_imported_is_refused_and_nothing_is_written(
    content: bytes | None,
    arguments: list[str],
    code: int,
    said: list[str],
    imported: Run,
    refused: Callable[..., None],
    tmp_path: Path,
) -> None:
    path = tmp_path / "file.pt"
    if content is not None:
        path.write_bytes(content)
    refused(imported(path, *arguments), code, *said)
    assert not list((tmp_path / "there").rglob("*"))
