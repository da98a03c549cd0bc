"""A bundle made by somebody else harms nothing: whatever is not exactly as t2 writes it is refused."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
import safetensors.numpy
from bundles import members, packed

from t2cli.errors import CorruptArtifactError
from t2cli.export.bundle import import_bundle
from t2cli.registry.local import LocalRegistry


def assert_refused(path: Path, there: LocalRegistry, said: str = "") -> None:
    """Check that a file is refused, and that nothing at all was written."""
    with pytest.raises(CorruptArtifactError) as caught:
        import_bundle(there, path)
    assert said in caught.value.message
    assert not list(there.search_path[0].rglob("*"))


def rewritten(path: Path, number: int, raw: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Return the members of a bundle with the content of one replaced."""
    content = members(path)
    content[number][0].size = len(raw)
    content[number] = (content[number][0], raw)
    return content


def test_packing_by_hand_is_what_the_other_tests_change(bundle: Path, there: LocalRegistry, tmp_path: Path) -> None:
    raw = packed(tmp_path / "same.t2", members(bundle)).read_bytes()
    size = bundle.stat().st_size
    assert raw[:size] == bundle.read_bytes()
    (tmp_path / "same.t2").write_bytes(raw[:size])  # tarfile fills up to its record size
    assert len(import_bundle(there, tmp_path / "same.t2")) == 4


def changed_members() -> Iterator[tuple[str, dict[str, object]]]:
    """Yield ways to make the first member of an expert another thing."""
    for kind in (b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"L", b"K", b"x", b"g"):
        yield f"type {kind!r}", {"type": kind}
    for name in ("/etc/passwd", "../../x", "x", "tiny-aaaaaaaaaaaa/both/1/../../../x", "./bundle.json", "a\\b", "C:/x"):
        yield f"name {name}", {"name": name}
    yield "setuid", {"mode": 0o4755}
    yield "time", {"mtime": 1}
    yield "owner", {"uid": 1000}
    yield "link name", {"linkname": "/etc/passwd"}


@pytest.mark.parametrize("changes", [c for _, c in changed_members()], ids=[i for i, _ in changed_members()])
@pytest.mark.parametrize("number", [1, 2])
def test_any_other_header_is_refused(
    number: int, changes: dict[str, object], bundle: Path, there: LocalRegistry, tmp_path: Path
) -> None:
    content = members(bundle)
    for field, value in changes.items():
        setattr(content[number][0], field, value)
    blocks = [
        member.tobuf(tarfile.USTAR_FORMAT) + raw + bytes(-len(raw) % tarfile.BLOCKSIZE) for member, raw in content
    ]
    (tmp_path / "bad.t2").write_bytes(b"".join(blocks) + bytes(1024))
    assert_refused(tmp_path / "bad.t2", there)


def test_extended_headers_are_refused(bundle: Path, there: LocalRegistry, tmp_path: Path) -> None:
    content = members(bundle)
    content[1][0].pax_headers = {"path": "elsewhere"}
    assert_refused(packed(tmp_path / "pax.t2", content, format=tarfile.PAX_FORMAT), there)


@pytest.mark.parametrize("digits", [b"77777777777\0", b"\x80" + b"\xff" * 11, b"-0000000001\0", b"            "])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_size_that_is_not_there_takes_no_memory(
    digits: bytes, place: int, bundle: Path, there: LocalRegistry, tmp_path: Path
) -> None:
    raw, content = bytearray(bundle.read_bytes()), members(bundle)
    offset = sum(512 + -(-len(data) // 512) * 512 for _, data in content[:place])
    raw[offset + 124 : offset + 136] = digits
    raw[offset + 148 : offset + 156] = b" " * 8
    raw[offset + 148 : offset + 155] = b"%06o\0" % sum(raw[offset : offset + 512])
    (tmp_path / "big.t2").write_bytes(raw)
    assert_refused(tmp_path / "big.t2", there)


@pytest.mark.parametrize("number", [1, 2])
def test_a_changed_byte_is_found(number: int, bundle: Path, there: LocalRegistry, tmp_path: Path) -> None:
    raw = bytearray(members(bundle)[number][1])
    raw[-2] ^= 1
    path = packed(tmp_path / "bad.t2", rewritten(bundle, number, bytes(raw)))
    assert_refused(path, there, "SHA-256 differs")


def test_an_expert_that_is_sound_but_for_its_numbers_is_refused(
    bundle: Path, there: LocalRegistry, tmp_path: Path
) -> None:
    """Whoever makes a file can make all its hashes fit: the numbers are checked all the same."""
    bad = safetensors.numpy.save({"w": numpy.array([1, 1, 1, 1, 1, numpy.nan], numpy.float32)})
    content = members(bundle)
    yaml = content[1][1].replace(
        hashlib.sha256(content[2][1]).hexdigest().encode(), hashlib.sha256(bad).hexdigest().encode()
    )
    index = content[0][1].replace(
        hashlib.sha256(content[1][1]).hexdigest().encode(), hashlib.sha256(yaml).hexdigest().encode()
    )
    for number, raw in enumerate((index, yaml, bad)):
        content[number][0].size = len(raw)
        content[number] = (content[number][0], raw)
    assert_refused(packed(tmp_path / "bad.t2", content), there, "NaN")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: index | {"more": 1}, "unknown key"),
        (lambda index: index | {"schema": "t2.bundle/2"}, "t2.bundle/1"),
        (lambda index: index | {"experts": []}, "1 to"),
        (lambda index: index | {"experts": index["experts"][::-1]}, "order"),
        (lambda index: index | {"experts": index["experts"][:1] * 2}, "order"),
        (lambda index: index | {"experts": index["experts"][:-1]}, "after its last expert"),
        (lambda index: index | {"experts": [index["experts"][0] | {"path": "../x"}]}, "something else"),
        (lambda index: index | {"experts": [index["experts"][0] | {"path": "ä" * 90}]}, "something else"),
        (lambda index: index | {"experts": [index["experts"][0] | {"path": "x" * 300}]}, "something else"),
        (lambda index: index | {"experts": [index["experts"][0] | {"digest": "z"}]}, "digest"),
        (lambda index: index | {"experts": [index["experts"][0] | {"asked": 1}]}, "asked"),
        (lambda index: index | {"experts": {}}, "list"),
        (lambda index: [], "mapping"),
    ],
)
def test_an_index_that_is_none_is_refused(
    change: Callable[[dict], object], said: str, bundle: Path, there: LocalRegistry, tmp_path: Path
) -> None:
    index = change(json.loads(members(bundle)[0][1]))
    path = packed(tmp_path / "bad.t2", rewritten(bundle, 0, json.dumps(index, indent=1).encode()))
    assert_refused(path, there, said)


def test_nothing_hides_between_the_members(bundle: Path, there: LocalRegistry, tmp_path: Path) -> None:
    raw, size = bytearray(bundle.read_bytes()), len(members(bundle)[0][1])
    assert size % 512
    raw[512 + size] = 1
    (tmp_path / "bad.t2").write_bytes(raw)
    assert_refused(tmp_path / "bad.t2", there, "after bundle.json")


def test_every_truncation_is_refused(bundle: Path, there: LocalRegistry, tmp_path: Path) -> None:
    raw = bundle.read_bytes()
    for length in (*range(0, len(raw), 256), len(raw) - 1):
        (tmp_path / "cut.t2").write_bytes(raw[:length])
        assert_refused(tmp_path / "cut.t2", there)
    (tmp_path / "cut.t2").write_bytes(raw + b"\0")
    assert_refused(tmp_path / "cut.t2", there, "after its last expert")
