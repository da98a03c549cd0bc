"""t2 reproduce: the recorded training of an expert once more, and whether the same comes out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from t2cli.cli.completion import base_names, expert_names, task_names
from t2cli.cli.options import DEFAULT_BASE, Data, Device, Json, Quiet, RegistryPath, UnsafeCode, check_judge
from t2cli.cli.output import Output
from t2cli.cli.reproduce_report import report, report_none
from t2cli.cli.training_request import data_words, looked_at, place_words
from t2cli.cli.training_run import run_shown
from t2cli.errors import IncompatibleBaseError, Interrupted, NotFoundError, T2Error, UsageError

if TYPE_CHECKING:
    from t2cli.models.adapted import AdaptedModel
    from t2cli.registry.local import ExpertEntry, LocalRegistry
    from t2cli.registry.manifest import EvaluationRecord
    from t2cli.tasks.base import Task
    from t2cli.training.checkpoint import RunFolder, RunSpec
    from t2cli.training.publish import Trained
    from t2cli.training.recorded import Reproduction, Settings


TrainedExpert = Annotated[str, typer.Argument(metavar="EXPERT", help="A trained expert.", autocompletion=expert_names)]
Name = Annotated[str, typer.Option("--name", metavar="NAME", help="Also publish what comes out, under this name.")]
TaskFile = Annotated[
    str,
    typer.Option(
        "--task",
        metavar="FILE.yaml",
        help="The task's file, where it does not come with t2.",
        show_default="the recorded one",
        autocompletion=task_names,
    ),
]
RecordedBase = Annotated[
    str,
    typer.Option(
        "--base",
        metavar="NAME",
        help="Where its base model is: a name, a Hub id or a local folder.",
        show_default="the recorded one",
        autocompletion=base_names,
    ),
]


@dataclass(frozen=True)
class _Recorded:
    """An expert that says how it was trained, and what it was measured to do on that task."""

    entry: ExpertEntry
    settings: Settings
    task: str
    evaluation: EvaluationRecord


def reproduce(
    expert: TrainedExpert,
    name: Name = "",
    task: TaskFile = "",
    data: Data = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest unfinished reproduction.")] = False,
    unsafe_code: UnsafeCode = False,
    base: RecordedBase = "",
    registry: RegistryPath = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train an expert again as its manifest records, and compare what comes out.

    It reproduces (exit code 0, else 1) if the new gain, on the same held-out questions, lies in the
    recorded 95 % interval. On the same machine with the same versions and threads every number of z
    comes out the same; else what differs is named. Nothing is published without --name: the new
    expert stays in the folder of its run. Ctrl-C stops after saving; --resume goes on from there.
    """
    from t2cli.cli.session import open_model
    from t2cli.paths import registry_search_path
    from t2cli.registry.local import LocalRegistry
    from t2cli.training.checkpoint import new_run

    out = Output(json=json, quiet=quiet)
    _check_alone()
    found = _recorded(LocalRegistry(registry_search_path(registry)), expert, base)
    known_task, spec, home = _asked(out, found, name, task, data or [], base, unsafe_code)
    _warn(out, found)
    folder = _begun(home, spec, found) if resume else None
    questions = looked_at(known_task, spec, folder)
    adapted = open_model(spec.base, device=device, selection=spec.config.selection, quiet=quiet)
    questions.check_length(adapted.base, spec.config)
    folder = folder or new_run(home, replace(spec, questions=questions.digest))
    # Without a name it must not become one of what `t2 chat` chooses from: a registry of its own.
    entries = LocalRegistry(registry_search_path(registry) if name else [folder.path / "registry"])
    options = {"--name": name, "--task": task and spec.task, "--base": base}
    again = _resuming(found, expert, options, spec.data, place_words(registry, device, unsafe_code))
    try:
        trained = run_shown(out, adapted, known_task, spec, folder, entries, again)
    except T2Error as error:
        if isinstance(error, Interrupted) or not folder.finished:
            raise
        report_none(out, found.entry, folder, error)
        raise T2Error(f"{found.entry.reference} does not reproduce: {error.message}", hint=error.hint) from error
    result = _compared(out, adapted, known_task, found, trained)
    report(out, found.entry, found.settings, trained, result, folder)
    if not result.reproduces:
        raise typer.Exit(T2Error.exit_code)


def _check_alone() -> None:
    from t2cli.paths import launched

    if launched() is not None:
        raise UsageError(
            "t2 reproduce is for one process, and torchrun has started several",
            hint="start it without torchrun; t2 train shares its work among processes",
        )


def _warn(out: Output, found: _Recorded) -> None:
    if found.settings.defaults:
        used = ", ".join(f"{setting} {value}" for setting, value in found.settings.defaults.items())
        out.warn(f"{found.entry.reference} is of an older version of t2, which had fewer settings: used {used}")


