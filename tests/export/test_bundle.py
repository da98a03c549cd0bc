"""Bundles: what goes in comes out with the same digests, and a file made by somebody else harms nothing."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from bundles import contents, put

from t2cli.errors import CorruptArtifactError, T2Error, UsageError
from t2cli.export.bundle import import_bundle, is_bundle, write_bundle
from t2cli.registry.local import LocalRegistry


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
    (tmp_path / "unpacked").mkdir()
    subprocess.run(["tar", "-xf", str(bundle), "-C", str(tmp_path / "unpacked")], check=True)
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


def test_other_files_are_no_bundles(bundle: Path, tmp_path: Path) -> None:
    assert is_bundle(bundle)
    for content in (b"", b"bundle.json", b"PK\x03\x04"):
        (tmp_path / "other").write_bytes(content)
        assert not is_bundle(tmp_path / "other")


def test_an_error_while_reading_says_what_to_do(there: LocalRegistry, tmp_path: Path) -> None:
    for path, code in ((tmp_path / "no.t2", 3), (tmp_path, 1)):
        with pytest.raises(T2Error) as caught:
            import_bundle(there, path)
        assert caught.value.exit_code == code
        assert caught.value.hint
