"""Experts in one file, for a machine without network: a tar of registry folders that holds nothing else.

    bundle.json                                 {"schema": "t2.bundle/1", "experts": [{path, digest, asked}, ...]}
    <base>/<name>/<version>/expert.yaml         for each of them, in the order of their paths
    <base>/<name>/<version>/z.safetensors

The parents of mixes travel with them ("asked": false). `digest` is the SHA-256 of expert.yaml, which holds that of
z.safetensors, so every byte is checked. Model cards are not in it: they are made anew from the manifests.

The archive is read without tarfile's reader: a member must have exactly the header that is written here for its name
and size, so links, devices, sparse files, extended headers, absolute paths and paths upward cannot occur, and a size
is checked before a byte of the member is read. The same experts give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, NamedTuple

from t2cli.errors import CorruptArtifactError, NotFoundError, T2Error, UsageError
from t2cli.files import writing
from t2cli.registry.entry import MANIFEST_FILE, MAX_MANIFEST_BYTES, ExpertEntry, read_inside
from t2cli.registry.fields import Fields
from t2cli.registry.intake import ASK_AGAIN, Taken, check_manifest, check_numbers, present, take_in
from t2cli.registry.local import LocalRegistry
from t2cli.registry.manifest import SHA256_PATTERN, Z_FILE, ExpertManifest
from t2cli.registry.reference import ExpertRef
from t2cli.registry.zfile import NUMBER_BYTES, max_file_bytes

SCHEMA = "t2.bundle/1"
INDEX = "bundle.json"
MAX_INDEX_BYTES = 4 << 20
MAX_EXPERTS = 10_000
BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)


@dataclass(frozen=True)
class Bundled:
    """One expert of a bundle: `path` is <base>/<name>/<version>; not `asked` for: it is there as a mix's parent."""

    path: str
    digest: str
    asked: bool


class Content(NamedTuple):
    """One expert as it is in a bundle."""

    bundled: Bundled
    manifest: ExpertManifest
    raw: bytes
    z: bytes


@dataclass(frozen=True)
class Written:
    """A written bundle: its experts, `missing` parents that are not on this machine, and its size and SHA-256."""

    path: Path
    experts: tuple[Bundled, ...]
    missing: tuple[str, ...]
    bytes: int
    sha256: str


def write_bundle(registry: LocalRegistry, entries: Sequence[ExpertEntry], path: Path) -> Written:
    """Write the experts, and the parents of mixes as far as they are on this machine, to the file `path`.

    Raises UsageError if `path` is there already, CorruptArtifactError for a damaged expert.
    """
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} is there already", hint="give another -o, or remove it first")
    family, missing = _family(registry, entries)
    asked = {entry.digest for entry in entries}
    members = sorted(((_place(entry.manifest), entry) for entry in family.values()), key=lambda pair: pair[0])
    experts = tuple(Bundled(place, entry.digest, entry.digest in asked) for place, entry in members)
    index = json.dumps({"schema": SCHEMA, "experts": [asdict(expert) for expert in experts]}, indent=1).encode()
    total = hashlib.sha256()
    with writing(path) as temporary, temporary.open("wb") as file:
        for chunk in _chunks(index, members):
            total.update(chunk)
            file.write(chunk)
        size = file.tell()
    return Written(path, experts, tuple(missing), size, total.hexdigest())


def _chunks(index: bytes, members: Sequence[tuple[str, ExpertEntry]]) -> Iterator[bytes]:
    yield _member(INDEX, index)
    for place, entry in members:
        raw = read_inside(entry.registry, entry.path / MANIFEST_FILE, MAX_MANIFEST_BYTES)
        if hashlib.sha256(raw).hexdigest() != entry.digest:
            raise CorruptArtifactError(f"{entry.path / MANIFEST_FILE} changed while it was read", hint="try again")
        z = entry.z_bytes()
        check_numbers(entry.manifest, z, str(entry.path / Z_FILE))
        yield _member(f"{place}/{MANIFEST_FILE}", raw)
        yield _member(f"{place}/{Z_FILE}", z)
    yield END


def _family(registry: LocalRegistry, entries: Sequence[ExpertEntry]) -> tuple[dict[str, ExpertEntry], list[str]]:
    """Return the experts with all their ancestors by digest, and the references of those that are not here.

    A damaged ancestor counts as not here: the mix itself does not need it.
    """
    found: dict[str, ExpertEntry] = {}
    missing: list[str] = []
    todo = list(entries)
    while todo:
        entry = todo.pop()
        if entry.digest in found:
            continue
        found[entry.digest] = entry
        for parent in entry.manifest.parents:
            try:
                todo.append(_sound(registry, ExpertRef(ExpertRef.parse(parent.ref).name, digest=parent.digest)))
            except T2Error:
                missing.append(parent.ref)
    return found, list(dict.fromkeys(missing))


def _sound(registry: LocalRegistry, ref: ExpertRef) -> ExpertEntry:
    entry = registry.find(ref)
    if problems := registry.verify(entry):
        raise CorruptArtifactError(problems[0])
    return entry


def _place(manifest: ExpertManifest) -> str:
    return f"{manifest.base.folder}/{manifest.name}/{manifest.version}"


