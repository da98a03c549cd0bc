"""t2 train: an expert for a task, by reinforcement learning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from t2cli.cli.options import DEFAULT_BASE, Base, Device, Json, Quiet, RegistryPath, Seed
from t2cli.cli.output import Output
from t2cli.errors import Interrupted

if TYPE_CHECKING:
    from t2cli.models.adapted import AdaptedModel
    from t2cli.registry.local import LocalRegistry
    from t2cli.tasks.base import Task
    from t2cli.training.checkpoint import RunFolder, RunSpec
    from t2cli.training.loop import Trained

OptionalInt = Optional[int]  # noqa: UP045
OptionalFloat = Optional[float]  # noqa: UP045


def train(
    task: Annotated[str, typer.Option("--task", metavar="TASK", help="What to learn: a built-in task or a YAML file.")],
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="The expert's name.", show_default="the task's")
    ] = "",
    preset: Annotated[str, typer.Option("--preset", metavar="NAME", help="A tested set of settings.")] = "t2",
    steps: Annotated[OptionalInt, typer.Option("--steps", min=1, help="Updates of z.", show_default="60")] = None,
    learning_rate: Annotated[
        OptionalFloat, typer.Option("--learning-rate", min=0.0, help="Step size of AdamW.", show_default="0.002")
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
    from t2cli.config import preset as settings
    from t2cli.registry.local import LocalRegistry
    from t2cli.registry.reference import check_name
    from t2cli.tasks.base import load_task

    out = Output(json=json, quiet=quiet)
    config = settings(preset, steps=steps, learning_rate=learning_rate, selection=targets, seed=seed)
    known_task = load_task(task)
    expert = name or known_task.name
    check_name(expert)
    known_task.examples("train", 1, seed)  # says now, not after loading the model, if the task's source is missing
    from t2cli.cli.session import open_model, search_path
    from t2cli.training.checkpoint import RunSpec

    adapted = open_model(base, device=device, selection=targets, quiet=quiet)
    spec = RunSpec(task, expert, base, adapted.base.identity.weights, config)
    trained = _run(out, adapted, known_task, spec, LocalRegistry(search_path(registry)), resume=resume)
    _report(out, trained)


def _run(
    out: Output, adapted: AdaptedModel, task: Task, spec: RunSpec, registry: LocalRegistry, *, resume: bool
) -> Trained:
    from t2cli.cli.training_progress import TrainingProgress
    from t2cli.training.checkpoint import new_run, run_to_resume
    from t2cli.training.loop import TrainingRun

    home = adapted.base.identity.folder_name
    folder: RunFolder = run_to_resume(home, spec.expert) if resume else new_run(home, spec)
    out.say(f"run: {folder.path}")
    with folder.claimed(), TrainingProgress(out) as listener:
        adapted.prepare(quiet=out.quiet)
        run = TrainingRun(adapted, task, folder.spec(), folder, listener)
        try:
            return run.run(registry)
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"interrupted: stopped after step {run.steps_done}, which is saved in {folder.path}",
                hint=f"go on with: t2 train --task {spec.task} --name {spec.expert} --resume",
            ) from error


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
