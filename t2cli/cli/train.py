"""t2 train: an expert for a task, by reinforcement learning."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from t2cli.cli.options import DEFAULT_BASE, Base, Device, Json, Quiet, RegistryPath, Seed, TaskName
from t2cli.cli.output import Output
from t2cli.config import TrainConfig
from t2cli.config import preset as settings
from t2cli.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from t2cli.models.adapted import AdaptedModel
    from t2cli.registry.local import LocalRegistry
    from t2cli.tasks.base import Task
    from t2cli.training.checkpoint import RunFolder, RunSpec
    from t2cli.training.loop import Trained

OptionalInt = Optional[int]  # noqa: UP045
OptionalFloat = Optional[float]  # noqa: UP045
DEFAULTS = TrainConfig()


def train(
    task: TaskName,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="The expert's name.", show_default="the task's")
    ] = "",
    preset: Annotated[str, typer.Option("--preset", metavar="NAME", help="A tested set of settings.")] = "t2",
    steps: Annotated[
        OptionalInt, typer.Option("--steps", min=1, help="Updates of z.", show_default=str(DEFAULTS.steps))
    ] = None,
    learning_rate: Annotated[
        OptionalFloat,
        typer.Option("--learning-rate", min=0.0, help="Step size of AdamW.", show_default=str(DEFAULTS.learning_rate)),
    ] = None,
    targets: Annotated[
        Literal["all", "mlp", "attention"], typer.Option("--targets", help="Which linear layers get a z.")
    ] = "all",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the newest unfinished run of that name.")
    ] = False,
    base: Base = DEFAULT_BASE,
    registry: RegistryPath = None,
    device: Device = "auto",
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train an expert on a task with checkable answers.

    The best checkpoint on validation examples is evaluated on other, held-out ones beside the base
    and published to the registry. Ctrl-C stops after saving; --resume goes on from there with the
    settings the run began with.
    """
    out = Output(json=json, quiet=quiet)
    if learning_rate is not None and not math.isfinite(learning_rate):
        raise UsageError("--learning-rate must be a finite number", hint=f"the default is {DEFAULTS.learning_rate}")
    config = settings(preset, steps=steps, learning_rate=learning_rate, selection=targets, seed=seed)
    known_task, spec, home = _asked(task, name, base, config, quiet)
    from t2cli.cli.session import open_model
    from t2cli.paths import registry_search_path
    from t2cli.registry.local import LocalRegistry
    from t2cli.training.checkpoint import new_run, run_to_resume
    from t2cli.training.loop import check_examples

    folder = run_to_resume(home, spec.expert) if resume else None
    if folder is not None:
        spec = _settings_of(folder, spec, {"steps": steps, "learning_rate": learning_rate}, out)
    check_examples(known_task, spec.config)  # now, and not after hours of training
    adapted = open_model(base, device=device, selection=spec.config.selection, quiet=quiet)
    again = _resuming(spec, known_task.name, registry)
    entries = LocalRegistry(registry_search_path(registry))
    _report(out, run_shown(out, adapted, known_task, spec, folder or new_run(home, spec), entries, again))


def _asked(task: str, name: str, base: str, config: TrainConfig, quiet: bool) -> tuple[Task, RunSpec, str]:
    """Return the task, what a run is asked to do, and the name of the base's folder; raises for names there are not."""
    from t2cli.models.catalog import locate
    from t2cli.models.identity import identify
    from t2cli.paths import expanded
    from t2cli.registry.reference import check_name
    from t2cli.tasks.base import load_task, task_names
    from t2cli.training.checkpoint import RunSpec

    known_task = load_task(task)
    check_name(expert := name or known_task.name)
    place = task if task in task_names() else str(expanded(task).resolve())  # resumed from anywhere
    identity = identify(locate(base, quiet=quiet), quiet=quiet)
    return known_task, RunSpec(place, expert, base, identity.weights, config), identity.folder_name


def _settings_of(folder: RunFolder, asked: RunSpec, given: dict[str, float | None], out: Output) -> RunSpec:
    """Return what the run to resume was asked to do.

    Raises UsageError if that was another task; warns of options that were `given` and are not what it began with.
    """
    spec = folder.spec()
    if spec.task != asked.task:
        raise UsageError(
            f"the run in {folder.path} is for the task {spec.task}, not for {asked.task}",
            hint=f"resume it with --task {shlex.quote(spec.task)}, or leave out --resume to start another run",
        )
    ignored = [
        f"--{name.replace('_', '-')} {value:g}"
        for name, value in given.items()
        if value is not None and value != getattr(spec.config, name)
    ]
    if ignored:
        out.warn(f"{' and '.join(ignored)} ignored: a run goes on with the settings it began with")
    return spec


def _resuming(spec: RunSpec, default_name: str, registry: Path | None) -> str:
    """Return the command that goes on with a run."""
    words = ["t2", "train", "--task", spec.task]
    words += ["--name", spec.expert] if spec.expert != default_name else []
    words += ["--base", spec.base] if spec.base != DEFAULT_BASE else []
    words += ["--registry", str(registry)] if registry is not None else []
    return shlex.join([*words, "--resume"])


def run_shown(
    out: Output,
    adapted: AdaptedModel,
    task: Task,
    spec: RunSpec,
    folder: RunFolder,
    registry: LocalRegistry,
    again: str,
) -> Trained:
    """Train in `folder`, showing how it goes; `again` is the command that goes on after an interrupt."""
    from t2cli.cli.training_progress import TrainingProgress
    from t2cli.training.loop import TrainingRun

    with folder.claimed(), TrainingProgress(out) as listener:
        try:
            out.say(f"run: {folder.path}")
            adapted.prepare(quiet=out.quiet)
            return TrainingRun(adapted, task, spec, folder, listener).run(registry)
        except KeyboardInterrupt as error:
            state = folder.load()
            done = f"after step {state.step}, which is saved" if state and state.step else "before the first step"
            raise Interrupted(f"stopped {done} in {folder.path}", hint=f"go on with: {again}") from error


def _report(out: Output, trained: Trained) -> None:
    from dataclasses import asdict

    entry, evaluation = trained.entry, trained.evaluation
    out.emit(
        "train",
        {
            "expert": entry.reference,
            "digest": entry.digest,
            "path": str(entry.path),
            "steps": trained.steps,
            "seconds": round(trained.seconds, 1),
            "evaluation": [asdict(evaluation)],
        },
    )
    low, high = evaluation.gain_ci95 or (evaluation.gain, evaluation.gain)
    verdict = "" if evaluation.mcnemar_p < 0.05 else "; not distinguishable from the base"
    out.data(
        f"{entry.reference}: {evaluation.task} {evaluation.base_accuracy:.3f} -> {evaluation.expert_accuracy:.3f} "
        f"(gain {100 * evaluation.gain:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}, "
        f"McNemar p = {evaluation.mcnemar_p:.2g}, n = {evaluation.n} held-out questions{verdict})"
    )
