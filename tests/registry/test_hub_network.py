"""A Hub that cuts connections, is busy, silent, gated or gone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hub_server import Fault, Hub, running
from pulling import NAME, pulled

from t2cli.errors import NetworkError, NotFoundError
from t2cli.registry import hub_client
from t2cli.registry.hub import HubSource, pull
from t2cli.registry.hub_client import HubRepo
from t2cli.registry.hub_push import Pushed, push
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.manifest import ExpertManifest

Make = Callable[..., ExpertManifest]

pytestmark = pytest.mark.usefixtures("logged_in")


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
