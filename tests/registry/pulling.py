"""What the tests of the Hub share besides fixtures."""

from __future__ import annotations

from hub_server import Hub

from t2cli.registry.hub import HubSource, Pulled, pull
from t2cli.registry.hub_client import HubRepo
from t2cli.registry.local import ExpertEntry, LocalRegistry

NAME = "org/experts"


def pulled(repo: HubRepo, into: LocalRegistry, what: str = NAME, *, every: bool = False) -> list[Pulled]:
    return list(pull(repo, HubSource.parse(what), into, every=every))


def folder(entry: ExpertEntry) -> str:
    return f"{entry.manifest.base.folder}/{entry.manifest.name}/{entry.manifest.version}"


def front_matter(hub: Hub) -> dict[str, object]:
    import yaml

    return dict(yaml.safe_load(hub.repo(NAME).files["README.md"].decode().split("---\n")[1]))
