"""Publishing on the Hub, with the real client and a real server: one commit and a tag, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import Fault, Hub, Repo
from pulling import NAME, folder, pulled

from t2cli.errors import CorruptArtifactError, NotFoundError, T2Error
from t2cli.registry.hub_client import HubConflictError, HubRepo
from t2cli.registry.hub_push import Pushed, push
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.manifest import BaseRecord, ExpertManifest

Make = Callable[..., ExpertManifest]

pytestmark = pytest.mark.usefixtures("logged_in")


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
