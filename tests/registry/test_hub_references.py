"""References to the Hub, and listing what is there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hub_server import Fault, Hub
from pulling import NAME, pulled

from t2cli import paths
from t2cli.errors import CorruptArtifactError, IncompatibleBaseError, NetworkError, UsageError
from t2cli.registry.hub import fetched, listed
from t2cli.registry.hub_client import HubRepo
from t2cli.registry.hub_push import Pushed, push
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.manifest import BaseRecord, ExpertManifest
from t2cli.registry.reference import ExpertRef
from t2cli.registry.resolve import ForBase, Resolver
from t2cli.registry.zfile import read_header

Make = Callable[..., ExpertManifest]

pytestmark = pytest.mark.usefixtures("logged_in")


def test_listing_reads_manifests_only_and_passes_over_what_is_broken(
    hub: Hub, repo: HubRepo, entry: ExpertEntry, published: Pushed, registry: LocalRegistry, make: Make, z: bytes
) -> None:
    second = registry.put(make(), z)
    push(second, repo, registry)
    hub.repo(NAME).add({"x-123456789012/broken/1/expert.yaml": b"no: manifest"}, "broken")
    hub.asked.clear()
    entries, problems = listed(repo, None)
    assert [(one.digest, one.reference) for one in entries] == [(second.digest, "hf://org/experts/math@2")]
    assert "broken@1" in problems[0].message
    assert all(name.endswith("expert.yaml") for name in hub.downloaded)
    assert [one.digest for one in listed(repo, None, every=True)[0]] == [entry.digest, second.digest]


def test_a_reference_to_the_hub_is_fetched_once_and_found(
    hub: Hub, entry: ExpertEntry, published: Pushed, other: LocalRegistry
) -> None:
    found = other.find("hf://org/experts/math@1", base_digest=entry.manifest.base.fingerprint.weights)
    assert (found.digest, found.reference, found.source) == (
        entry.digest,
        "hf://org/experts/math@1",
        "hf://org/experts",
    )
    assert found.registry == paths.hub_experts(NAME)
    assert other.list() == []  # not pulled into the registry: it may have another math@1
    hub.asked.clear()
    assert other.find("hf://org/experts/math@1") == found
    assert other.find_each(f"hf://org/experts/math@sha256:{entry.digest[:12]}") == [found]
    assert hub.asked == []


def test_a_reference_is_asked_for_again_where_it_is_here_for_another_base_only(
    hub: Hub,
    repo: HubRepo,
    entry: ExpertEntry,
    published: Pushed,
    registry: LocalRegistry,
    other: LocalRegistry,
    make: Make,
    other_base: BaseRecord,
    z: bytes,
) -> None:
    weights, ref = other_base.fingerprint.weights, "hf://org/experts/math@1"
    assert other.find(ref) == other.find(ref, base_digest=entry.manifest.base.fingerprint.weights)
    with pytest.raises(IncompatibleBaseError):
        other.find(ref, base_digest=weights)
    foreign = registry.put(make(base=other_base), z)
    push(foreign, repo, registry)
    hub.broken = True
    with pytest.raises(IncompatibleBaseError):
        other.find(ref, base_digest=weights)
    hub.broken = False
    assert other.find(ref, base_digest=weights).digest == foreign.digest
    assert {found.digest for found in other.find_each(ref)} == {entry.digest, foreign.digest}


def test_for_another_base_the_hub_is_asked_once(
    hub: Hub, entry: ExpertEntry, published: Pushed, other: LocalRegistry
) -> None:
    shapes = {name: r for name, (r,) in read_header(entry.z_bytes(), "").items()}
    used = ForBase("another", "b" * 64, probes=dict, ranks=lambda: shapes)
    resolver = Resolver(other, used, allow_foreign=True)
    assert resolver.find("hf://org/experts/math@1").digest == entry.digest
    assert hub.asked
    hub.asked.clear()
    assert resolver.find("hf://org/experts/math@1").digest == entry.digest
    assert hub.asked == []
    hub.faults.append(Fault("GET", NAME, times=99, status=401))  # who lets nobody in does not take away what is here
    assert Resolver(other, used, allow_foreign=True).find("hf://org/experts/math@1").digest == entry.digest


def test_a_reference_without_a_version_follows_the_hub(
    repo: HubRepo, published: Pushed, other: LocalRegistry, registry: LocalRegistry, make: Make, z: bytes
) -> None:
    assert other.find("hf://org/experts/math").reference == "hf://org/experts/math@1"
    push(registry.put(make(), z), repo, registry)
    assert other.find("hf://org/experts/math").reference == "hf://org/experts/math@2"


def test_offline_an_exact_version_that_is_here_still_works(
    hub: Hub,
    repo: HubRepo,
    entry: ExpertEntry,
    published: Pushed,
    other: LocalRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    other.find("hf://org/experts/math@1")
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert other.find("hf://org/experts/math@1").digest == entry.digest
    for action in (
        lambda: other.find("hf://org/experts/math"),
        lambda: other.find("hf://org/experts/math@2"),
        lambda: pulled(repo, other),
        lambda: listed(repo, None),
        lambda: push(entry, repo, other),
    ):
        with pytest.raises(NetworkError, match="HF_HUB_OFFLINE is set"):
            action()
    assert hub.asked == []


def test_what_was_fetched_is_checked_again_on_use(entry: ExpertEntry, published: Pushed, other: LocalRegistry) -> None:
    found = other.find("hf://org/experts/math@1")
    (found.path / "z.safetensors").write_bytes(entry.z_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(CorruptArtifactError, match="SHA-256 differs"):
        other.find("hf://org/experts/math@1").z_bytes()


def test_only_references_to_the_hub_can_be_fetched() -> None:
    with pytest.raises(UsageError):
        fetched(ExpertRef("math"))