def _header(name: str, size: int) -> bytes:
    """Return the one header that a member of this name and size can have."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def _member(name: str, content: bytes) -> bytes:
    return _header(name, len(content)) + content + bytes(-len(content) % BLOCK)


def is_bundle(path: Path) -> bool:
    """Tell whether a file begins as a bundle does."""
    with path.open("rb") as file:
        return file.read(len(INDEX) + 1) == INDEX.encode() + b"\0"


def import_bundle(registry: LocalRegistry, path: Path) -> list[tuple[Bundled, Taken]]:
    """Take all experts of a bundle into the registry; nothing is written before the whole file has been verified.

    Nor if the version of one is another expert's here. Raises CorruptArtifactError for anything that `write_bundle`
    would not have written, NotFoundError if there is no such file, T2Error as `present`.
    """
    try:
        for bundled, manifest, _, _ in read_bundle(path):
            present(registry, manifest, bundled.digest, f"{path}: {bundled.path}")
        return [
            (content.bundled, take_in(registry, content.raw, content.z, f"{path}: {content.bundled.path}"))
            for content in read_bundle(path)
        ]
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}", hint="give a file that t2 export wrote") from error
    except OSError as error:
        raise T2Error(f"{path} could not be read: {error.strerror or error}", hint="check its permissions") from error


def read_bundle(path: Path) -> Iterator[Content]:
    """Yield the experts of a bundle, each verified, one in memory at a time; raises as `import_bundle`."""
    with path.open("rb") as file:
        reader = _Reader(file, path)
        for bundled in _index(reader.member(INDEX, MAX_INDEX_BYTES), f"{path}: {INDEX}"):
            where = f"{path}: {bundled.path}"
            raw = reader.member(f"{bundled.path}/{MANIFEST_FILE}", MAX_MANIFEST_BYTES)
            if hashlib.sha256(raw).hexdigest() != bundled.digest:
                raise _corrupt(f"{where}/{MANIFEST_FILE} is not the file that {INDEX} names: its SHA-256 differs")
            manifest = check_manifest(raw, f"{where}/{MANIFEST_FILE}")
            if _place(manifest) != bundled.path:
                raise _corrupt(f"{where} holds the manifest of {_place(manifest)}")
            parameters = manifest.targets.parameters
            z = reader.member(
                f"{bundled.path}/{Z_FILE}", max_file_bytes(parameters), at_least=NUMBER_BYTES * parameters
            )
            check_numbers(manifest, z, f"{where}/{Z_FILE}", ASK_AGAIN)
            yield Content(bundled, manifest, raw, z)
        reader.end()


class _Reader:
    """Reads the members of a bundle in the order in which they must be there."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path
        self._left = file.seek(0, io.SEEK_END)
        file.seek(0)

    def member(self, name: str, limit: int, *, at_least: int = 0) -> bytes:
        """Return the content of the next member, which must have this name and a size between the limits."""
        header = self._read(BLOCK, name)
        size = _size_in(header)
        try:
            known = header == _header(name, size)
        except ValueError:  # a name that fits into no header, or no size
            known = False
        if not known:
            raise _corrupt(f"{self._path} has something else where {name[:200]} must be")
        if not at_least <= size <= limit:
            raise _corrupt(f"{self._path}: {name} has {size} bytes, which it cannot have")
        padding = -size % BLOCK
        content = self._read(size + padding, name)
        if any(content[size:]):
            raise _corrupt(f"{self._path} has something after {name}")
        return content[:size]

    def end(self) -> None:
        """Raise CorruptArtifactError unless the bundle ends here."""
        if self._left != len(END) or self._read(len(END), "its end") != END:
            raise _corrupt(f"{self._path} has something after its last expert, or was cut short")

    def _read(self, count: int, what: str) -> bytes:
        """Return `count` bytes, which are known to be there before memory is taken for them."""
        if count > self._left:
            raise _corrupt(f"{self._path} was cut short: {what} is missing or incomplete")
        self._left -= count
        return self._file.read(count)


def _size_in(header: bytes) -> int:
    """Return the size that a header states in octal digits, -1 if it states none."""
    digits = header[124:135]
    return int(digits, 8) if digits and all(digit in b"01234567" for digit in digits) else -1


def _index(raw: bytes, where: str) -> list[Bundled]:
    """Return what bundle.json lists, in strictly ascending order of the paths."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _corrupt(f"{where} is not valid JSON") from error
    top = Fields(document, where, known=("schema", "experts"))
    if top.get("schema") != SCHEMA:
        raise CorruptArtifactError(f"{where}: this t2 reads bundles of {SCHEMA}", hint="update t2")
    items = top.items("experts")
    if not 1 <= len(items) <= MAX_EXPERTS:
        raise _corrupt(f"{where} must name 1 to {MAX_EXPERTS} experts, not {len(items)}")
    experts = [_bundled(item, where, number) for number, item in enumerate(items)]
    if any(first.path >= second.path for first, second in itertools.pairwise(experts)):
        raise _corrupt(f"{where} must name every expert once, in the order of their paths")
    return experts


def _bundled(item: object, where: str, number: int) -> Bundled:
    fields = Fields(item, where, f"experts[{number}]", known=("path", "digest", "asked"))
    asked = fields.get("asked")
    if not isinstance(asked, bool):
        raise fields.fail("asked", "true or false")
    return Bundled(fields.text("path"), fields.text("digest", SHA256_PATTERN), asked)


def _corrupt(message: str) -> CorruptArtifactError:
    return CorruptArtifactError(message, hint=ASK_AGAIN)
