"""t2 tasks: what there is to learn, from task files and manifests alone; nothing is fetched and no model loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from t2cli.cli.completion import task_names
from t2cli.cli.options import DEFAULT_BASE, Base, Data, Json, Quiet, RegistryPath
from t2cli.cli.output import Output, one_line, table
from t2cli.errors import T2Error, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from t2cli.registry.manifest import EvaluationRecord, ExpertManifest
    from t2cli.tasks.base import Example, SpecTask
    from t2cli.tasks.spec import TaskSpec

HEADER = ("NAME", "CATEGORY", "SOURCE", "BASE", "EXAMPLE")
LONGEST_EXAMPLE = 60


def tasks(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[TASK]", help="Show this one in full: a built-in task or a YAML file.", autocompletion=task_names
        ),
    ] = "",
    data: Data = None,
    base: Base = DEFAULT_BASE,
    registry: RegistryPath = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the built-in tasks, or show one in full.

    BASE is the accuracy of --base alone, where an expert in the registry was evaluated on the task.
    EXAMPLE is one of the kind where none is at hand: nothing is fetched or made for the list.
    """
    out = Output(json=json, quiet=quiet)
    if data and not name:
        raise UsageError("--data goes with one task", hint="t2 tasks TASK --data FILE")
    manifests = _manifests(base, registry)
    if name:
        _show(out, name, data or [], base, manifests)
        return
    from t2cli.tasks.base import load_spec
    from t2cli.tasks.base import task_names as built_in

    specs = [load_spec(each) for each in built_in()]
    records = [_record(spec, manifests, _known_question(spec, manifests)) for spec in specs]
    out.emit("tasks", {"base": base, "tasks": records})
    if not json:
        out.data(table(HEADER, [_row(record) for record in records], shrink=(1, 2, 4)))


def _manifests(base: str, registry: Path | None) -> list[ExpertManifest]:
    """Return the manifests of the experts that are made for `base`."""
    from t2cli.models.catalog import known_digest
    from t2cli.paths import registry_search_path
    from t2cli.registry.listing import remembered
    from t2cli.registry.local import LocalRegistry
    from t2cli.registry.resolve import is_base

    digest = known_digest(base)
    return [
        entry.manifest
        for entry in remembered(LocalRegistry(registry_search_path(registry)))
        if (entry.manifest.base.fingerprint.weights == digest if digest else is_base(entry.slot, base))
    ]


def _evaluation(task: str, manifests: list[ExpertManifest]) -> EvaluationRecord | None:
    """Return the evaluation of a task with the most questions, the test split's first; none by one's own reward."""
    found = [
        row
        for manifest in manifests
        if manifest.training is None or not manifest.training.config.get("reward")
        for row in manifest.evaluation
        if row.task == task
    ]
    return max(found, key=lambda row: (row.split == "test", row.n), default=None)


def _known_question(spec: TaskSpec, manifests: list[ExpertManifest]) -> str | None:
    """Return a question of a task: one that an expert was trained on, one that is at hand, or one of the kind."""
    from t2cli.tasks.glimpse import first_example, offline

    for manifest in manifests:
        if manifest.training is not None and manifest.training.task == spec.name and manifest.examples:
            return manifest.examples[0]
    if spec.source == "reasoning-gym":  # importing it takes seconds: too long for a list
        return spec.example or None
    try:
        example = first_example(offline(spec))
    except T2Error:  # not fetched, not installed
        example = None
    return example.question if example else spec.example or None


def _record(spec: TaskSpec, manifests: list[ExpertManifest], question: str | None) -> dict[str, object]:
    from t2cli.tasks.glimpse import source_text

    measured = _evaluation(spec.name, manifests)
    return {
        "name": spec.name,
        "category": spec.category,
        "description": spec.description,
        "source": source_text(spec),
        "example": question,
        "base_accuracy": None if measured is None else measured.base_accuracy,
        "base_n": None if measured is None else measured.n,
    }


def _row(record: dict[str, object]) -> list[str]:
    accuracy, example = record["base_accuracy"], one_line(str(record["example"] or "-"))
    short = example if len(example) <= LONGEST_EXAMPLE else example[: LONGEST_EXAMPLE - 1] + "…"
    known = "-" if accuracy is None else f"{accuracy:.3f}"
    return [str(record["name"]), str(record["category"]), str(record["source"]), known, short]


def _show(out: Output, name: str, data: list[str], base: str, manifests: list[ExpertManifest]) -> None:
    """Show one task: what it asks, how it judges, and a question as the model sees it."""
    from t2cli.tasks.base import load_spec
    from t2cli.tasks.data_files import parse_data, with_data
    from t2cli.tasks.glimpse import first_example, offline, split_sizes

    spec = load_spec(name)
    files = parse_data(data, spec.name)
    spec = with_data(spec, files) if files else spec
    task, example, sizes = offline(spec), None, dict[str, int]()
    try:
        example = first_example(task)
        sizes = split_sizes(task)
    except T2Error as error:
        if files or spec.source == "jsonl":  # on this machine, and not only not fetched or not installed
            raise
        out.warn(f"no example: {error}" + (f" ({error.hint})" if error.hint else ""))
    record = {
        **_record(spec, manifests, example.question if example else None),
        "mixture": [{"name": row.name, "weight": row.weight, "judged_by": row.answer.kind} for row in spec.mixture],
        "splits": sizes,
        "max_new_tokens": spec.max_new_tokens,
        "messages": task.messages(example) if example else [],
        "answer": example.answer if example else None,
    }
    out.emit("tasks", {"base": base, "tasks": [record]})
    for label, text in _lines(spec, task, record, example):
        first, *more = text.strip().splitlines() or [""]
        out.data(f"{label:<12}  {one_line(first, None)}".rstrip())
        for line in more:
            out.data(f"{'':<12}  {one_line(line, None)}".rstrip())


def _lines(
    spec: TaskSpec, task: SpecTask, record: dict[str, object], example: Example | None
) -> Iterator[tuple[str, str]]:
    yield "name", spec.name
    yield "category", spec.category
    yield "about", spec.description
    yield "source", str(record["source"])
    if len(spec.mixture) > 1:
        total = sum(row.weight for row in spec.mixture)
        for row in spec.mixture:
            yield "", f"{100 * row.weight / total:.0f} % {row.name}, judged by {row.answer.kind}"
    sizes = record["splits"]
    if isinstance(sizes, dict) and sizes:
        yield "questions", ", ".join(f"{size} {split}" for split, size in sizes.items())
    kinds = dict.fromkeys(row.answer.kind for row in spec.mixture)
    longest = f"{spec.max_new_tokens} token" + ("" if spec.max_new_tokens == 1 else "s")
    yield "reward", f"by {', '.join(kinds)}, an answer of at most {longest}"
    if record["base_accuracy"] is not None:
        yield "base", f"{record['base_accuracy']:.3f} of {record['base_n']} held-out questions"
    if example is not None:
        for message in task.messages(example):
            yield message["role"], message["content"]
        yield "right answer", example.answer
