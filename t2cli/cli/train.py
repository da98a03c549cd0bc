"""t2 train: an expert for a task, by reinforcement learning."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from t2cli.cli.heatmap import check_picture
from t2cli.cli.options import (
    DEFAULT_BASE,
    Base,
    CurvePlot,
    Data,
    Device,
    Json,
    Patience,
    Quiet,
    RegistryPath,
    Seed,
    TaskName,
    TensorBoard,
    UnsafeCode,
)
from t2cli.cli.output import Output
from t2cli.cli.training_request import Request, requested, resuming, settings_of, task_of
from t2cli.cli.training_run import report, run_shown, show_curve
from t2cli.config import TrainConfig
from t2cli.config import preset as settings
from t2cli.errors import UsageError

if TYPE_CHECKING:
    from t2cli.models.team import Team

OptionalInt = Optional[int]  # noqa: UP045
OptionalFloat = Optional[float]  # noqa: UP045
DEFAULTS = TrainConfig()

Name = Annotated[str, typer.Option("--name", metavar="NAME", help="The expert's name.", show_default="the task's")]
OwnRewardName = Annotated[
    str,
    typer.Option(
        "--reward",
        metavar="MODULE:FUNCTION",
        help="Judge answers with a Python function of yours, (answer, completion) -> bool or a number from -1 to 1."
        " Its code is run.",
        show_default="the task's",
    ),
]
Steps = Annotated[OptionalInt, typer.Option("--steps", min=1, help="Updates of z.", show_default=str(DEFAULTS.steps))]
LearningRate = Annotated[
    OptionalFloat,
    typer.Option("--learning-rate", min=0.0, help="Step size of AdamW.", show_default=str(DEFAULTS.learning_rate)),
]


def train(
    task: TaskName,
    data: Data = None,
    reward: OwnRewardName = "",
    name: Name = "",
    preset: Annotated[str, typer.Option("--preset", metavar="NAME", help="A tested set of settings.")] = "t2",
    steps: Steps = None,
    learning_rate: LearningRate = None,
    targets: Annotated[
        Literal["all", "mlp", "attention"], typer.Option("--targets", help="Which linear layers get a z.")
    ] = "all",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the newest unfinished run of that name.")
    ] = False,
    unsafe_code: UnsafeCode = False,
    patience: Patience = None,
    plot: CurvePlot = None,
    tensorboard: TensorBoard = False,
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
    settings the run began with. Under torchrun (torchrun --nproc-per-node N -m t2cli train ...) N
    processes share the work.
    """
    check_picture(plot)
    out = Output(json=json, quiet=quiet)
    if learning_rate is not None and not math.isfinite(learning_rate):
        raise UsageError("--learning-rate must be a finite number", hint=f"the default is {DEFAULTS.learning_rate}")
    config = settings(preset, steps=steps, learning_rate=learning_rate, selection=targets, patience=patience, seed=seed)
    asked = requested(task, data or [], reward, name, base, config, out, unsafe_code)
    given = {"steps": steps, "learning_rate": learning_rate, "patience": patience} if resume else None
    from t2cli.training.distributed import joined

    with joined(device) as team:
        out = out if team.leads else Output(quiet=True)
        _train(out, team, asked, given, device, registry, plot, tensorboard)


def _train(
    out: Output,
    team: Team,
    asked: Request,
    given: dict[str, float | None] | None,
    device: str,
    registry: Path | None,
    plot: Path | None,
    tensorboard: bool,
) -> None:
    """Train in a new run, or in the newest unfinished one; `given` are the options of a resumed run."""
    from t2cli.cli.session import open_model, search_path
    from t2cli.registry.local import LocalRegistry
    from t2cli.tasks.base import revisions
    from t2cli.training.checkpoint import new_run, run_to_resume
    from t2cli.training.loop import check_examples
    from t2cli.training.tensorboard import check_tensorboard

    if tensorboard:
        check_tensorboard()
    task, spec = asked.task, asked.spec
    folder = run_to_resume(asked.home, spec.expert) if given is not None and team.leads else None
    if folder is not None and given is not None:
        spec = settings_of(folder, spec, given, out)
    spec = team.told(spec)
    if given is not None:
        task = task_of(spec, asked.unsafe_code)
    check_examples(task, spec.config)  # now, and not after hours of training
    spec = replace(spec, revisions=revisions(task))
    adapted = open_model(asked.spec.base, device=device, selection=spec.config.selection, quiet=out.quiet)
    adapted.team = team
    again = resuming(spec, task.name, registry, asked.unsafe_code)
    if folder is None and team.leads:
        folder = new_run(asked.home, spec)
    folder = team.told(folder)
    assert folder is not None
    entries = LocalRegistry(search_path(registry))
    trained = run_shown(out, adapted, task, spec, folder, entries, again, tensorboard=tensorboard)
    if team.leads:
        report(out, trained)
        show_curve(out, folder, plot)