def _recorded(registry: LocalRegistry, expert: str, base: str) -> _Recorded:
    """Return the expert and its record; raises UsageError for one that has none, or that cannot be compared."""
    from t2cli.models.catalog import known_fingerprint
    from t2cli.registry.resolve import shown
    from t2cli.training.recorded import evaluation_of, settings_of

    entry, _ = shown(registry, expert, known_fingerprint(base or DEFAULT_BASE))
    manifest, training = entry.manifest, entry.manifest.training
    if training is None:
        parents = " and ".join(parent.ref for parent in manifest.parents)
        raise UsageError(
            f"{entry.reference} has no record of a training: it is {'a mix' if parents else 'not from t2 train'}",
            hint=f"reproduce what it was made from: {parents}" if parents else "reproduce an expert that t2 trained",
        )
    evaluation = evaluation_of(manifest, training)
    if evaluation is None:
        raise UsageError(
            f"{entry.reference} has no evaluation on {training.task}, the task it was trained on: "
            "there is nothing to compare with",
            hint="train it anew with t2 train, and compare the two with t2 eval",
        )
    return _Recorded(entry, settings_of(training, entry.reference), training.task, evaluation)


def _asked(
    out: Output, found: _Recorded, name: str, task: str, data: list[str], base: str, unsafe_code: bool
) -> tuple[Task, RunSpec, str]:
    """Return the task, the run to do, and the name of the base's folder; raises where one is not as recorded."""
    from t2cli.models.catalog import locate
    from t2cli.models.identity import identify
    from t2cli.paths import expanded
    from t2cli.registry.reference import check_new_name
    from t2cli.tasks.base import load_task, task_names
    from t2cli.tasks.data_files import parse_data
    from t2cli.training.checkpoint import RunSpec
    from t2cli.training.recorded import base_of, check_sources, revisions_of

    entry = found.entry
    if not task and found.task not in task_names():
        raise NotFoundError(
            f"{entry.reference} was trained on the task {found.task}, which does not come with t2",
            hint="name its file: --task FILE.yaml",
        )
    training = entry.manifest.training
    assert training is not None  # `_recorded` saw to it
    files = parse_data(data, found.task)
    known_task = load_task(task or found.task, files, revisions=revisions_of(training), unsafe_code=unsafe_code)
    if known_task.name != found.task:
        raise UsageError(
            f"{entry.reference} was trained on the task {found.task}, and {task} is {known_task.name}",
            hint=f"name the file of the task {found.task}",
        )
    check_sources(training, known_task, entry.reference)
    check_judge([known_task], out)
    # by digest, so that neither t2 train --resume nor another version's reproduction takes its run for its own
    check_new_name(new := name or f"{entry.manifest.name[:40]}-reproduced-{entry.digest[:12]}")
    place = str(expanded(task).resolve()) if task and task not in task_names() else found.task
    used = base or base_of(entry)
    identity = identify(locate(used, quiet=out.quiet), quiet=out.quiet)
    if identity.weights != entry.manifest.base.fingerprint.weights:
        raise IncompatibleBaseError(
            f"{entry.reference} was trained on {entry.manifest.base.folder}, and {used} is {identity.folder_name}",
            hint="pass the base with the recorded weights: --base NAME",
        )
    spec = RunSpec(place, new, used, identity.weights, found.settings.config, files)
    return known_task, spec, identity.folder_name


def _begun(home: str, spec: RunSpec, found: _Recorded) -> RunFolder:
    """Return the reproduction to go on with. Raises NotFoundError for none, UsageError if it is another run."""
    from t2cli.training.checkpoint import run_to_resume

    folder = run_to_resume(home, spec.expert)
    begun = folder.spec()
    if (begun.task, begun.weights, begun.config, begun.data) != (spec.task, spec.weights, spec.config, spec.data):
        raise UsageError(
            f"the run in {folder.path} was begun with other settings or files than {found.entry.reference} records",
            hint="leave out --resume to start another run",
        )
    return folder


def _resuming(
    found: _Recorded,
    expert: str,
    options: Mapping[str, str],
    data: Mapping[str, str],
    place: Sequence[str],
) -> str:
    """Return the command that goes on; a name alone could mean a newer version by then."""
    words = ["t2", "reproduce", expert if expert.startswith("hf://") else found.entry.reference]
    for option, value in options.items():
        words += [option, value] if value else []
    return shlex.join([*words, *data_words(data), *place, "--resume"])


def _compared(out: Output, adapted: AdaptedModel, task: Task, found: _Recorded, trained: Trained) -> Reproduction:
    """Return both experts side by side, measured on the same questions."""
    from t2cli.cli.progress import progress
    from t2cli.evaluation.evaluate import compare
    from t2cli.registry.vectors import read_z
    from t2cli.training.recorded import beside

    assert trained.entry is not None  # settings_of takes experts only
    then, now = found.evaluation, trained.evaluation
    if (then.split, then.n, then.seed) != (now.split, now.n, now.seed):
        z = read_z(trained.entry)
        with progress("evaluate", 2 * then.n, unit="answers", quiet=out.quiet) as bar:
            now = compare(adapted, task, z, n=then.n, seed=then.seed, split=then.split, on_done=bar.advance)
    return beside(found.entry, trained.entry, then, now)
