"""Data sets on the Hub, with the real client and a real server: found, verified, kept, and used without network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import Fault, Hub, Repo
from hub_sums import TASK, lines

from t2cli.errors import CorruptArtifactError, NetworkError, NotFoundError, T2Error, UsageError
from t2cli.paths import hub_data
from t2cli.tasks import jsonl, parquet
from t2cli.tasks.base import SpecTask, load_task, origin, revisions
from t2cli.tasks.hub_data import files_of_split
from t2cli.tasks.sampling import SPLITS

SUMS = [{"question": f"What is {a} + {b}?", "answer": str(a + b)} for a in range(9) for b in range(9)]

pytestmark = pytest.mark.usefixtures("hub_of_tests")


@pytest.fixture
def repo(hub: Hub) -> Repo:
    """Return a data set of two files."""
    hub.repos["org/sums"] = repo = Repo()
    repo.add({"train.jsonl": lines(SUMS[:60]), "test.jsonl": lines(SUMS[60:]), "run.py": b"raise SystemExit"}, "data")
    return repo


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., SpecTask]:
    """Return a function that loads the task, some of its text changed."""

    def make(old: str = "", new: str = "", **pins: str) -> SpecTask:
        assert old in TASK
        (tmp_path / "own.yaml").write_text(TASK.replace(old, new) if old else TASK)
        loaded = load_task(str(tmp_path / "own.yaml"), revisions={"org/sums": pins["commit"]} if pins else None)
        assert isinstance(loaded, SpecTask)
        return loaded

    return make


def questions(task: SpecTask, split: str) -> set[str]:
    return {example.question for example in task.examples(split, 10_000, 0, fewer=True)}


def test_its_splits_are_fetched_once_and_named_with_commit_and_hash(
    task: Callable[..., SpecTask], repo: Repo, hub: Hub
) -> None:
    own = task()
    assert questions(own, "test") == {record["question"] for record in SUMS[60:]}
    assert hub.downloaded == {"train.jsonl", "test.jsonl"}
    assert revisions(own) == {"org/sums": repo.head}
    (train, _) = origin(own)["data"]  # type: ignore[misc]
    assert {key: train[key] for key in ("dataset", "revision", "split", "file")} == {
        "dataset": "org/sums",
        "revision": repo.head,
        "split": "train",
        "file": "train.jsonl",
    }
    hub.asked.clear()
    questions(task(), "train")
    assert hub.downloaded == set()


def test_without_network_it_is_as_it_was_last_seen(
    task: Callable[..., SpecTask], repo: Repo, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="org/sums") as error:
        questions(task(), "test")
    assert "--data" in error.value.hint
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    first = questions(task(), "test")
    repo.add({"test.jsonl": lines(SUMS[70:])}, "newer")
    hub.broken = True
    assert questions(task(), "test") == first
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert questions(task(), "test") == first


def test_a_pinned_commit_stays_when_the_data_set_moves_on(task: Callable[..., SpecTask], repo: Repo, hub: Hub) -> None:
    commit = repo.head
    repo.add({"test.jsonl": lines(SUMS[70:])}, "newer")
    assert len(questions(task(commit=commit), "test")) == 21
    assert len(questions(task("test: test", f"test: test, revision: {commit}"), "test")) == 21
    assert len(questions(task(), "test")) == 11
    hub.asked.clear()
    questions(task(commit=commit), "test")
    assert hub.asked == []  # a commit that is here need not be asked for


def test_a_file_in_the_cache_that_is_damaged_is_fetched_again_or_refused(
    task: Callable[..., SpecTask], repo: Repo
) -> None:
    questions(task(), "test")
    kept = hub_data("org/sums") / repo.head
    (kept / "test.jsonl").write_bytes(b"{")
    (kept / ".t2-files.json").write_text("[")
    assert len(questions(task(commit=repo.head), "test")) == 21


def test_a_cut_connection_goes_on_and_a_changed_file_is_refused(
    task: Callable[..., SpecTask], repo: Repo, hub: Hub
) -> None:
    hub.faults.append(Fault("GET", "test.jsonl", content=lines(SUMS[:3])))
    with pytest.raises(CorruptArtifactError, match=r"org/sums/test\.jsonl is not the file"):
        questions(task(), "test")
    hub.faults.append(Fault("GET", "test.jsonl", cut=100))
    assert len(questions(task(), "test")) == 21


def test_a_file_that_is_too_large_is_not_fetched(
    task: Callable[..., SpecTask], repo: Repo, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t2cli.tasks.hub_data.MAX_FILE_BYTES", 100)
    with pytest.raises(CorruptArtifactError, match="more than the 100 it can have") as error:
        questions(task(), "test")
    assert "--data" in error.value.hint
    assert hub.downloaded == set()


@pytest.mark.parametrize(
    ("old", "new", "kind", "said"),
    [
        ("org/sums", "org/none", NotFoundError, "no repository org/none"),
        ("org/sums", "sums and more", UsageError, "cannot be a repository"),
        ("org/sums", "../../sums", UsageError, "cannot be a repository"),
        ("test: test", "test: test, revision: v9", NotFoundError, "org/sums@v9"),
        ("test: test", "test: dev", NotFoundError, "no file of the split 'dev'"),
        ("test: test", "test: test, config: big", NotFoundError, ""),
    ],
)
def test_what_does_not_exist_is_told(
    old: str, new: str, kind: type[T2Error], said: str, task: Callable[..., SpecTask], repo: Repo
) -> None:
    if not said:  # files beside a config's folder serve where it has none
        assert questions(task(old, new), "test")
        return
    with pytest.raises(kind, match=said) as error:
        questions(task(old, new), "test")
    assert error.value.hint


LISTED = [
    "README.md",
    "main/train-00000-of-00002.parquet",
    "main/train-00001-of-00002.parquet",
    "main/test-00000-of-00001.parquet",
    "socratic/test-00000-of-00001.parquet",
    "data/dev-00000-of-00001-0123456789abcdef.parquet",
    "extra/test/0000.parquet",
    "test_more.jsonl",
    "../main/test.jsonl",
]


@pytest.mark.parametrize(
    ("config", "split", "found"),
    [
        ("main", "train", LISTED[1:3]),
        ("main", "test", LISTED[3:4]),
        ("socratic", "test", LISTED[4:5]),
        ("", "dev", LISTED[5:6]),
        ("extra", "test", LISTED[6:7]),
        ("", "test", []),
        ("", "test_more.jsonl", ["test_more.jsonl"]),
        ("..", "main/test", LISTED[3:4]),  # and not ../main/test.jsonl
        ("m.in", "test", []),
    ],
)
def test_the_files_of_a_split_are_found_by_their_names(config: str, split: str, found: list[str]) -> None:
    assert files_of_split(LISTED, config, split) == found


def test_one_split_alone_is_divided_by_the_hash(task: Callable[..., SpecTask], repo: Repo) -> None:
    own = task("train: train, test: test", "file: train")
    found = {split: questions(own, split) for split in SPLITS}
    assert all(found.values())
    assert sum(map(len, found.values())) == 60


def test_parquet_files_without_pyarrow_name_the_extra(
    task: Callable[..., SpecTask], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    hub.repos["org/sums"] = repo = Repo()
    repo.add({"data/train-00000-of-00001.parquet": b"PAR1", "test.jsonl": lines(SUMS)}, "data")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(T2Error, match="pyarrow, which reads those, is not installed") as error:
        questions(task(), "test")
    assert "t2cli[data]" in error.value.hint


class TestWithPyarrow:
    @pytest.fixture(autouse=True)
    def package(self) -> None:
        pytest.importorskip("pyarrow", reason="the extra [data] is not installed")

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        import pyarrow
        from pyarrow.parquet import write_table

        records = [{**record, "choices": {"text": ["x", "y"], "label": ["1", "2"]}} for record in SUMS]
        write_table(pyarrow.Table.from_pylist(records), tmp_path / "t.parquet")
        return tmp_path / "t.parquet"

    def test_rows_are_records_with_lists_and_structs(self, path: Path, hub: Hub, task: Callable[..., SpecTask]) -> None:
        hub.repos["org/sums"] = repo = Repo()
        repo.add({"main/train-00000-of-00001.parquet": path.read_bytes(), "main/test.jsonl": lines(SUMS[:9])}, "data")
        own = task("test: test", "test: test, config: main")
        train = own.examples("train", 10_000, 0, fewer=True)
        assert {each.question for each in train} <= {record["question"] for record in SUMS[9:]}
        assert train[0].fields["choices"] == {"text": ["x", "y"], "label": ["1", "2"]}

    @pytest.mark.parametrize("cut", [0, 4, 100, -1])
    def test_a_damaged_file_is_refused(self, cut: int, path: Path) -> None:
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(CorruptArtifactError, match="no parquet file that can be read"):
            list(parquet.read_parquet(path))

    def test_too_many_rows_are_refused(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(parquet, "MAX_RECORDS", 10)
        with pytest.raises(CorruptArtifactError, match="81 rows"):
            list(parquet.read_parquet(path))
        assert jsonl.MAX_RECORDS > 10
