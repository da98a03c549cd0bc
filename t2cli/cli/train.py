"""t2 train: an expert for a task, by reinforcement learning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

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
    check_judge,
)
from t2cli.cli.output import Output
from t2cli.cli.pictures import check_picture
from t2cli.cli.training_options import (
    DEFAULTS,
    Adapter,
    LearningRate,
    Name,
    OwnRewardName,
    Preset,
    Rank,
    Resume,
    Steps,
    Targets,
    TrainerName,
)
from t2cli.cli.training_request import (
    OPTIONS,
    Request,
    check_device,
    looked_at,
    requested,
    resuming,
    settings_of,
    task_of,
    trainer_of,
)
from t2cli.cli.training_run import report, run_shown, show_curve
from t2cli.config import TrainConfig
from t2cli.config import preset as settings
from t2cli.errors import UsageError
from t2cli.paths import launched

if TYPE_CHECKING:
    from t2cli.models.team import Team


def train(
    context: typer.Context,
    task: TaskName,
    data: Data = None,
    reward: OwnRewardName = "",
    name: Name = "",
    preset: Preset = "t2",
    trainer: TrainerName = "policy-gradient",
    adapter: Adapter = "svf",
    rank: Rank = None,
    steps: Steps = None,
    learning_rate: LearningRate = None,
    targets: Targets = "all",
    resume: Resume = False,
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

    The last checkpoint, or another that does measurably better on validation examples, is evaluated
    on other, held-out ones beside the base and published to the registry; a LoRA stays in the run's
    folder. Ctrl-C stops after saving; --resume goes on from there with the settings the run began
    with. Under torchrun (torchrun --nproc-per-node N -m t2cli train ...) N processes share the work.
    """
    check_picture(plot)
    place = launched()
    out = Output(json=json, quiet=quiet, mute=place is not None and place.rank > 0)
    if learning_rate is not None and not math.isfinite(learning_rate):
        raise UsageError("--learning-rate must be a finite number", hint=f"the default is {DEFAULTS.learning_rate}")
    asked_for = {"trainer": trainer_of(task, trainer), "adapter": adapter, "selection": targets, "seed": seed}
    asked_for |= {"steps": steps, "learning_rate": learning_rate, "patience": patience, "rank": rank}
    config = _config(preset, asked_for)
    if not resume:
        check_device(config, device)
    asked = requested(task, data or [], reward, name, base, config, out, unsafe_code=unsafe_code, resume=resume)
    given = _given(context, {"preset": preset, **asked_for}) if resume else None
    from t2cli.training.distributed import joined

    with joined(device) as team:
        _train(out, team, asked, given, device, registry, plot, tensorboard)


def _given(context: typer.Context, settings: Mapping[str, object]) -> dict[str, object]:
    """Return those of the settings that were asked for in words, and are not there by default."""

    def is_default(name: str) -> bool:
        source = context.get_parameter_source(OPTIONS.get(name, name))
        return source is None or source.name == "DEFAULT"

    return {name: value for name, value in settings.items() if not is_default(name)}


def _config(preset: str, asked_for: Mapping[str, object]) -> TrainConfig:
    """Return the preset with what is asked for; raises UsageError for options that do not go together."""
    if asked_for["rank"] is not None and asked_for["adapter"] != "lora":
        raise UsageError("--rank is for a LoRA", hint="add --adapter lora, or leave out --rank")
    if asked_for["adapter"] == "lora":
        from t2cli.training.lora import require_peft

        require_peft()
    try:
        return settings(preset, **asked_for)
    except ValueError as error:
        raise UsageError(f"these options do not go together: {error}", hint="leave one of them out") from error


def _train(
    out: Output,
    team: Team,
    asked: Request,
    given: dict[str, object] | None,
    device: str,
    registry: Path | None,
    plot: Path | None,
    tensorboard: bool,
) -> None:
    """Train in a new run, or in the newest unfinished one; `given` are the settings asked of a resumed run."""
    from t2cli.cli.session import open_model
    from t2cli.paths import registry_search_path
    from t2cli.registry.local import LocalRegistry
    from t2cli.tasks.base import revisions
    from t2cli.training.checkpoint import new_run, run_to_resume
    from t2cli.training.tensorboard import check_tensorboard

    if tensorboard:
        check_tensorboard()
    task, spec = asked.task, asked.spec
    folder = run_to_resume(asked.home, spec.expert) if given is not None and team.leads else None
    begun = spec.data
    if folder is not None and given is not None:
        begun, spec = folder.spec().data, settings_of(folder, spec, given, out)
    spec = team.told(spec)
    if given is not None:
        task = task_of(spec, asked.unsafe_code)
        check_judge([task], out)
        check_device(spec.config, device)
    questions = looked_at(task, spec, folder)  # now, and not after hours of training
    for warning in questions.warnings:
        out.warn(warning)
    spec = replace(spec, revisions=revisions(task), questions=questions.digest)
    questions.check_together(team)
    adapted = open_model(asked.spec.base, device=device, selection=spec.config.selection, quiet=out.quiet)
    questions.check_length(adapted.base, spec.config)
    adapted.team = team
    if folder is None and team.leads:
        folder = new_run(asked.home, spec)
    again = resuming(spec, task.name, registry, device, asked.unsafe_code, moved=spec.data != begun)
    folder = team.told(folder)
    assert folder is not None
    entries = LocalRegistry(registry_search_path(registry))
    trained = run_shown(out, adapted, task, spec, folder, entries, again, tensorboard=tensorboard)
    if team.leads:
        report(out, trained)
        show_curve(out, folder, plot)
