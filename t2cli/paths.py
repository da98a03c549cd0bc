"""Where things are on disk: every environment variable t2 reads is read here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Place(NamedTuple):
    """Where this process is among those that torchrun started."""

    rank: int  # of all
    local_rank: int  # of those on this machine
    size: int


def expanded(path: str | Path) -> Path:
    """Return `path` with a leading ~ replaced by the home folder; as it is where that names nobody."""
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):  # no such user, or no name of one
        return Path(path)


def t2_home() -> Path:
    """Return `T2_HOME`, or the platform's folder for application data."""
    if home := os.environ.get("T2_HOME"):
        return expanded(home)
    import platformdirs

    return Path(platformdirs.user_data_dir("t2", appauthor=False))


def cache_dir() -> Path:
    """Return the folder of everything that can be made again: base weights and bases."""
    return t2_home() / "cache"


def converted_folder(name: str) -> Path:
    """Return where the converted weights of a named base are."""
    return cache_dir() / "models" / name


def hub_experts(repo: str) -> Path:
    """Return the registry of what references such as hf://org/repo/math fetched from that repository."""
    return cache_dir() / "hub-experts" / repo


def hub_data(repo: str) -> Path:
    """Return where the files of a data set from the Hub are."""
    return cache_dir() / "hub-data" / repo


def runs_dir() -> Path:
    """Return the folder of training runs."""
    return t2_home() / "runs"


def chat_history() -> Path | None:
    """Return the file of what was typed in conversations; None if `T2_HISTORY` is 0, off or no."""
    if os.environ.get("T2_HISTORY", "").lower() in ("0", "off", "no", "false"):
        return None
    return t2_home() / "chat-history"


def shipped_registry() -> Path:
    """Return the experts that come with t2: inside an installed package, else beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "_shipped_registry"
    return installed if installed.is_dir() else package.parent / "registry"


def registry_search_path(registry: str | Path | None = None) -> list[Path]:
    """Return the folders searched for experts; the first is written to.

    `registry` (the --registry option) wins over `T2_REGISTRY` (a search path); both replace the
    default, which is `$T2_HOME/registry` and then the experts that ship with t2.
    """
    if registry is not None:
        return [expanded(registry)]
    if search := os.environ.get("T2_REGISTRY"):
        return [expanded(part) for part in search.split(os.pathsep) if part]
    return [t2_home() / "registry", shipped_registry()]


def hub_endpoint() -> str | None:
    """Return the address of the Hub that `HF_ENDPOINT` names; None: the public one."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def launched() -> Place | None:
    """Return this process' place among those that torchrun started with it; None for a process alone."""
    try:
        rank, local_rank, size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    except (KeyError, ValueError):
        return None
    return Place(rank, local_rank, size) if size > 1 and "MASTER_ADDR" in os.environ else None


def debug() -> bool:
    """Tell whether errors come with a traceback (`T2_DEBUG=1`)."""
    return os.environ.get("T2_DEBUG", "") not in ("", "0")
