"""The part of a manifest that dispatchers have: read as it was written, shown on the card, and refused where wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml
from fuzzing import JUNK, changed_at, generate, paths_of
from hypothesis import strategies as st

from t2cli.errors import CorruptArtifactError
from t2cli.registry.card import model_card
from t2cli.registry.dispatcher_record import DispatcherRecord
from t2cli.registry.listing import remembered
from t2cli.registry.local import LocalRegistry
from t2cli.registry.manifest import ExpertManifest

Make = Callable[..., ExpertManifest]

RECORD = DispatcherRecord(
    "Which kind: A: math (sums, and so on). B: other.", ("math", "other"), ("A", "B"), 0.62, ((48, 2), (1, 49))
)


@pytest.fixture
def dispatcher(make: Make) -> ExpertManifest:
    return make(kind="dispatcher", category="dispatch", dispatcher=RECORD, parents=())


def read(document: dict[str, Any]) -> ExpertManifest:
    return ExpertManifest.from_yaml(yaml.safe_dump(document), "expert.yaml")


def test_it_survives_yaml_and_the_list_of_a_registry(
    dispatcher: ExpertManifest, registry: LocalRegistry, z: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ExpertManifest.from_yaml(dispatcher.to_yaml(), "x") == dispatcher
    assert read(dispatcher.to_dict()) == dispatcher
    entry = registry.put(dispatcher, z)
    assert entry.manifest.dispatcher == RECORD
    assert [each.manifest.dispatcher for each in remembered(registry)] == [RECORD]
    monkeypatch.setattr(LocalRegistry, "read", None)  # the second list parses nothing
    assert [each.manifest.dispatcher for each in remembered(registry)] == [RECORD]


def test_it_counts_what_was_right() -> None:
    assert (RECORD.n, RECORD.accuracy) == (100, 0.97)


def test_experts_have_no_such_key(make: Make) -> None:
    assert "dispatcher" not in make().to_dict()


@pytest.mark.parametrize("kind", ["expert", "mix"])
def test_only_a_dispatcher_may_have_it(kind: str, make: Make, dispatcher: ExpertManifest) -> None:
    with pytest.raises(CorruptArtifactError, match="a dispatcher, and nothing else"):
        read(make(kind=kind, dispatcher=RECORD).to_dict())
    with pytest.raises(CorruptArtifactError, match="a dispatcher, and nothing else"):
        read(replace(dispatcher, dispatcher=None).to_dict())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("categories", value) for value in ([], ["math"], ["math", "math"], ["math", "sums"], "math", [1, "other"])),
        ("categories", [*map(str, range(30)), "other"]),
        *(("labels", value) for value in (["A"], ["A", "A"], ["A", "B", "C"], ["A", "B b"], ["A", "b" * 33], "AB")),
        *(("threshold", value) for value in (-0.1, 1.1, float("nan"), "0.5", None, True)),
        *(("confusion", value) for value in ([], [[1, 2]], [[1], [2]], [[1, 2], [3, -4]], [[1, 2], [3, 4.5]], 3)),
        *(
            ("confusion", value)
            for value in ([[1, 2], [3, True]], [[1, 2], [3, 10**30]], [1, 2], [["1", "2"], ["3", "4"]])
        ),
        *(("instruction", value) for value in ("", "a\nb", "x" * 3000, None, 3, "\x1b[2J")),
        ("extra", 1),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(key: str, value: object, dispatcher: ExpertManifest) -> None:
    with pytest.raises(CorruptArtifactError, match=rf"dispatcher\.{key}") as caught:
        read(changed_at(dispatcher.to_dict(), ("dispatcher", key), value))
    assert len(caught.value.message) < 400
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("key", ["instruction", "categories", "labels", "threshold", "confusion"])
def test_a_missing_key_is_refused(key: str, dispatcher: ExpertManifest) -> None:
    document: Any = dispatcher.to_dict()
    del document["dispatcher"][key]
    with pytest.raises(CorruptArtifactError):
        read(document)


def test_junk_anywhere_is_read_as_a_sound_record_or_refused(dispatcher: ExpertManifest) -> None:
    document = dispatcher.to_dict()
    places = [path for path in paths_of(document) if path[0] == "dispatcher"]

    def check(case: tuple[tuple[Any, ...], object]) -> None:
        try:
            found = read(changed_at(document, *case))
        except CorruptArtifactError:
            return
        assert ExpertManifest.from_yaml(found.to_yaml(), "x") == found

    generate(300, st.tuples(st.sampled_from(places), JUNK), check)


def test_the_card_shows_what_it_confuses(dispatcher: ExpertManifest) -> None:
    card = model_card(dispatcher)
    assert "| math | 48 | 2 |" in card
    assert "97.0% of 100" in card
    assert "t2 chat --adapt classifier" in card
    assert "--expert" not in card
