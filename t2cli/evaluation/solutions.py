"""Right answers as a model would write them, where a task knows any."""

from __future__ import annotations

from t2cli.tasks.base import Example, SpecTask, Task


def written(task: Task, example: Example) -> str | None:
    """Return a right answer to the example as the model would write it; None where only its unit tests are known.

    Raises CorruptArtifactError where those cannot be read.
    """
    if not _has_tests(task, example):
        return example.answer
    from t2cli.tasks.unit_tests import Suite

    reference = Suite.parse(example.answer).reference
    return fenced(reference) if reference.strip() else None


def fenced(code: str) -> str:
    """Return code as models write it in a chat."""
    return f"```python\n{code.strip()}\n```"


def _has_tests(task: Task, example: Example) -> bool:
    """Tell whether the example's answer is not what to say, but the unit tests of it."""
    if not isinstance(task, SpecTask) or not task.runs_code:
        return False
    return task.spec.row(example.id.rpartition("-")[0]).answer.kind == "tests"
