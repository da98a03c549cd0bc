"""Records from data sets on the Hugging Face Hub: the files of a data set's repository, at one commit.

What was fetched is kept under `$T2_HOME/cache/hub-data/ORG/NAME/COMMIT` and never asked for again; without network a
branch is the commit it was at when it was last seen. No code of a data set is run: its files are JSONL, JSON or
parquet, named after config and split as the Hub's own converter and most authors name them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from t2cli.errors import CorruptArtifactError, NetworkError, NotFoundError
from t2cli.files import write_atomic
from t2cli.paths import hub_data
from t2cli.tasks.jsonl import MAX_FILE_BYTES, Located

if TYPE_CHECKING:
    from t2cli.registry.hub_client import HubRepo, Snapshot
    from t2cli.tasks.records import RecordSource
    from t2cli.tasks.spec import Row, TaskSpec

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PLACES = ("config", "revision")  # the other keys of a row's config are splits


def source(spec: TaskSpec) -> RecordSource:
    """Return the source of a task whose rows name data sets on the Hub."""
    from t2cli.tasks.records import RecordSource

    return RecordSource(spec, fetched)


def fetched(row: Row) -> Located:
    """Return the files of a row on this machine, fetched if they are not here yet.

    Raises NotFoundError for a data set, revision or split that does not exist, NetworkError for what cannot be
    fetched and was not before, and CorruptArtifactError for what is not what the Hub lists, or too large.
    """
    from t2cli.registry.hub_client import HubRepo

    config = {key: str(value) for key, value in row.config.items()}
    repo = HubRepo(row.dataset)
    repo.kind = "dataset"
    snapshot = _snapshot(repo, config.get("revision", "main"))
    splits = {split: name for split, name in config.items() if split not in _PLACES}
    files = {
        "" if split == "file" else split: tuple(
            _local(repo, snapshot, path) for path in _chosen(repo.name, snapshot.files, config.get("config", ""), name)
        )
        for split, name in splits.items()
    }
    return Located(files, {"dataset": repo.name, "revision": snapshot.commit})


def cached(row: Row) -> Located:
    """Return the files of a row as they were last seen, without network. Raises NotFoundError if they are not here."""
    config = {key: str(value) for key, value in row.config.items()}
    home, revision = hub_data(row.dataset), config.get("revision", "main")
    commit = revision if _COMMIT.fullmatch(revision) else _seen(home).get(revision, "")
    listed = _remembered(home, commit) if _COMMIT.fullmatch(commit) else None
    here, place = listed.files if listed else (), config.get("config", "")
    files = {
        "" if split == "file" else split: tuple(home / commit / path for path in files_of_split(here, place, name))
        for split, name in config.items()
        if split not in _PLACES
    }
    if not all(paths and all(path.is_file() for path in paths) for paths in files.values()):
        raise NotFoundError(f"{row.dataset} has not been fetched yet", hint="t2 train fetches it; or give --data")
    return Located(files, {"dataset": row.dataset, "revision": commit})


def files_of_split(paths: Iterable[str], config: str, split: str) -> list[str]:
    """Return those of a repository's files that hold a split of a config ("": the only one), in order.

    Known are `CONFIG/SPLIT-00000-of-00002.parquet`, `data/SPLIT-...`, `CONFIG/SPLIT/....parquet`, `SPLIT.jsonl`, and a
    `split` that is a file's own path. Where a split is there in several formats, JSON lines come first.
    """
    known = sorted(path for path in paths if ".." not in path.split("/") and not path.startswith("/"))
    if split in known:
        return [split]
    folder = f"(?:data/)?{re.escape(config)}/(?:data/)?" if config else "(?:data/)?(?:default/)?"
    name = rf"{re.escape(split)}(?:-[0-9]{{5}}-of-[0-9]{{5}}(?:-[0-9a-f]+)?|/[^/]+)?"
    for suffix in ("jsonl", "json", "parquet"):
        for start in (folder, "(?:data/)?"):
            if found := [path for path in known if re.fullmatch(rf"{start}{name}\.{suffix}", path)]:
                return found
    return []


def _chosen(repo: str, paths: Iterable[str], config: str, split: str) -> list[str]:
    if found := files_of_split(paths := list(paths), config, split):
        return found
    data = [path for path in paths if path.endswith((".jsonl", ".json", ".parquet"))]
    raise NotFoundError(
        f"the data set {repo} has no file of the split {split!r}" + (f" of {config!r}" if config else ""),
        hint=f"it has {', '.join(data[:8]) or 'no JSONL, JSON or parquet files'}; a split may be such a path",
    )


def _snapshot(repo: HubRepo, revision: str) -> Snapshot:
    """Return what the data set holds at a revision: as remembered for a commit, else as the Hub says."""
    home = hub_data(repo.name)
    if _COMMIT.fullmatch(revision) and (known := _remembered(home, revision)):
        return known
    try:
        snapshot = repo.snapshot(revision)
    except NetworkError as error:
        seen = _seen(home).get(revision, "")
        if _COMMIT.fullmatch(seen) and (known := _remembered(home, seen)):
            return known
        raise _unreachable(error) from error
    if not _COMMIT.fullmatch(snapshot.commit):  # it becomes a folder's name
        raise NetworkError(f"the Hub does not say which commit {repo.name} is", hint="check HF_ENDPOINT")
    write_atomic(
        home / snapshot.commit / ".t2-files.json",
        json.dumps({path: asdict(file) for path, file in snapshot.files.items()}),
    )
    write_atomic(home / "revisions.json", json.dumps({**_seen(home), revision: snapshot.commit}))
    return snapshot


def _remembered(home: Path, commit: str) -> Snapshot | None:
    from t2cli.registry.hub_client import HubFile, Snapshot

    try:
        listed = json.loads((home / commit / ".t2-files.json").read_text())
        return Snapshot(commit, {path: HubFile(**file) for path, file in listed.items()}, private=False)
    except (OSError, ValueError, TypeError, AttributeError):  # not there, or not what was written: ask again
        return None


def _seen(home: Path) -> Mapping[str, str]:
    try:
        seen = json.loads((home / "revisions.json").read_text())
    except (OSError, ValueError):
        return {}
    return {key: str(value) for key, value in seen.items()} if isinstance(seen, dict) else {}


def _local(repo: HubRepo, snapshot: Snapshot, path: str) -> Path:
    """Return a file of the data set on this machine, fetched and verified if it is not there."""
    local = hub_data(repo.name) / snapshot.commit / path
    if local.is_file() and local.stat().st_size == snapshot.files[path].size:
        return local
    try:
        write_atomic(local, repo.read(snapshot, path, MAX_FILE_BYTES))
    except NetworkError as error:
        raise _unreachable(error) from error
    except CorruptArtifactError as error:
        raise CorruptArtifactError(error.message, hint="give its files with --data") from error
    return local


def _unreachable(error: NetworkError) -> NetworkError:
    return NetworkError(
        error.message, hint="try again with network, or give the questions from files: --data FOLDER or FILE"
    )
