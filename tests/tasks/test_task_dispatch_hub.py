"""A task of categories over data sets on the Hub: fetched when asked for, pinned to what was recorded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hub_server import Hub, Repo
from hub_sums import TASK, lines

from t2cli.errors import NotFoundError
from t2cli.tasks.base import SpecTask, load_spec, load_task, origin, revisions
from t2cli.tasks.glimpse import first_example, offline
from t2cli.tasks.sampling import SPLITS

pytestmark = pytest.mark.usefixtures("hub_of_tests")

CHOOSER = """
name: chooser
category: chooser
description: which is which
max_new_tokens: 1
answer: {kind: exact}
source: {kind: dispatch, tasks: [./own.yaml], other: {file: general.json}}
"""


@pytest.fixture
def repo(hub: Hub) -> Repo:
    """Return a data set of sums."""
    sums: list[dict[str, object]] = [
        {"question": f"What is {a} + {b}?", "answer": str(a + b)} for a in range(9) for b in range(a, 9)
    ]
    hub.repos["org/sums"] = repo = Repo()
    repo.add({"train.jsonl": lines(sums[:30]), "test.jsonl": lines(sums[30:])}, "data")
    return repo


@pytest.fixture
def chooser(tmp_path: Path) -> str:
    """Return the path of a task of categories over that data set."""
    (tmp_path / "own.yaml").write_text(TASK)
    (tmp_path / "general.json").write_text(json.dumps([f"something else, number {i}" for i in range(300)]))
    (tmp_path / "chooser.yaml").write_text(CHOOSER)
    return str(tmp_path / "chooser.yaml")


def test_its_tasks_read_the_commit_that_was_recorded(chooser: str, repo: Repo) -> None:
    first = load_task(chooser)
    asked, recorded = first.examples("test", 12, 0), revisions(first)
    assert recorded == {"org/sums": repo.head}
    repo.add({"test.jsonl": lines([{"question": "What is newer?", "answer": "1"}])}, "newer")
    resumed = load_task(chooser, revisions=recorded)
    assert resumed.examples("test", 12, 0) == asked
    assert revisions(resumed) == recorded


def test_a_look_at_it_fetches_nothing(chooser: str, repo: Repo, hub: Hub) -> None:
    with pytest.raises(NotFoundError, match="org/sums has not been fetched yet"):
        offline(load_spec(chooser)).examples("train", 12, 0)
    assert hub.asked == []
    fetched = load_task(chooser)
    assert isinstance(fetched, SpecTask)
    example = first_example(fetched)
    hub.asked.clear()
    assert first_example(offline(load_spec(chooser))) == example
    assert hub.asked == []


def test_without_the_general_questions_those_of_its_tasks_can_be_looked_at(hub: Hub) -> None:
    assert first_example(offline(load_spec("dispatch"))) is not None
    assert hub.asked == []


def test_the_general_questions_of_dispatch_are_those_of_a_data_set(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.repos["clinc/clinc_oos"] = Repo()
    for split in ("train", "validation", "test"):
        records = [{"text": f"{split} question {n}", "intent": n % 150} for n in range(300)]
        repo.add({f"small/{split}-00000-of-00001.jsonl": lines(records)}, split)  # type: ignore[arg-type]
    task = load_task("dispatch")
    assert hub.downloaded == set()
    for split in SPLITS:
        others = [each for each in task.examples(split, 80, 0) if each.answer == "other"]
        assert len(others) == 20
        read = [each for each in others if re.search("question [0-9]", each.question)]  # the rest are phrases
        assert 5 < len(read) < 20
        assert all(f"{split} question" in example.question.lower() for example in read)
        assert not any("question 138" in example.question or "question 288" in example.question for example in others)
    assert revisions(task) == {"clinc/clinc_oos": repo.head}
    assert {file["row"] for file in origin(task)["data"]} == {"other"}  # type: ignore[attr-defined]
    pinned = load_task("dispatch", revisions={"clinc/clinc_oos": repo.head})
    repo.add({"small/test-00000-of-00001.jsonl": lines([{"text": "newer", "intent": "x"}])}, "newer")
    assert pinned.examples("test", 40, 0) == task.examples("test", 40, 0)
