"""One expert's folder on disk: where it may be, and how it is read without trusting it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from t2cli.errors import CorruptArtifactError, NotFoundError, T2Error
from t2cli.files import clear_temporaries, folder_being_made
from t2cli.registry.manifest import Z_FILE, ExpertManifest
from t2cli.registry.reference import HUB_SCHEME, VERSION_PATTERN
from t2cli.registry.zfile import NUMBER_BYTES, max_file_bytes

MANIFEST_FILE = "expert.yaml"
CARD_FILE = "README.md"
MAX_MANIFEST_BYTES = 1 << 20
RESTORE = "restore the folder from a copy, or delete it and train or fetch the expert again"


@dataclass(frozen=True)
class Slot:
    """A place <registry>/<base>/<name>/<version> known from folder names alone: nothing is read yet."""

    registry: Path
    base: str
    name: str
    version: int

    @property
    def path(self) -> Path:
        """Return the version's folder."""
        return self.registry.joinpath(self.base, self.name, str(self.version))

    @property
    def reference(self) -> str:
        """Return the reference by version, as in math@2."""
        return f"{self.name}@{self.version}"

    def is_for(self, base_digest: str) -> bool:
        """Tell whether the base's folder is named for the weights with this digest."""
        return self.base.endswith(f"-{base_digest[:12]}")


@dataclass(frozen=True)
class ExpertEntry:
    """One version of an expert on disk: its manifest, its folder, and the SHA-256 of its expert.yaml.

    `source` is "local", "shipped", "hf://org/repo" or the registry's path.
    """

    manifest: ExpertManifest
    path: Path
    digest: str
    registry: Path
    source: str

    @property
    def reference(self) -> str:
        """Return the reference by version, as in math@2, or hf://org/repo/math@2 for what was fetched by that name."""
        name = f"{self.manifest.name}@{self.manifest.version}"
        return f"{self.source}/{name}" if self.source.startswith(HUB_SCHEME) else name

    @property
    def slot(self) -> Slot:
        """Return the place it lies in."""
        return Slot(self.registry, self.path.parent.parent.name, self.path.parent.name, int(self.path.name))

    def z_bytes(self) -> bytes:
        """Return the content of z.safetensors.

        Raises CorruptArtifactError if it is missing, of a size that cannot be right, or not the file the
        manifest describes; NotFoundError if the whole version was removed since its manifest was read.
        """
        path = self.path / Z_FILE
        try:
            blob = read_inside(self.registry, path, max_file_bytes(self.manifest.targets.parameters))
        except T2Error as error:
            if os.path.lexists(self.path):
                raise
            raise NotFoundError(f"{self.reference} was removed by another process", hint="see: t2 list") from error
        if len(blob) <= NUMBER_BYTES * self.manifest.targets.parameters:
            raise CorruptArtifactError(f"{path} is truncated: it has only {len(blob)} bytes", hint=RESTORE)
        if hashlib.sha256(blob).hexdigest() != self.manifest.z.sha256:
            raise CorruptArtifactError(
                f"{path} is not the file that {MANIFEST_FILE} describes: its SHA-256 differs", hint=RESTORE
            )
        return blob


def slots(registry: Path, problems: list[T2Error], name: str | None = None) -> Iterator[Slot]:
    """Yield every place in `registry` that looks like a version of `name` (of any expert), in a fixed order.

    Temporary and other hidden folders are passed over; a registry that does not exist has none. Folders that
    cannot be listed are added to `problems`.
    """
    for base in _folders(registry, problems):
        for expert in _folders(registry / base, problems) if name is None else [name]:
            found = _names(registry / base / expert, problems)
            for version in sorted(int(entry) for entry in found if VERSION_PATTERN.fullmatch(entry)):
                yield Slot(registry, base, expert, version)


