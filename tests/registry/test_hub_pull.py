"""Pulling from the Hub: the same bytes come back whole and checked, or nothing does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import Fault, Hub, Repo
from pulling import NAME, folder, pulled

from t2cli.errors import CorruptArtifactError, NotFoundError, T2Error, UsageError
from t2cli.registry.hub import HubSource, Pulled, listed
from t2cli.registry.hub_client import HubRepo
from t2cli.registry.hub_push import Pushed, push
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.manifest import ExpertManifest

Make = Callable[..., ExpertManifest]

pytestmark = pytest.mark.usefixtures("logged_in")


def test_pushed_then_pulled_is_the_same_expert(
    repo: HubRepo, entry: ExpertEntry, published: Pushed, other: LocalRegistry
) -> None:
    (one,) = pulled(repo, other)
    assert one.new
    assert (one.entry.digest, one.entry.manifest) == (entry.digest, entry.manifest)
    assert one.entry.z_bytes() == entry.z_bytes()
    assert other.list() == [one.entry]
    assert other.verify(one.entry) == []
    (again,) = pulled(repo, other)
    assert (again.new, again.entry) == (False, one.entry)


def test_pulls_at_the_same_time_do_not_disturb_each_other(
    hub: Hub, entry: ExpertEntry, published: Pushed, other: LocalRegistry
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def one(_: int) -> list[Pulled]:
        return pulled(HubRepo(NAME, endpoint=hub.url), LocalRegistry(other.search_path))

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(one, range(4)))
    assert {result[0].entry.digest for result in results} == {entry.digest}
    assert other.verify(other.list()[0]) == []
    assert [path.name for path in other.list()[0].path.parent.iterdir()] == ["1"]


def test_newest_every_and_exact_versions(
    repo: HubRepo, published: Pushed, registry: LocalRegistry, entry: ExpertEntry, tmp_path: Path, make: Make, z: bytes
) -> None:
    second = registry.put(make(description="better"), z)
    push(second, repo, registry)

    def got(what: str, **options: bool) -> list[str]:
        into = LocalRegistry([tmp_path / f"into {what} {options}".replace("/", "-")])
        return [one.entry.digest for one in pulled(repo, into, what, **options)]

    assert got(NAME) == got(f"{NAME}/math") == got(f"hf://{NAME}/math@2") == [second.digest]
    assert got(NAME, every=True) == [entry.digest, second.digest]
    assert got(f"{NAME}/math@1") == got(f"{NAME}@math-v1") == got(f"{NAME}@{published.commit}/math") == [entry.digest]
    assert got(f"{NAME}/math@sha256:{entry.digest[:16]}") == [entry.digest]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (f"{NAME}/maths", "maths"),
        (f"{NAME}/math@7", "math@7"),
        (f"{NAME}/math@sha256:{'0' * 64}", "math@sha256"),
        (f"{NAME}@v9", "v9"),
        ("org/nothing", "org/nothing"),
        ("org/empty", "no experts"),
    ],
)
def test_what_the_hub_does_not_have(hub: Hub, published: Pushed, other: LocalRegistry, what: str, said: str) -> None:
    hub.repos["org/empty"] = Repo()
    with pytest.raises(NotFoundError, match=said) as caught:
        pulled(HubRepo(HubSource.parse(what).repo, endpoint=hub.url), other, what)
    assert caught.value.hint
    assert other.list() == []


@pytest.mark.parametrize("text", ["", "org", "org/", "/x", "a/b/", "a/b/c/d", "a/b@/c", "a/b@../c", "../b", "a/b/C"])
def test_what_names_nothing_on_the_hub_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        HubSource.parse(text)
    assert caught.value.hint


def test_another_expert_in_the_place_here_is_not_touched(
    hub: Hub, repo: HubRepo, published: Pushed, other: LocalRegistry, make: Make, make_z: Callable[..., bytes]
) -> None:
    mine = other.put(make(), make_z(value=2.0))
    with pytest.raises(T2Error, match="another expert than hf://org/experts/math@1") as caught:
        pulled(repo, other)
    assert "--registry" in caught.value.hint
    assert other.list() == [mine]
    assert not any("z.safetensors" in name for name in hub.downloaded)


def test_an_expert_that_is_damaged_here_is_not_taken_for_the_published_one(
    repo: HubRepo, published: Pushed, other: LocalRegistry
) -> None:
    (one,) = pulled(repo, other)
    (one.entry.path / "z.safetensors").write_bytes(b"broken")
    with pytest.raises(CorruptArtifactError, match="damaged"):
        pulled(repo, other)


@pytest.mark.parametrize("name", ["z.safetensors", "expert.yaml"])
@pytest.mark.parametrize("how", ["changed", "shorter", "longer", "empty"])
def test_a_file_that_is_not_what_was_published_never_appears(
    hub: Hub, repo: HubRepo, entry: ExpertEntry, published: Pushed, other: LocalRegistry, name: str, how: str
) -> None:
    good = (entry.path / name).read_bytes()
    changed = good.replace(b"n: 200", b"n: 100") if name == "expert.yaml" else good[:-2] + b"\x80\x3f"  # 1.25 -> 1.0
    assert changed != good
    bad = {"changed": changed, "shorter": good[:-1], "longer": good + b" " * 9, "empty": b""}[how]
    hub.faults.append(Fault("GET", f"{name}$", times=99, content=bad))
    with pytest.raises(CorruptArtifactError):
        pulled(repo, other)
    assert other.list() == []
    assert other.problems == []


def test_a_z_that_is_not_the_manifests_is_refused_though_the_hub_lists_it(
    hub: Hub, repo: HubRepo, entry: ExpertEntry, published: Pushed, other: LocalRegistry
) -> None:
    hub.repo(NAME).files[f"{folder(entry)}/z.safetensors"] = entry.z_bytes()[:-2] + b"\x80\x3f"
    with pytest.raises(CorruptArtifactError, match="SHA-256 differs"):
        pulled(repo, other)
    assert other.list() == []


def test_a_repository_whose_manifest_lies_about_its_place_is_refused(
    hub: Hub, repo: HubRepo, entry: ExpertEntry, published: Pushed, other: LocalRegistry
) -> None:
    there = hub.repo(NAME)
    there.add({f"{entry.manifest.base.folder}/math/2/expert.yaml": (entry.path / "expert.yaml").read_bytes()}, "lie")
    with pytest.raises(CorruptArtifactError, match="not where it lies"):
        pulled(repo, other)


def test_sizes_are_checked_before_anything_large_is_fetched(
    hub: Hub, repo: HubRepo, entry: ExpertEntry, published: Pushed, other: LocalRegistry
) -> None:
    hub.repo(NAME).files[f"{folder(entry)}/z.safetensors"] = b"\0" * (9 << 20)
    with pytest.raises(CorruptArtifactError, match="cannot be 10 numbers"):
        pulled(repo, other)
    hub.repo(NAME).files[f"{folder(entry)}/expert.yaml"] = b"a: 1\n" * 300_000
    with pytest.raises(CorruptArtifactError, match="more than"):
        pulled(repo, other)
    assert hub.downloaded <= {f"{folder(entry)}/expert.yaml"}


def test_strange_files_of_a_repository_are_passed_over(
    hub: Hub, repo: HubRepo, published: Pushed, other: LocalRegistry
) -> None:
    strange = ["../../x/math/1/expert.yaml", "x/../1/expert.yaml", "x/math/01/expert.yaml", "x/math/0/expert.yaml"]
    strange += ["x/math/1/expert.yaml/expert.yaml", "/x/math/1/expert.yaml", "x/Math/1/expert.yaml", "pickle.pkl"]
    hub.repo(NAME).add(dict.fromkeys(strange, b"a: 1"), "strange")
    assert [one.entry.reference for one in pulled(repo, other)] == ["math@1"]


def test_the_bytes_on_the_hub_have_the_digest_that_is_shown(
    hub: Hub, repo: HubRepo, entry: ExpertEntry, published: Pushed
) -> None:
    text = hub.repo(NAME).files[f"{folder(entry)}/expert.yaml"]
    assert hashlib.sha256(text).hexdigest() == listed(repo, published.tag)[0][0].digest == entry.digest
    assert json.dumps([path for path in hub.repo(NAME).files if ".." in path]) == "[]"
