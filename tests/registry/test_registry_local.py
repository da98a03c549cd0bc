"""Publishing, finding, listing and removing experts in one process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.numpy

from t2cli import paths
from t2cli.errors import CorruptArtifactError, IncompatibleBaseError, NotFoundError, T2Error, UsageError
from t2cli.registry.local import LocalRegistry
from t2cli.registry.manifest import BaseRecord, ExpertManifest, TargetsRecord
from t2cli.registry.reference import ExpertRef

Make = Callable[..., ExpertManifest]


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return the time and the bytes of everything under `folder`."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


def test_put_publishes_what_was_given(registry: LocalRegistry, manifest: ExpertManifest, z: bytes) -> None:
    entry = registry.put(replace(manifest, version=99), z)
    assert entry.path == registry.search_path[0] / "tiny-3fa91c02be11" / "math" / "1"
    assert sorted(path.name for path in entry.path.iterdir()) == ["README.md", "expert.yaml", "z.safetensors"]
    assert entry.reference == "math@1"
    assert entry.digest == hashlib.sha256((entry.path / "expert.yaml").read_bytes()).hexdigest()
    recorded = replace(manifest.z, sha256=hashlib.sha256(z).hexdigest())
    assert entry.manifest == replace(manifest, version=1, z=recorded)
    assert entry.z_bytes() == z
    assert safetensors.numpy.load_file(entry.path / "z.safetensors").keys() == safetensors.numpy.load(z).keys()
    assert registry.list() == [entry]
    assert registry.verify(entry) == []


def test_versions_count_up_and_are_never_changed(registry: LocalRegistry, make: Make, z: bytes) -> None:
    first = registry.put(make(), z)
    before = snapshot(first.path)
    assert [registry.put(make(), z).reference for _ in range(10)][-1] == "math@11"
    assert snapshot(first.path) == before
    assert [entry.manifest.version for entry in registry.list()] == list(range(1, 12))
    assert registry.find("math").reference == "math@11"
    assert registry.find("math@1") == first


def test_a_removed_version_is_gone_and_its_number_not_used_again(registry: LocalRegistry, make: Make, z: bytes) -> None:
    for _ in range(3):
        registry.put(make(), z)
    assert registry.remove("math@3") == ExpertRef("math", version=3)
    assert registry.find("math").reference == "math@2"
    assert registry.put(make(), z).reference == "math@4"
    with pytest.raises(NotFoundError):
        registry.find("math@3")
    with pytest.raises(NotFoundError):
        registry.remove("math@3")
    with pytest.raises(UsageError, match=r"math@4.*math@2.*math@1"):
        registry.remove("math")
    digest = registry.find("math@2").digest
    assert registry.remove(f"math@sha256:{digest[:12]}") == ExpertRef("math", version=2)
    assert [entry.reference for entry in registry.list()] == ["math@1", "math@4"]
    assert registry.problems == []


@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_registry_lists_as_empty(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "registry"
    if exists:
        folder.mkdir()
    registry = LocalRegistry([folder])
    assert (registry.list(), registry.problems) == ([], [])
    with pytest.raises(NotFoundError) as caught:
        registry.find("math")
    assert caught.value.exit_code == 3
    assert folder.exists() == exists


def test_an_unknown_name_lists_near_matches(registry: LocalRegistry, make: Make, z: bytes) -> None:
    registry.put(make("math"), z)
    registry.put(make("code"), z)
    with pytest.raises(NotFoundError) as caught:
        registry.find("mathh")
    assert "did you mean math" in caught.value.hint
    with pytest.raises(NotFoundError) as caught:
        registry.find("math@7")
    assert "math@1" in caught.value.hint


def test_find_by_digest(registry: LocalRegistry, make: Make, z: bytes) -> None:
    entries = [registry.put(make(description=text), z) for text in "abc"]
    for entry in entries:
        assert registry.find(f"math@sha256:{entry.digest}") == entry
        assert registry.find(ExpertRef("math", digest=entry.digest[:12])) == entry
    with pytest.raises(NotFoundError):
        registry.find(f"math@sha256:{'0' * 64}")


def test_an_expert_of_another_base_is_incompatible(
    registry: LocalRegistry, make: Make, other_base: BaseRecord, z: bytes
) -> None:
    ours = registry.put(make(), z)
    theirs = registry.put(make(base=other_base), z)
    assert (ours.reference, theirs.reference) == ("math@1", "math@1")
    digests = [entry.manifest.base.fingerprint.weights for entry in (ours, theirs)]
    for entry, digest in zip((ours, theirs), digests, strict=True):
        assert registry.find("math", base_digest=digest) == entry
        assert registry.list(base_digest=digest) == [entry]
    with pytest.raises(UsageError, match="could be any of"):
        registry.remove("math@1")
    registry.remove("math@1", base_digest=digests[1])
    registry.put(make("code"), z)
    registry.put(make("code", base=other_base), z)
    with pytest.raises(IncompatibleBaseError) as caught:
        registry.find("math", base_digest=digests[1])
    assert caught.value.exit_code == 4
    assert ours.manifest.base.folder in caught.value.message
    assert theirs.manifest.base.folder in caught.value.message
    assert "t2 list" in caught.value.hint
    with pytest.raises(NotFoundError):
        registry.find("poems", base_digest=digests[1])


def test_a_base_that_shares_only_the_first_digits_is_another_base(
    registry: LocalRegistry, manifest: ExpertManifest, z: bytes
) -> None:
    registry.put(manifest, z)
    similar = manifest.base.fingerprint.weights[:12] + "f" * 52
    assert registry.list(base_digest=similar) == []
    with pytest.raises(IncompatibleBaseError):
        registry.find("math", base_digest=similar)


def test_the_search_path_is_one_sequence_of_versions(tmp_path: Path, make: Make, z: bytes) -> None:
    shipped, local = tmp_path / "shipped", tmp_path / "local"
    LocalRegistry([shipped]).put(make(), z)
    newest_shipped = LocalRegistry([shipped]).put(make(), z)
    before = snapshot(shipped)
    registry = LocalRegistry([local, shipped, local])
    assert registry.find("math") == newest_shipped
    mine = registry.put(make(), z)
    assert (mine.reference, mine.registry) == ("math@3", local)
    assert registry.find("math") == mine
    assert [entry.reference for entry in registry.list()] == ["math@3", "math@1", "math@2"]
    with pytest.raises(UsageError, match="not written to"):
        registry.remove("math@2")
    assert all(registry.verify(entry) == [] for entry in registry.list())
    assert snapshot(shipped) == before


def test_the_first_folder_wins_between_equal_versions(tmp_path: Path, make: Make, z: bytes) -> None:
    for name in ("a", "b"):
        LocalRegistry([tmp_path / name]).put(make(description=name), z)
    for order in ("ab", "ba"):
        registry = LocalRegistry([tmp_path / name for name in order])
        assert registry.find("math@1").manifest.description == order[0]
        assert registry.find("math").manifest.description == order[0]


def test_the_environment_gives_the_search_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make, z: bytes
) -> None:
    monkeypatch.setenv("T2_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("T2_REGISTRY", raising=False)
    before = snapshot(paths.shipped_registry())
    entry = LocalRegistry().put(make("a-name-that-nothing-ships-with"), z)
    assert (entry.source, entry.registry) == ("local", tmp_path / "home" / "registry")
    assert {shown.source for shown in LocalRegistry().list()} <= {"local", "shipped"}
    assert snapshot(paths.shipped_registry()) == before
    monkeypatch.setenv("T2_REGISTRY", str(tmp_path / "mine"))
    assert LocalRegistry().list() == []
    assert LocalRegistry().put(make(), z).source == str(tmp_path / "mine")


def test_experts_on_the_hub_cannot_be_removed(registry: LocalRegistry) -> None:
    with pytest.raises(UsageError, match="on the Hub") as caught:
        registry.remove("hf://org/repo/math@2")
    assert caught.value.hint


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "..", ".hidden", "a/b", "Math", "", "a\x00b", "a\n"])
def test_names_cannot_leave_the_registry(
    tmp_path: Path, registry: LocalRegistry, make: Make, z: bytes, name: str
) -> None:
    with pytest.raises(UsageError):
        registry.put(make(name), z)
    base = replace(make().base, name=name or "../x")
    if name != "Math":  # a base may have capitals
        with pytest.raises(UsageError):
            registry.put(make(base=base), z)
    assert list(tmp_path.iterdir()) == []
    for action in (registry.find, registry.remove):
        with pytest.raises((UsageError, NotFoundError)):
            action(name)


def test_put_refuses_what_could_not_be_read(
    tmp_path: Path, registry: LocalRegistry, make: Make, make_z: Callable[..., bytes], z: bytes
) -> None:
    weights = replace(make().base, fingerprint=replace(make().base.fingerprint, weights="../../../x"))
    bad = [
        (make(), z[:-1]),
        (make(), b""),
        (make(), make_z(value=float("nan"))),
        (make(), make_z({"w": 3})),
        (make(targets=TargetsRecord("all", 3, 10)), z),
        (make(targets=TargetsRecord("all", 2, 11)), z),
        (make(kind="nonsense"), z),
        (make(description="two\nlines"), z),
        (make(description="x" * (1 << 20)), z),
        (make(evaluation=(replace(make().evaluation[0], expert_accuracy=float("nan")),)), z),
        (make(base=weights), z),
    ]
    for manifest, blob in bad:
        with pytest.raises(CorruptArtifactError):
            registry.put(manifest, blob)
        assert registry.list() == []
    assert not (tmp_path / "x").exists()
    with pytest.raises(UsageError, match="no registry to write to"):
        LocalRegistry([]).put(make(), z)


def test_a_registry_that_is_a_file_cannot_be_written_to(tmp_path: Path, make: Make, z: bytes) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    registry = LocalRegistry([file])
    assert registry.list() == []
    with pytest.raises(T2Error) as caught:
        registry.put(make(), z)
    assert caught.value.hint
    assert file.read_text() == "x"
