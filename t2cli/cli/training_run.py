"""A training run on the screen: while it goes on, and what came out."""

from __future__ import annotations

from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from t2cli.cli.chart import reward_curve, save_curve
from t2cli.cli.output import Output
from t2cli.errors import Interrupted, T2Error

if TYPE_CHECKING:
    from t2cli.models.adapted import AdaptedModel
    from t2cli.registry.local import LocalRegistry
    from t2cli.tasks.base import Task
    from t2cli.training.checkpoint import RunFolder, RunSpec
    from t2cli.training.publish import Trained


def run_shown(
    out: Output,
    adapted: AdaptedModel,
    task: Task,
    spec: RunSpec,
    folder: RunFolder,
    registry: LocalRegistry,
    again: str,
    *,
    tensorboard: bool = False,
) -> Trained:
    """Train in `folder`, showing how it goes; `again` is the command that goes on after an interrupt."""
    from t2cli.cli.training_progress import TrainingProgress
    from t2cli.training.loop import TrainingRun
    from t2cli.training.tensorboard import WithEvents

    leads = adapted.team.leads
    with folder.claimed() if leads else nullcontext(), TrainingProgress(out) as shown:
        try:
            out.say(f"run: {folder.path}")
            if spec.config.adapter == "svf":
                adapted.prepare(quiet=out.quiet)
            events = leads and (tensorboard or (folder.path / "tensorboard").is_dir())  # once begun, they go on
            with closing(WithEvents(shown, folder)) if events else nullcontext(shown) as listener:
                training = TrainingRun(adapted, task, spec, folder, listener)
                if spec.config.adapter == "lora":
                    out.say(f"LoRA of rank {spec.config.rank}: {training.policy.flat.numel():,} numbers to train")
                return training.run(registry)
        except KeyboardInterrupt as error:
            state = folder.load()
            done = f"after step {state.step}, which is saved" if state and state.step else "before the first step"
            raise Interrupted(f"stopped {done} in {folder.path}", hint=f"go on with: {again}") from error


def show_curve(out: Output, folder: RunFolder, plot: Path | None) -> None:
    """Show how the reward rose, and draw it into a file where asked: what was trained is there, with or without it."""
    records = folder.metrics.done()
    for line in reward_curve(records) if len(records) > 1 else []:
        out.say(line)
    if plot is not None and records:
        try:
            save_curve(records, plot, f"{folder.spec().expert}: reward in training")
            out.say(f"wrote {plot}")
        except T2Error as error:
            out.warn(f"{error.message}; t2 curve --plot draws it, too")


def report(out: Output, trained: Trained) -> None:
    """Print the expert, and what it gains."""
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
