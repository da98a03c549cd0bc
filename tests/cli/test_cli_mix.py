"""t2 mix: the new expert is the weighted sum it says it is, and knows its parents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from t2cli.cli.mix import parse_weights
from t2cli.errors import UsageError
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.vectors import read_z

D = "@sha256:"


@pytest.fixture
def experts(put_tiny: Callable[..., ExpertEntry]) -> dict[str, ExpertEntry]:
    """Return two experts for the tiny base in a registry, the second of the MLP layers only, and a foreign one."""
    return {
        "math": put_tiny("math", 1),
        "story": put_tiny("story", 2, only=".mlp."),
        "foreign": put_tiny("foreign", 3, variant="qwen2"),
    }


@pytest.fixture
def mix(run: Callable, base: Path, experts: dict[str, ExpertEntry], tmp_path: Path) -> Callable:
    """Return a function that runs t2 mix on them."""
    return lambda *arguments: run("mix", *arguments, "--base", base, "--registry", tmp_path / "experts")


def made(tmp_path: Path, reference: str) -> ExpertEntry:
    return LocalRegistry([tmp_path / "experts"]).find(reference)


def shift(entry: ExpertEntry, name: str) -> torch.Tensor:
    z = read_z(entry)
    return z[name].double() - 1 if name in z else torch.zeros(1, dtype=torch.float64)


def assert_is_sum(entry: ExpertEntry, *members: tuple[float, ExpertEntry]) -> None:
    z = read_z(entry)
    assert set(z) == {name for _, member in members for name in read_z(member)}
    for name, vector in z.items():
        wanted = 1 + sum(alpha * shift(member, name) for alpha, member in members)
        assert torch.equal(vector, torch.as_tensor(wanted).float()), name


def test_a_mix_is_the_sum_of_its_parents(mix: Callable, experts: dict[str, ExpertEntry], tmp_path: Path) -> None:
    result = mix("math:0.6", "story:-1.5e-1", "--name", "both", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    record = json.loads(result.stdout)
    assert list(record) == ["schema", "expert", "digest", "path", "parents", "search"]
    entry = made(tmp_path, "both")
    assert (record["schema"], record["expert"], record["search"]) == ("t2.mix/1", "both@1", None)
    assert (record["digest"], Path(record["path"])) == (entry.digest, entry.path)
    wanted = [
        {"ref": "math@1", "digest": experts["math"].digest, "alpha": 0.6},
        {"ref": "story@1", "digest": experts["story"].digest, "alpha": -0.15},
    ]
    assert record["parents"] == wanted
    assert_is_sum(entry, (0.6, experts["math"]), (-0.15, experts["story"]))

    manifest = entry.manifest
    assert manifest.kind == "mix"
    assert manifest.to_dict()["parents"] == wanted
    assert (manifest.category, manifest.evaluation, manifest.training) == ("math+story", (), None)
    assert manifest.base == experts["math"].manifest.base
    assert manifest.targets.count == 14
    assert LocalRegistry([tmp_path / "experts"]).verify(entry) == []


def test_without_weights_all_count_the_same(mix: Callable, experts: dict[str, ExpertEntry], tmp_path: Path) -> None:
    result = mix("math", "story", "--name", "both")
    assert result.stdout == "both@1 = 0.5 math@1 + 0.5 story@1\n"
    assert_is_sum(made(tmp_path, "both"), (0.5, experts["math"]), (0.5, experts["story"]))


def test_one_expert_with_weight_1_is_itself(mix: Callable, experts: dict[str, ExpertEntry], tmp_path: Path) -> None:
    assert mix("math:1", "--name", "copy").exit_code == 0
    assert made(tmp_path, "copy").z_bytes() == experts["math"].z_bytes()
    assert mix("math:0.5", "--name", "half").exit_code == 0
    assert_is_sum(made(tmp_path, "half"), (0.5, experts["math"]))


def test_of_very_many_experts_the_first_are_named(
    mix: Callable, put_tiny: Callable[..., ExpertEntry], tmp_path: Path
) -> None:
    entries = [put_tiny(f"an-expert-with-a-name-of-some-length-{n}", n, category=f"c{n:080}") for n in range(60)]
    result = mix(*(entry.reference for entry in entries), "--name", "all")
    assert result.exit_code == 0, result.stderr
    manifest = made(tmp_path, "all").manifest
    assert len(manifest.parents) == 60
    assert manifest.description.startswith("mix of 0.0166667 an-expert-with-a-name-of-some-length-0@1, ")
    assert manifest.description.endswith(" more")
    assert len(manifest.description) < 1100
    assert manifest.category.endswith(" more")


def test_a_mix_can_be_mixed_and_has_versions(mix: Callable, experts: dict[str, ExpertEntry], tmp_path: Path) -> None:
    mix("math", "story", "--name", "both")
    assert mix("both:0.5", "math:0.25", "--name", "both").stdout.startswith("both@2 = ")
    second = made(tmp_path, "both@2")
    assert_is_sum(second, (0.5, made(tmp_path, "both@1")), (0.25, experts["math"]))
    assert second.manifest.category == "math+story"
    assert [parent.ref for parent in second.manifest.parents] == ["both@1", "math@1"]


def test_experts_can_be_named_by_their_digests(mix: Callable, experts: dict[str, ExpertEntry], tmp_path: Path) -> None:
    digests = [experts[name].digest[:12] for name in ("math", "story")]
    result = mix(f"math{D}{digests[0]}:0.5", f"story{D}{digests[1]}:1", "--name", "both")
    assert result.stdout == "both@1 = 0.5 math@1 + 1 story@1\n", result.stderr


@pytest.mark.parametrize(
    ("arguments", "parsed"),
    [
        (["math"], {"math": 1.0}),
        (["math:0.5"], {"math": 0.5}),
        (["math@2:-.5", "a:1e-3"], {"math@2": -0.5, "a": 0.001}),
        (["math:2."], {"math": 2.0}),
        ([f"math{D}123456789012"], {f"math{D}123456789012": 1.0}),
        ([f"math{D}123456789012:0.5"], {f"math{D}123456789012": 0.5}),
        ([f"math{D}12345678e012:3"], {f"math{D}12345678e012": 3.0}),
        ([f"math{D}1234567890e1", "b"], {f"math{D}1234567890e1": 0.5, "b": 0.5}),
        (["hf://org/repo/math@2:0.5"], {"hf://org/repo/math@2": 0.5}),
        (["a", "b", "c", "d"], dict.fromkeys("abcd", 0.25)),
    ],
)
def test_weights_are_read(arguments: list[str], parsed: dict[str, float]) -> None:
    assert parse_weights(arguments) == parsed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a:0.5", "b"], "b has no weight"),
        (["a", "b:0.5"], "a has no weight"),
        (["a:0.5", "a:0.5"], "a is named twice"),
        (["a", "a"], "a is named twice"),
        (["a:nan"], "not a finite number"),
        (["a:-inf"], "not a finite number"),
        (["a:1e999"], "not a finite number"),
        (["a:"], "does not end in a weight"),
        (["a:half"], "does not end in a weight"),
        (["a:0,5"], "does not end in a weight"),
        (["a:0.5:0.5"], "does not end in a weight"),
    ],
)
def test_weights_that_cannot_be_are_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_weights(arguments)
    assert said in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["math", "foreign"], 4, ["foreign", "qwen2", "llama"]),
        (["math", "stroy"], 3, ["'stroy'", "did you mean story"]),
        (["math@7"], 3, ["math@7", "math@1"]),
        (["math:0.5", "story"], 2, ["story has no weight"]),
        (["math:x"], 2, ["'math:x'", "math:0.5"]),
        (["math", "math@1"], 2, ["same expert", "math@1"]),
        (["math:1e300"], 2, ["finite"]),
        (["Math"], 2, ["'Math'"]),
        ([], 2, ["EXPERT"]),
    ],
)
def test_what_cannot_be_mixed_is_refused_and_nothing_is_written(
    arguments: list[str], code: int, said: list[str], mix: Callable, refused: Callable, tmp_path: Path
) -> None:
    before = sorted((tmp_path / "experts").rglob("*"))
    refused(mix(*arguments, "--name", "both"), code, *said)
    assert sorted((tmp_path / "experts").rglob("*")) == before


def test_a_damaged_parent_is_refused(
    mix: Callable, refused: Callable, experts: dict[str, ExpertEntry], tmp_path: Path
) -> None:
    path = experts["math"].path / "z.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    refused(mix("math", "story", "--name", "both"), 5, "z.safetensors")
    assert not list((tmp_path / "experts").rglob("both"))


def test_a_bad_name_is_refused(mix: Callable, refused: Callable) -> None:
    refused(mix("math", "--name", "../both"), 2, "'../both'")
    for word in ("none", "auto"):  # what t2 chat calls nobody, and whom pass 1 chooses
        refused(mix("math", "--name", word), 2, f"cannot be called '{word}'")


def test_what_is_of_a_search_alone_is_refused(mix: Callable, refused: Callable) -> None:
    for option in (("--iterations", "3"), ("--per-layer",), ("--explain",)):
        refused(mix("math", "--name", "both", *option), 2, "of a search", "--examples")


def test_an_odd_mix_is_warned_of(mix: Callable, experts: dict[str, ExpertEntry]) -> None:
    assert "warning" not in mix("math:0.5", "--name", "half").stderr
    assert "warning: nothing@1 is the base model itself: every weight is 0" in mix("math:0", "--name", "nothing").stderr
    assert "warning: far@1 is far from the base model: singular" in mix("math:1e9", "--name", "far").stderr


def test_a_mix_answers_by_its_name(
    run: Callable, mix: Callable, experts: dict[str, ExpertEntry], base: Path, tmp_path: Path
) -> None:
    mix("math:0.75", "story:0.5", "--name", "both")
    options = ["what is it", "--base", base, "--registry", tmp_path / "experts", "--max-new-tokens", "12", "--json"]
    named = run("chat", *options, "--expert", "both")
    assert named.stderr == "[both@1]\n"
    by_hand = run("chat", *options, "--mix", "math:0.75, story:0.5")
    assert by_hand.stderr == "[0.75 math@1 + 0.5 story@1]\n"
    plain = run("chat", *options, "--adapt", "none")
    answers = [json.loads(result.stdout)["answer"] for result in (named, by_hand, plain)]
    assert answers[0] == answers[1] != answers[2]
