from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t2cli.errors import CorruptArtifactError
from t2cli.registry.manifest import EvaluationRecord, ExpertManifest

DOCUMENTED = """\
schema: 1
name: math
version: 2
kind: expert
category: math
description: one line
base:
  name: smollm2-135m
  source: somewhere
  revision: ""
  architecture: LlamaForCausalLM
  fingerprint: {weights: 3fa91c02be110000000000000000000000000000000000000000000000000000, spectrum: {q: [1, 2.5]}}
targets: {selection: all, count: 210, parameters: 97920}
z:
  file: z.safetensors
  sha256: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
  parametrisation: linear
evaluation:
  - {task: t, split: test, n: 10, base_accuracy: 0.25, expert_accuracy: 0.5, ci95: [0, 1], mcnemar_p: 1, seed: 3}
created: 2026-11-23T10:00:00Z
"""


def test_the_documented_text_is_read() -> None:
    manifest = ExpertManifest.from_yaml(DOCUMENTED, "expert.yaml")
    assert manifest.base.folder == "smollm2-135m-3fa91c02be11"
    assert manifest.evaluation == (EvaluationRecord("t", "test", 10, 0.25, 0.5, (0.0, 1.0), 0.25, None, 1.0, 3),)
    assert (manifest.training, manifest.parents, manifest.z.parent_alpha) == (None, (), None)


def test_a_manifest_survives_yaml_and_json(manifest: ExpertManifest) -> None:
    assert ExpertManifest.from_yaml(manifest.to_yaml(), "x") == manifest
    assert ExpertManifest.from_yaml(yaml.safe_dump(json.loads(json.dumps(manifest.to_dict()))), "x") == manifest
    keys = "schema name version kind category description base targets z examples training evaluation parents created"
    assert list(manifest.to_dict()) == keys.split()


def test_a_bare_manifest_survives_yaml(make: Callable[..., ExpertManifest]) -> None:
    bare = make(training=None, evaluation=(), parents=(), description="")
    assert ExpertManifest.from_yaml(bare.to_yaml(), "x") == bare


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"]), max_size=100))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_printable_description_survives(make: Callable[..., ExpertManifest], text: str) -> None:
    manifest = make(description=text)
    if re.search("[\u2028\u2029\u202a-\u202e\u2066-\u2069]", text):  # line breaks and direction marks
        with pytest.raises(CorruptArtifactError, match="description must be one line of printable text"):
            ExpertManifest.from_yaml(manifest.to_yaml(), "x")
    else:
        assert ExpertManifest.from_yaml(manifest.to_yaml(), "x") == manifest


def put_at(document: Any, path: tuple[str | int, ...], value: object) -> dict[str, object]:
    """Return a copy of `document` with `value` at `path`."""
    changed = json.loads(json.dumps(document))
    inner = changed
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return dict(changed)


def read(document: dict[str, object]) -> ExpertManifest:
    return ExpertManifest.from_yaml(yaml.safe_dump(document), "expert.yaml")


NAN, INF = float("nan"), float("inf")


def wrong(key: list[str | int], *values: object) -> list[tuple[tuple[str | int, ...], object]]:
    return [(tuple(key), value) for value in values]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *wrong(["name"], "Math", "../math", "a/b", "", "a" * 65, "math\n", None, 3),
        *wrong(["version"], 0, -1, 1.0, "1", True, None, 10**9, 10**400),
        *wrong(["kind"], "model", "expertx", "", 1),
        *wrong(["category"], "", "a\nb", "\x1b[31mred", "a\u202eb", "x" * 3000),
        *wrong(["description"], None, "a\nb", "a\rb", ["x"]),
        *wrong(["examples"], "one", {}, [1], [""], ["a\nb"], ["x" * 3000]),
        *wrong(["created"], "yesterday", "2026-11-23", "2026-13-41T10:00:00Z", "2026-11-23T10:00:00"),
        *wrong(["base"], None, "tiny", [], {}),
        *wrong(["base", "name"], "../x", "a/b", "", ".hidden"),
        *wrong(["base", "fingerprint", "weights"], "", "A" * 64, "a" * 63, 0, "g" * 64),
        *wrong(["base", "fingerprint", "probes"], [], {"q": []}, {"q": [NAN]}, {"q": ["1"]}, {"q": 1}),
        *wrong(["base", "fingerprint", "spectrum"], [], {"q": []}, {"q": [NAN]}, {"q": ["1"]}, {"q": 1}),
        *wrong(["targets", "count"], 0, -1, 2.5, True, 2**40),
        *wrong(["targets", "parameters"], 0, "many", 2**40),
        *wrong(["z", "file"], "../z.safetensors", "/etc/passwd", "z.pt", "zzsafetensors", ""),
        *wrong(["z", "sha256"], "a" * 63, "a" * 65, "Z" * 64, None),
        *wrong(["z", "parent_alpha"], NAN, INF, "1", True),
        *wrong(["training", "config"], None, [], {"a": NAN}, {"a": {"b": [1, -INF]}}, {"a": 10**400}),
        *wrong(["training", "seconds"], -1.0, NAN, INF, "12"),
        *wrong(["training", "versions"], [], {"torch": 2.13}, {"a\nb": "1"}),
        *wrong(["training", "threads"], 0, 1.5, "2", True),
        *wrong(["evaluation"], {}, "none", [1], [{}]),
        *wrong(["evaluation", 0, "n"], 0, 1.5, True),
        *wrong(["evaluation", 0, "expert_accuracy"], 1.1, -0.1, NAN, "0.5"),
        *wrong(["evaluation", 0, "ci95"], [0.1], [0.9, 0.1], [NAN, 1], [0, 2], "x", [0, 0.5, 1]),
        *wrong(["evaluation", 0, "gain_ci95"], [-2, 0], [], 0.5),
        *wrong(["evaluation", 0, "mcnemar_p"], NAN, 1.5),
        *wrong(["evaluation", 0, "base_answer_tokens"], -1.0, NAN, "12"),
        *wrong(["evaluation", 0, "expert_cut"], -1, 201, 0.5, True),
        *wrong(["parents", 0, "ref"], "Not A Ref", "", "a/b", 7),
        *wrong(["parents", 0, "digest"], "abc", None),
        *wrong(["parents", 0, "alpha"], NAN, INF, "0.5", None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_wrong_value_is_refused_by_its_key(
    manifest: ExpertManifest, key: tuple[str | int, ...], value: object
) -> None:
    with pytest.raises(CorruptArtifactError) as caught:
        read(put_at(manifest.to_dict(), key, value))
    named = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in key)[1:]
    assert named in caught.value.message
    assert len(caught.value.message) < 400
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (("extra",), "extra"),
        (("base", "extra"), "base.extra"),
        (("base", "fingerprint", "extra"), "base.fingerprint.extra"),
        (("evaluation", 0, "extra"), "evaluation[0].extra"),
        (("parents", 0, "extra"), "parents[0].extra"),
        (("training", "extra"), "training.extra"),
    ],
)
def test_an_unknown_key_is_named(manifest: ExpertManifest, path: tuple[str | int, ...], named: str) -> None:
    with pytest.raises(CorruptArtifactError) as caught:
        read(put_at(manifest.to_dict(), path, 1))
    assert f"unknown key {named!r}" in caught.value.message


