"""t2 train: an expert for a task, by reinforcement learning."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t2cli.cli.options import DEFAULT_BASE, Base, Device, Json, Quiet, RegistryPath, Seed, TaskName
from t2cli.cli.output import Output
from t2cli.cli.training_options import DEFAULTS, Adapter, LearningRate, Name, Preset, Rank, Steps, Targets, TrainerName
from t2cli.config import TrainConfig
from t2cli.config import preset as settings
from t2cli.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from t2cli.models.adapted import AdaptedModel
    from t2cli.registry.local import LocalRegistry
    from t2cli.tasks.base import Task
    from t2cli.training.checkpoint import RunFolder, RunSpec
    from t2cli.training.loop import Trained


def train(
    task: TaskName,
    name: Name = "",
    preset: Preset = "t2",
    trainer: TrainerName = "policy-gradient",
    adapter: Adapter = "svf",
    rank: Rank = None,
    steps: Steps = None,
    learning_rate: LearningRate = None,
    targets: Targets = "all",
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
    and published to the registry; a LoRA stays in the run's folder. Ctrl-C stops after saving;
    --resume goes on from there with the settings the run began with.
    """
    out = Output(json=json, quiet=quiet)
    if learning_rate is not None and not math.isfinite(learning_rate):
        raise UsageError("--learning-rate must be a finite number", hint=f"the default is {DEFAULTS.learning_rate}")
    given = {"steps": steps, "learning_rate": learning_rate, "rank": rank}
    config = _config(preset, trainer=trainer, adapter=adapter, selection=targets, seed=seed, **given)
    known_task, spec, home = _asked(task, name, base, config, quiet)
    from t2cli.cli.session import open_model, search_path
    from t2cli.registry.local import LocalRegistry
    from t2cli.training.checkpoint import new_run, run_to_resume
    from t2cli.training.loop import check_examples

    folder = run_to_resume(home, spec.expert) if resume else None
    if folder is not None:
        spec = _settings_of(folder, spec, given, out)
    check_examples(known_task, spec.config)  # now, and not after hours of training
    adapted = open_model(base, device=device, selection=spec.config.selection, quiet=quiet)
    again = _resuming(spec, known_task.name, registry)
    entries = LocalRegistry(search_path(registry))
    _report(out, run_shown(out, adapted, known_task, spec, folder or new_run(home, spec), entries, again))


def _config(preset: str, **given: object) -> TrainConfig:
    """Return the preset with what was given; raises UsageError for options that do not go together."""
    if given["rank"] is not None and given["adapter"] != "lora":
        raise UsageError("--rank is for a LoRA", hint="add --adapter lora, or leave out --rank")
    if given["adapter"] == "lora":
        from t2cli.training.lora import require_peft

        require_peft()
    try:
        return settings(preset, **given)
    except ValueError as error:
        raise UsageError(f"these options do not go together: {error}", hint="leave one of them out") from error


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


def _settings_of(folder: RunFolder, asked: RunSpec, given: Mapping[str, float | None], out: Output) -> RunSpec:
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
            if spec.config.adapter == "svf":
                adapted.prepare(quiet=out.quiet)
            training = TrainingRun(adapted, task, spec, folder, listener)
            if spec.config.adapter == "lora":
                out.say(f"LoRA of rank {spec.config.rank}: {training.policy.flat.numel():,} numbers to train")
            return training.run(registry)
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
            "expert": entry.reference if entry else "",
            "digest": entry.digest if entry else "",
            "path": str(entry.path if entry else trained.adapter),
            "steps": trained.steps,
            "seconds": round(trained.seconds, 1),
            "evaluation": [asdict(evaluation)],
        },
    )
    name = entry.reference if entry else "LoRA"
    low, high = evaluation.gain_ci95 or (evaluation.gain, evaluation.gain)
    verdict = "" if evaluation.mcnemar_p < 0.05 else "; not distinguishable from the base"
    out.data(
        f"{name}: {evaluation.task} {evaluation.base_accuracy:.3f} -> {evaluation.expert_accuracy:.3f} "
        f"(gain {100 * evaluation.gain:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}, "
        f"McNemar p = {evaluation.mcnemar_p:.2g}, n = {evaluation.n} held-out questions{verdict})"
    )
    if trained.adapter:
        out.say(f"a LoRA is no expert of the registry; PEFT loads it from {trained.adapter}")
