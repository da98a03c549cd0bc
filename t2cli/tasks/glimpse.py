"""One question of a task, found without network: what `t2 tasks` shows."""

from __future__ import annotations

from t2cli.errors import T2Error
from t2cli.tasks.base import Example, SpecTask, example_of
from t2cli.tasks.records import RecordSource
from t2cli.tasks.sampling import SPLITS
from t2cli.tasks.spec import SOURCE_OF_CATEGORIES, TaskSpec

MOST = 6  # data sets that are named in a line


def offline(spec: TaskSpec) -> SpecTask:
    """Return the task with a source that never asks the Hub: what is not here is not found."""
    if spec.source == SOURCE_OF_CATEGORIES:
        from t2cli.tasks.dispatch_source import DispatchSource

        return SpecTask(spec, source=DispatchSource(spec, offline=True))
    if spec.source != "hub":
        return SpecTask(spec)
    from t2cli.tasks.hub_data import cached

    return SpecTask(spec, source=RecordSource(spec, cached))


def first_example(task: SpecTask) -> Example | None:
    """Return a training question, or the first of the files; None where the task has none.

    Raises T2Error if the source is not installed or not here, or its first record is wrong.
    """
    if not isinstance(task.source, RecordSource):
        return task.examples("train", 1, 0)[0]
    found = task.source.first()
    return None if found is None else example_of(found[0], found[1].question, found[1].answer, found[1].fields)


def split_sizes(task: SpecTask) -> dict[str, int]:
    """Return how many questions each split has; {} where they are made without end. Raises T2Error as `examples`."""
    if not isinstance(task.source, RecordSource):
        return {}
    task.origin()  # reads the files: a T2Error here is about them and not about a split that is empty
    return {split: _size(task, split) for split in SPLITS}


def _size(task: SpecTask, split: str) -> int:
    try:
        return len(task.examples(split, 10**9, 0, fewer=True))
    except T2Error:  # none
        return 0


def source_text(spec: TaskSpec) -> str:
    """Return in a few words where a task's questions are from."""
    names = list(dict.fromkeys(row.dataset for row in spec.mixture))
    rows = ", ".join(names) if len(names) <= MOST else f"{', '.join(names[:3])} and {len(names) - 3} more"
    if spec.source == "hub":
        config = spec.mixture[0].config.get("config")
        return f"Hub: {rows}" + (f" ({config})" if config else "")
    if spec.source == "jsonl":
        return "file: " + ", ".join(dict.fromkeys(str(name) for row in spec.mixture for name in row.config.values()))
    return f"{spec.source}: {rows}"