OPTIONAL = {"examples", "training", "evaluation", "parents", "parent_alpha", "gain", "gain_ci95", "probes", "threads"}
OPTIONAL |= {"base_answer_tokens", "expert_answer_tokens", "base_cut", "expert_cut"}


def test_every_missing_key_is_named(manifest: ExpertManifest) -> None:
    document = manifest.to_dict()
    places: list[tuple[str | int, ...]] = [(), ("base",), ("base", "fingerprint"), ("targets",), ("z",)]
    for place in [*places, ("training",), ("evaluation", 0), ("parents", 0)]:
        inner: Any = document
        for step in place:
            inner = inner[step]
        for key in set(inner) - OPTIONAL:
            left = {other: value for other, value in inner.items() if other != key}
            with pytest.raises(CorruptArtifactError) as caught:
                read(put_at(document, place, left) if place else left)
            assert "is missing" in caught.value.message
            assert f"{key}'" in caught.value.message


def test_a_newer_schema_is_said_to_be_newer(manifest: ExpertManifest) -> None:
    document = put_at(manifest.to_dict(), ("schema",), 2)
    with pytest.raises(CorruptArtifactError, match="schema 2 is not known") as caught:
        read(put_at(document, ("brand_new_key",), 1))
    assert "update t2" in caught.value.hint


def test_a_mix_has_parents(manifest: ExpertManifest) -> None:
    assert read(replace(manifest, kind="mix").to_dict()).parents == manifest.parents
    with pytest.raises(CorruptArtifactError, match="parents"):
        read(replace(manifest, kind="mix", parents=()).to_dict())


JUNK = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(max_value=-(2**63) - 1),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
# Not the values that any text or any number is right for: there junk may be a sound manifest.
STRICT = [
    *(("schema",), ("name",), ("version",), ("kind",), ("base",), ("targets",), ("z",), ("created",)),
    *(("base", "fingerprint"), ("base", "fingerprint", "weights"), ("targets", "count"), ("z", "file")),
    *(("z", "sha256"), ("training", "seed"), ("training", "steps"), ("evaluation", 0, "n"), ("evaluation", 0)),
    *(("evaluation", 0, "ci95"), ("evaluation", 0, "seed"), ("parents", 0), ("parents", 0, "digest")),
]


@given(st.sampled_from(STRICT), JUNK)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_bad_manifests_always_end_in_a_corrupt_artifact_error(
    manifest: ExpertManifest, key: tuple[str | int, ...], junk: object
) -> None:
    if key == ("name",) and isinstance(junk, str):
        junk = f"/{junk}"
    with pytest.raises(CorruptArtifactError):
        read(put_at(manifest.to_dict(), key, junk))


@given(st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_damaged_text_is_sound_or_ends_in_a_corrupt_artifact_error(
    manifest: ExpertManifest, data: st.DataObject
) -> None:
    text = manifest.to_yaml()
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, min(len(text), begin + 40)))
    damaged = text[:begin] + data.draw(st.text(max_size=10)) + text[end:]
    try:
        result = ExpertManifest.from_yaml(damaged, "x")
    except CorruptArtifactError:
        return
    assert ExpertManifest.from_yaml(result.to_yaml(), "x") == result
