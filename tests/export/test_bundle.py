"""Bundles: what goes in comes out with the same digests, and a file made by somebody else harms nothing."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t2cli.errors import CorruptArtifactError, T2Error, UsageError
from t2cli.export.bundle import import_bundle, is_bundle, read_bundle, write_bundle
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.manifest import (
    BaseRecord,
    ExpertManifest,
    FingerprintRecord,
    ParentRecord,
    TargetsRecord,
    ZRecord,
)

Make = Callable[..., ExpertEntry]

NUMBERS = safetensors.numpy.save({"w": numpy.full(6, 1.25, numpy.float32)})


def put(registry: LocalRegistry, name: str, **changes: object) -> ExpertEntry:
    manifest = ExpertManifest(
        name=name,
        version=1,
        kind="expert",
        category=name,
        description=f"questions of {name}",
        base=BaseRecord("tiny", "local", "", "LlamaForCausalLM", FingerprintRecord("a" * 64, {"w": [1.0]})),
        targets=TargetsRecord("all", 1, 6),
        z=ZRecord("z.safetensors", "0" * 64, "linear"),
        created="2026-11-23T10:00:00Z",
    )
    return registry.put(replace(manifest, **changes), NUMBERS)  # type: ignore[arg-type]


def parents(*entries: ExpertEntry) -> tuple[ParentRecord, ...]:
    return tuple(ParentRecord(entry.reference, entry.digest, 0.5) for entry in entries)


@pytest.fixture
def here(tmp_path: Path) -> LocalRegistry:
    """Return a registry with two experts, a mix of them, and a mix of that mix."""
    registry = LocalRegistry([tmp_path / "here"])
    math, code = put(registry, "math"), put(registry, "code")
    both = put(registry, "both", kind="mix", parents=parents(math, code))
    put(registry, "more", kind="mix", parents=parents(both, math))
    return registry


@pytest.fixture
def there(tmp_path: Path) -> LocalRegistry:
    return LocalRegistry([tmp_path / "there"])


@pytest.fixture
def bundle(here: LocalRegistry, tmp_path: Path) -> Path:
    write_bundle(here, [here.find("more")], tmp_path / "more.t2")
    return tmp_path / "more.t2"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def hex_digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def assert_refused(path: Path, there: LocalRegistry, said: str = "") -> None:
    """Check that a file is refused, and that nothing at all was written."""
    with pytest.raises(CorruptArtifactError) as caught:
        import_bundle(there, path)
    assert said in caught.value.message
    assert not list(there.search_path[0].rglob("*"))


def test_experts_travel_with_their_parents_and_keep_their_digests(
    bundle: Path, here: LocalRegistry, there: LocalRegistry
) -> None:
    done = import_bundle(there, bundle)
    assert {taken.entry.reference: (bundled.asked, taken.new) for bundled, taken in done} == {
        "math@1": (False, True),
        "code@1": (False, True),
        "both@1": (False, True),
        "more@1": (True, True),
    }
    assert {entry.digest for entry in there.list()} == {entry.digest for entry in here.list()}
    assert all(there.verify(entry) == [] for entry in there.list())
    ours, theirs = contents(here.search_path[0]), contents(there.search_path[0])
    assert {name: raw for name, raw in ours.items() if ".lock" not in name} == {
        name: raw for name, raw in theirs.items() if ".lock" not in name
    }


def test_it_is_a_plain_tar_of_registry_folders(bundle: Path, here: LocalRegistry, tmp_path: Path) -> None:
    with tarfile.open(bundle, "r:") as archive:
        assert all(member.isfile() for member in archive)
        archive.extractall(tmp_path / "unpacked", filter="data")
    unpacked = LocalRegistry([tmp_path / "unpacked"])
    assert {entry.digest for entry in unpacked.list()} == {entry.digest for entry in here.list()}
    assert unpacked.problems == []


def test_the_same_experts_give_the_same_bytes(here: LocalRegistry, there: LocalRegistry, tmp_path: Path) -> None:
    entries = [here.find(name) for name in ("math", "both")]
    first = write_bundle(here, entries, tmp_path / "a.t2")
    second = write_bundle(here, entries[::-1], tmp_path / "b.t2")
    assert (tmp_path / "a.t2").read_bytes() == (tmp_path / "b.t2").read_bytes()
    assert first.sha256 == second.sha256 == hashlib.sha256((tmp_path / "a.t2").read_bytes()).hexdigest()
    assert first.bytes == (tmp_path / "a.t2").stat().st_size
    assert [(expert.path.split("/")[1], expert.asked) for expert in first.experts] == [
        ("both", True),
        ("code", False),
        ("math", True),
    ]
    import_bundle(there, tmp_path / "a.t2")  # and so does a bundle of what came out of it
    write_bundle(there, [there.find(name) for name in ("math", "both")], tmp_path / "c.t2")
    assert (tmp_path / "c.t2").read_bytes() == (tmp_path / "a.t2").read_bytes()


def test_importing_again_changes_nothing(bundle: Path, there: LocalRegistry) -> None:
    import_bundle(there, bundle)
    before = contents(there.search_path[0])
    assert not any(taken.new for _, taken in import_bundle(there, bundle))
    assert contents(there.search_path[0]) == before


IMPORT = """if True:
    import sys
    from pathlib import Path
    from t2cli.export.bundle import import_bundle
    from t2cli.registry.local import LocalRegistry
    print("ready", flush=True)
    sys.stdin.readline()
    print(*(taken.new for _, taken in import_bundle(LocalRegistry([Path(sys.argv[1])]), Path(sys.argv[2]))))
