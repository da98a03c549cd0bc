"""t2 verify: sound experts pass, and every kind of damage is found and named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.svf.zvector import ZVectors


@pytest.fixture
def results(run: Callable, registry: Path) -> Callable[..., dict[str, dict[str, Any]]]:
    """Return a function that verifies and returns the results by reference, its exit code checked."""

    def verify(*arguments: str, code: int) -> dict[str, dict[str, Any]]:
        result = run("verify", *arguments, "--registry", registry, "--json")
        assert result.exit_code == code, result.output
        record = json.loads(result.stdout)
        assert record["schema"] == "t2.verify/1"
        assert all(item["ok"] == (not item["problems"]) for item in record["results"])
        return {item["ref"]: item for item in record["results"]}

    return verify


def test_sound_experts_pass(results: Callable, run: Callable, registry: Path) -> None:
    assert list(results("--all", code=0)) == ["math@1", "both@1", "code@1", "math@2"]  # two are math@1
    assert list(results("math", code=0)) == ["math@2", "math@1"]  # the newest for each base
    assert list(results("code@1", code=0)) == ["code@1"]
    digest = LocalRegistry([registry]).find("code").digest
    assert list(results(f"code@sha256:{digest[:12]}", code=0)) == ["code@1"]
    text = run("verify", "code", "--registry", registry)
    assert (text.stdout, text.stderr) == ("ok code@1 (smollm2-135m-aaaaaaaaaaaa)\n", "")


def damaged_z(path: Path) -> None:
    raw = (path / "z.safetensors").read_bytes()
    (path / "z.safetensors").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


def not_finite(path: Path) -> None:
    raw = (path / "z.safetensors").read_bytes()[:-4] + b"\x00\x00\xc0\x7f"
    (path / "z.safetensors").write_bytes(raw)
    document = yaml.safe_load((path / "expert.yaml").read_text())
    document["z"]["sha256"] = hashlib.sha256(raw).hexdigest()
    (path / "expert.yaml").write_text(yaml.safe_dump(document))


def changed(key: str, value: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        document = yaml.safe_load((path / "expert.yaml").read_text())
        document[key] = value
        (path / "expert.yaml").write_text(yaml.safe_dump(document))

    return change


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damaged_z, "SHA-256 differs"),
        (not_finite, "NaN or infinite"),
        (lambda path: (path / "z.safetensors").unlink(), "z.safetensors is missing"),
        (lambda path: (path / "expert.yaml").unlink(), "expert.yaml is missing"),
        (lambda path: (path / "expert.yaml").write_bytes(b"\xff"), "not UTF-8"),
        (changed("kind", "poem"), "kind must be"),
        (changed("targets", {"selection": "all", "count": 2, "parameters": 2}), "the manifest says 2 and 2"),
        (changed("version", 4), "not where it lies"),
        (changed("surprise", 1), "unknown key 'surprise'"),
    ],
)
def test_damage_is_found_and_named(
    damage: Callable[[Path], None], said: str, results: Callable, run: Callable, registry: Path
) -> None:
    damage(LocalRegistry([registry]).find("code").path)
    found = results("--all", code=5)
    assert [ref for ref, item in found.items() if not item["ok"]] == ["code@1"]
    (problem,) = found["code@1"]["problems"]
    assert said in problem
    assert list(results("code", code=5)) == ["code@1"]
    results("math", code=0)
    text = run("verify", "--all", "--registry", registry)
    assert text.exit_code == 5
    assert "bad code@1 (smollm2-135m-aaaaaaaaaaaa)\n    " in text.stdout
    assert "error: 1 of 5 are not sound\nhint: " in text.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "--all"),
        (["math", "--all"], 2, "--all"),
        (["mth"], 3, "did you mean math"),
        (["math@9"], 3, "math@9"),
        (["a/b"], 2, "a/b"),
    ],
)
def test_what_is_not_there_is_an_error(
    arguments: list[str], code: int, said: str, run: Callable, refused: Callable, registry: Path
) -> None:
    refused(run("verify", *arguments, "--registry", registry), code, said)


def test_an_empty_registry_is_sound(run: Callable, tmp_path: Path) -> None:
    result = run("verify", "--all", "--registry", tmp_path / "none", "--json")
    assert (result.exit_code, json.loads(result.stdout)["results"]) == (0, [])


def test_shapes_are_those_of_the_base(
    run: Callable,
    adapt: Callable[..., AdaptedModel],
    publish: Callable[..., ExpertEntry],
    random_z: Callable[..., ZVectors],
    base_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    adapted, folder = adapt("llama"), tmp_path / "tiny"
    name, r = next(iter(adapted.ranks.items()))
    for expert, ranks in {"good": adapted.ranks, "part": {name: r}, "long": {name: r + 1}, "odd": {"w": 3}}.items():
        publish(folder, adapted.base.identity, expert, random_z(ranks))
    result = run("verify", "--all", "--registry", folder, "--base", base_folder("llama"), "--json")
    assert result.exit_code == 5
    found = {item["ref"]: item["problems"] for item in json.loads(result.stdout)["results"]}
    assert (found["good@1"], found["part@1"]) == ([], [])
    assert f"{name} has {r} singular values" in found["long@1"][0]
    assert "has no w" in found["odd@1"][0]