def read_entry(slot: Slot, source: str) -> ExpertEntry:
    """Read and check the manifest in `slot`, nothing else.

    Raises CorruptArtifactError if it is missing, malformed, leads out of the registry, or is for another
    place.
    """
    path = slot.path / MANIFEST_FILE
    raw = read_inside(slot.registry, path, MAX_MANIFEST_BYTES)
    manifest = parse_manifest(raw, slot, str(path))
    return ExpertEntry(manifest, slot.path, hashlib.sha256(raw).hexdigest(), slot.registry, source)


def parse_manifest(raw: bytes, slot: Slot, path: str) -> ExpertManifest:
    """Return the manifest in the bytes of an expert.yaml that lies in `slot`; `path` names it in errors.

    Raises CorruptArtifactError if it is malformed or for another place.
    """
    manifest = decode_manifest(raw, path, RESTORE)
    says = (manifest.base.folder, manifest.name, manifest.version)
    if says != (slot.base, slot.name, slot.version):
        raise CorruptArtifactError(
            f"{path} says it is {'/'.join(map(str, says))}, which is not where it lies",
            hint="move the folder back to where it was, or restore it",
        )
    return manifest


def decode_manifest(raw: bytes, path: str, hint: str) -> ExpertManifest:
    """Return the manifest in the bytes of an expert.yaml; CorruptArtifactError, naming `path`, if it is malformed.

    `hint` says what to do where the error itself does not.
    """
    try:
        return ExpertManifest.from_yaml(raw.decode(), path)
    except UnicodeDecodeError as error:
        raise CorruptArtifactError(f"{path} is not UTF-8 text", hint=hint) from error
    except CorruptArtifactError as error:
        raise CorruptArtifactError(error.message, hint=error.hint or hint) from error


def write_version(slot: Slot, text: bytes, z: bytes, card: str) -> None:
    """Make the folder of a version, whole or not at all; the registry's lock must be held.

    Raises T2Error if it cannot be written or is there already.
    """
    clear_temporaries(slot.path.parent)  # of a process that was killed: whoever lives holds the lock
    try:
        with folder_being_made(slot.path) as folder:
            (folder / Z_FILE).write_bytes(z)
            (folder / CARD_FILE).write_bytes(card.encode())
            (folder / MANIFEST_FILE).write_bytes(text)
    except FileExistsError as error:  # only by a program that does not take the lock
        raise T2Error(f"{slot.path} appeared while it was being written", hint="try again") from error


def check_inside(registry: Path, path: Path) -> None:
    """Raise CorruptArtifactError if links lead `path` (which need not exist) out of `registry`."""
    inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(registry))
    if not inside:
        raise CorruptArtifactError(
            f"{path} leads out of the registry {registry} through a symbolic link",
            hint="replace the link by the folder itself, or add its registry to T2_REGISTRY",
        )


def read_inside(registry: Path, path: Path, limit: int) -> bytes:
    """Return the content of a regular file inside `registry` of at most `limit` bytes.

    Raises CorruptArtifactError if it is missing, larger, no regular file or outside; T2Error if it is
    unreadable.
    """
    check_inside(registry, path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise CorruptArtifactError(f"{path} is not a regular file", hint=RESTORE)
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorruptArtifactError(f"{path} is missing", hint=RESTORE) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(content) > limit:
        raise CorruptArtifactError(f"{path} is larger than the {limit} bytes it can have", hint=RESTORE)
    return content


def _names(folder: Path, problems: list[T2Error]) -> list[str]:
    try:
        with os.scandir(folder) as found:
            return sorted(entry.name for entry in found if not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        problems.append(_unreadable(folder, error))
        return []


def _folders(folder: Path, problems: list[T2Error]) -> list[str]:
    # os.path never raises, and of thousands of folders building Path objects would take most of the time
    return [name for name in _names(folder, problems) if os.path.isdir(f"{folder}/{name}")]  # noqa: PTH112


def _unreadable(path: Path, error: OSError) -> T2Error:
    return T2Error(f"{path} could not be read: {error.strerror or error}", hint="check its permissions")