"""


def importing(there: LocalRegistry, bundle: Path) -> subprocess.Popen[str]:
    """Start a process that imports a bundle once it is told to."""
    command = [sys.executable, "-c", IMPORT, str(there.search_path[0]), str(bundle)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def test_several_processes_import_it_once(bundle: Path, there: LocalRegistry) -> None:
    running = [importing(there, bundle) for _ in range(4)]
    for process in running:
        tell(process)
    said = [word for process in running for word in process.communicate(timeout=60)[0].split()]
    assert sorted(said) == ["False"] * 12 + ["True"] * 4
    assert len(there.list()) == 4


def test_an_import_that_is_killed_leaves_whole_experts_or_none(
    bundle: Path, here: LocalRegistry, there: LocalRegistry
) -> None:
    digests, generator = {entry.digest for entry in here.list()}, random.Random(0)
    for _ in range(10):
        process = importing(there, bundle)
        tell(process)
        time.sleep(generator.uniform(0, 0.05))
        process.kill()
        process.communicate(timeout=60)
        entries = there.list()
        assert there.problems == []
        assert {entry.digest for entry in entries} <= digests
        assert all(there.verify(entry) == [] for entry in entries)
        if len(entries) == len(digests):
            shutil.rmtree(there.search_path[0])
    import_bundle(there, bundle)
    assert {entry.digest for entry in there.list()} == digests


def test_where_a_version_is_another_expert_here_nothing_is_taken_in(bundle: Path, there: LocalRegistry) -> None:
    mine = put(there, "math", description="another one")
    before = contents(there.search_path[0])
    with pytest.raises(T2Error, match=r"math@1 here is another expert .* never changes") as caught:
        import_bundle(there, bundle)
    assert (caught.value.exit_code, "--registry" in caught.value.hint, "t2 copy" in caught.value.hint) == (
        1,
        True,
        True,
    )
    assert contents(there.search_path[0]) == before
    assert (there.list(), there.verify(mine)) == ([mine], [])


def test_a_version_that_was_removed_is_free_for_the_same_expert_only(bundle: Path, there: LocalRegistry) -> None:
    import_bundle(there, bundle)
    digest = there.find("math").digest
    there.remove("math@1")
    assert {taken.entry.reference for _, taken in import_bundle(there, bundle) if taken.new} == {"math@1"}
    assert there.find("math").digest == digest
    there.remove("math@1")
    (there.find("code").path / "z.safetensors").write_bytes(b"broken")
    there.remove("code@1")  # damaged in its numbers: its manifest still says what it was
    assert len([taken for _, taken in import_bundle(there, bundle) if taken.new]) == 2


def test_a_version_that_was_another_expert_stays_its_own(bundle: Path, there: LocalRegistry) -> None:
    put(there, "math", description="another one")
    there.remove("math@1")
    with pytest.raises(T2Error, match="math@1 here was another expert"):
        import_bundle(there, bundle)
    assert there.list() == []


def test_an_expert_elsewhere_on_the_search_path_is_there(bundle: Path, here: LocalRegistry, tmp_path: Path) -> None:
    registry = LocalRegistry([tmp_path / "own", here.search_path[0]])
    assert not any(taken.new for _, taken in import_bundle(registry, bundle))
    assert not list((tmp_path / "own").rglob("expert.yaml"))
    put(LocalRegistry([tmp_path / "own"]), "math", description="another one")
    assert not any(taken.new for _, taken in import_bundle(registry, bundle))  # one of several of that version


@pytest.mark.parametrize("name", ["z.safetensors", "expert.yaml"])
def test_a_damaged_copy_here_is_not_taken_for_it(name: str, bundle: Path, there: LocalRegistry) -> None:
    import_bundle(there, bundle)
    path = there.find("math").path / name
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(CorruptArtifactError) as caught:
        import_bundle(there, bundle)
    assert caught.value.hint
    there.remove("math@1")  # whatever was damaged: then it comes back
    assert {taken.entry.reference for _, taken in import_bundle(there, bundle) if taken.new} == {"math@1"}
    assert all(there.verify(entry) == [] for entry in there.list())


def test_a_parent_that_is_not_here_is_named(here: LocalRegistry, there: LocalRegistry, tmp_path: Path) -> None:
    here.remove("code@1")
    made = write_bundle(here, [here.find("more")], tmp_path / "less.t2")
    assert made.missing == ("code@1",)
    assert {taken.entry.manifest.name for _, taken in import_bundle(there, tmp_path / "less.t2")} == {
        *("math", "both", "more")
    }


def test_a_damaged_expert_is_not_written(here: LocalRegistry, tmp_path: Path) -> None:
    entry = here.find("math")
    (entry.path / "z.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(CorruptArtifactError):
        write_bundle(here, [entry], tmp_path / "math.t2")
    assert not [path for path in tmp_path.iterdir() if "math.t2" in path.name]


def test_an_existing_file_is_left_alone(here: LocalRegistry, tmp_path: Path) -> None:
    (tmp_path / "math.t2").write_text("mine")
    with pytest.raises(UsageError, match="there already"):
        write_bundle(here, [here.find("math")], tmp_path / "math.t2")
    assert (tmp_path / "math.t2").read_text() == "mine"


def members(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path, "r:") as archive:
        return [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]


def packed(path: Path, content: list[tuple[tarfile.TarInfo, bytes]], **how: int) -> Path:
    with tarfile.open(path, "w", **{"format": tarfile.USTAR_FORMAT, **how}) as archive:  # type: ignore[call-overload]
        for member, raw in content:
            archive.addfile(member, io.BytesIO(raw))
    return path


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


def test_other_files_are_no_bundles(bundle: Path, tmp_path: Path) -> None:
    assert is_bundle(bundle)
    for content in (b"", b"bundle.json", b"PK\x03\x04"):
        (tmp_path / "other").write_bytes(content)
        assert not is_bundle(tmp_path / "other")


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_edit_is_refused_or_gives_sound_experts(bundle: Path, tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(bundle.read_bytes())
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position : position + data.draw(st.integers(0, 600))] = data.draw(st.binary(max_size=16))
    (tmp_path / "edited.t2").write_bytes(raw)
    registry = LocalRegistry([tmp_path / "edited"])
    with contextlib.suppress(CorruptArtifactError):
        list(read_bundle(tmp_path / "edited.t2"))
        import_bundle(registry, tmp_path / "edited.t2")
    assert {path.name for path in tmp_path.iterdir()} <= {"here", "more.t2", "edited", "edited.t2", "home"}
    assert all(registry.verify(entry) == [] for entry in registry.list())
    assert registry.problems == []


def test_an_error_while_reading_says_what_to_do(there: LocalRegistry, tmp_path: Path) -> None:
    for path, code in ((tmp_path / "no.t2", 3), (tmp_path, 1)):
        with pytest.raises(T2Error) as caught:
            import_bundle(there, path)
        assert caught.value.exit_code == code
        assert caught.value.hint
