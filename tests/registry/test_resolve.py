"""Which experts may be used with a base, and what is said of those that were made for another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from t2cli.errors import CorruptArtifactError, IncompatibleBaseError, NotFoundError
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.manifest import BaseRecord, ExpertManifest, FingerprintRecord
from t2cli.registry.resolve import ForBase, Resolver, in_words, percent, shown
from t2cli.svf.relation import Fingerprint, Relation

PROBES = {"q_proj": [30.0, -40.0], "up_proj": [0.0, 50.0]}
RANKS = {"model.layers.0.mlp.up_proj.weight": 6, "model.layers.0.self_attn.q_proj.weight": 4}


def probes(change: float) -> dict[str, list[float]]:
    """Return the probes of a base whose drift from PROBES is `change`."""
    return {"q_proj": [30.0, -40.0], "up_proj": [change * 5000**0.5, 50.0]}


def base(digit: str, name: str, numbers: dict[str, list[float]]) -> BaseRecord:
    fingerprint = FingerprintRecord(digit * 64, {"q_proj": [3.0]}, numbers)
    return BaseRecord(name, "hub:example/model", "main", "LlamaForCausalLM", fingerprint)


OURS = base("a", "ours", PROBES)
NEAR = base("b", "near", probes(0.002))
FARTHER = base("c", "farther", probes(0.05))
FOREIGN = base("d", "foreign", {"q_proj": [-30.0, 40.0], "up_proj": [0.0, -50.0]})
UNKNOWN = base("e", "unknown", {})

Put = Callable[..., ExpertEntry]


@pytest.fixture
def put(registry: LocalRegistry, make: Callable[..., ExpertManifest], make_z: Callable[..., bytes]) -> Put:
    """Return a function that publishes an expert for a base."""

    def publish(base: BaseRecord, name: str = "math", **changes: object) -> ExpertEntry:
        return registry.put(make(name, base=base, **changes), make_z(RANKS))

    return publish


def resolver(registry: LocalRegistry, *, allow_foreign: bool = False, ranks: dict[str, int] = RANKS) -> Resolver:
    used = ForBase("ours-aaaaaaaaaaaa", "a" * 64, probes=lambda: PROBES, ranks=lambda: ranks)
    return Resolver(registry, used, allow_foreign=allow_foreign)


def test_the_own_expert_is_found_first_without_a_word_or_a_look_at_the_weights(
    registry: LocalRegistry, put: Put
) -> None:
    put(NEAR)
    put(NEAR)
    own = put(OURS)

    def never() -> dict[str, list[float]]:
        raise AssertionError

    found = Resolver(registry, ForBase("ours", "a" * 64, probes=never, ranks=lambda: {}))
    assert found.find("math") == own
    assert found.warnings == []


def test_the_closest_relative_is_found_with_one_warning(registry: LocalRegistry, put: Put) -> None:
    near = put(NEAR)
    put(FARTHER, created="2026-12-01T00:00:00Z")
    put(FOREIGN, created="2026-12-02T00:00:00Z")
    found = resolver(registry)
    assert found.find("math") == found.find("math@1") == near
    (warning,) = found.warnings
    assert "math@1 was made for near-bbbbbbbbbbbb, a close relative (weights differ by 0.2 %)" in warning
    assert "ours-aaaaaaaaaaaa" in warning


def test_of_a_relative_the_newest_is_found_and_any_version_can_be_named(registry: LocalRegistry, put: Put) -> None:
    first, second = put(NEAR), put(NEAR)
    found = resolver(registry)
    assert found.find("math") == second
    assert found.find("math@1") == first
    assert found.find(f"math@sha256:{first.digest}") == first


@pytest.mark.parametrize(
    ("other", "words"),
    [(FOREIGN, "a foreign base (weights differ by 200 %)"), (UNKNOWN, "a base whose relation is not known")],
)
def test_a_foreign_expert_is_refused_until_it_is_allowed(
    registry: LocalRegistry, put: Put, other: BaseRecord, words: str
) -> None:
    entry = put(other)
    with pytest.raises(IncompatibleBaseError) as caught:
        resolver(registry).find("math")
    assert f"the expert math is for {other.folder}, {words}, not for ours-aaaaaaaaaaaa" in caught.value.message
    assert "--allow-foreign" in caught.value.hint
    allowed = resolver(registry, allow_foreign=True)
    assert allowed.find("math") == entry
    assert words in allowed.warnings[0]


@pytest.mark.parametrize("ranks", [{}, {**RANKS, "model.layers.0.mlp.up_proj.weight": 7}])
def test_other_shapes_are_refused_whatever_is_allowed(registry: LocalRegistry, put: Put, ranks: dict[str, int]) -> None:
    put(FOREIGN)
    with pytest.raises(IncompatibleBaseError) as caught:
        resolver(registry, ranks=ranks).find("math")
    assert "its shapes are others" in caught.value.message
    assert "--allow-foreign" not in caught.value.hint
    with pytest.raises(IncompatibleBaseError, match=r"up_proj") as caught:
        resolver(registry, ranks=ranks, allow_foreign=True).find("math")
    assert "--allow-foreign" not in caught.value.hint
    put(NEAR)
    with pytest.raises(IncompatibleBaseError, match=r"up_proj"):
        resolver(registry, ranks=ranks).find("math")


def test_what_is_not_there_is_not_found(registry: LocalRegistry, put: Put) -> None:
    put(FOREIGN)
    with pytest.raises(NotFoundError):
        resolver(registry, allow_foreign=True).find("poems")
    with pytest.raises(NotFoundError):
        resolver(registry, allow_foreign=True).find("math@2")


def test_a_damaged_expert_of_another_base_does_not_hide_a_sound_relative(registry: LocalRegistry, put: Put) -> None:
    broken, near = put(FOREIGN), put(NEAR)
    (broken.path / "expert.yaml").write_text("schema: 1\n")
    assert resolver(registry).find("math") == near
    (near.path / "expert.yaml").write_text("schema: 1\n")
    with pytest.raises(CorruptArtifactError):
        resolver(registry).find("math")


def test_others_are_the_allowed_closest_first(registry: LocalRegistry, put: Put) -> None:
    own, foreign, farther = put(OURS), put(FOREIGN), put(FARTHER)
    old, new = put(NEAR, created="2026-01-01T00:00:00Z"), put(NEAR, created="2026-01-02T00:00:00Z")
    unknown = put(UNKNOWN)
    assert resolver(registry).own() == [own]
    assert resolver(registry).others() == [new, old, farther]
    assert resolver(registry, allow_foreign=True).others() == [new, old, farther, foreign, unknown]
    (unknown.path / "expert.yaml").write_text("schema: 1\n")
    found = resolver(registry)
    found.own()
    found.others()
    assert registry.problems == []


def test_a_reference_finds_what_it_is_the_reference_of(registry: LocalRegistry, put: Put) -> None:
    own, near, farther = put(OURS), put(NEAR), put(FARTHER, "story")
    found = resolver(registry)
    assert [found.using(entry) for entry in (own, farther)] == ["math@1", "story@1"]
    reference = found.using(near)  # math@1 is the base's own
    assert reference == f"math@sha256:{near.digest}"
    assert found.find(reference) == near
    assert len(found.warnings) == 2


def test_shown_is_what_the_name_means_usable_or_not(registry: LocalRegistry, put: Put) -> None:
    foreign = put(FOREIGN)
    ours = Fingerprint("a" * 64, PROBES)
    entry, how = shown(registry, "math", ours)
    assert (entry, how.kind) == (foreign, "foreign")
    assert how.drift == pytest.approx(2)
    near = put(NEAR)
    assert shown(registry, "math", ours)[0] == near
    assert shown(registry, "math", Fingerprint("a" * 64))[1] == Relation("unknown", None)
    own = put(OURS)
    assert shown(registry, "math", ours) == (own, Relation("same", 0.0))
    assert shown(registry, "math@1", None)[1].kind == "unknown"


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "less than 0.01 %"),
        (0.00117, "0.12 %"),
        (0.002, "0.2 %"),
        (0.0607, "6.1 %"),
        (0.1, "10 %"),
        (1.4, "140 %"),
    ],
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


def test_in_words() -> None:
    assert in_words(Relation("same", 0.0)) == "the same base"
    assert in_words(Relation("relative", 0.002)) == "a close relative (weights differ by 0.2 %)"
    assert in_words(Relation("foreign", None)) == "a foreign base"


def test_the_shipped_experts_know_the_probes_of_their_base() -> None:
    from t2cli.models.catalog import CATALOG
    from t2cli.paths import shipped_registry

    digests = {base.weights for base in CATALOG.values()}
    for entry in LocalRegistry([Path(shipped_registry())]).list():
        fingerprint = entry.manifest.base.fingerprint
        assert fingerprint.weights in digests
        assert set(fingerprint.probes) == set(fingerprint.spectrum)
