"""A training run from start to published expert: steps, validation, checkpoints, evaluation.

Source: math.md 5. Validation examples choose the checkpoint; the evaluation that is stored uses test examples, which
share no question with either.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice, zip_longest

import torch

from t2cli.config import TrainConfig
from t2cli.errors import T2Error
from t2cli.evaluation.evaluate import Advance, compare, right_answers
from t2cli.models.adapted import AdaptedModel
from t2cli.models.basis_cache import singular_values
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.manifest import (
    BaseRecord,
    EvaluationRecord,
    ExpertManifest,
    FingerprintRecord,
    TargetsRecord,
    TrainingRecord,
    ZRecord,
    timestamp,
)
from t2cli.registry.vectors import z_to_bytes
from t2cli.svf.fingerprint import spectrum_sketch
from t2cli.svf.zvector import ZVectors, unflatten
from t2cli.tasks.base import Example, Task, origin, up_to
from t2cli.training.checkpoint import RunFolder, RunSpec, RunState
from t2cli.training.metrics import Listener, StepRecord
from t2cli.training.rollouts import collect
from t2cli.training.trainer import Trainer

SHOWN, SHOWN_FROM, LONGEST_SHOWN = 4, 64, 300  # questions in a manifest, out of how many, and characters of each
EVALUATION_SEED = 0  # the same questions for every run, so that experts of a task can be compared
SEED_STRIDE = 1_000_003  # keeps the random streams of a run's steps apart from those of the next seed


@dataclass(frozen=True)
class Trained:
    """What a run made. `seconds` is training with validation, without the final evaluation."""

    entry: ExpertEntry
    steps: int
    seconds: float
    evaluation: EvaluationRecord


class TrainingRun:
    """Drives one run in its folder; `run` may be interrupted at any moment and called again later."""

    def __init__(self, adapted: AdaptedModel, task: Task, spec: RunSpec, folder: RunFolder, listener: Listener) -> None:
        self.adapted = adapted
        self.task = task
        self.spec = spec
        self.config = spec.config
        self.folder = folder
        self.listener = listener
        self.trainer = Trainer(adapted, spec.config)
        self.validation: Sequence[Example] = up_to(
            task, "validation", spec.config.validation_examples, spec.config.seed
        )

    def run(self, registry: LocalRegistry) -> Trained:
        """Train what is left, evaluate, and publish the best checkpoint.

        Raises T2Error when no checkpoint was better than the base on the validation examples: nothing is published.
        """
        state = self._restore()
        if state is not None and (trained := self._published(state, registry)):
            return trained
        state = state or self._start()
        self.listener.stage("train", self.config.steps - state.step)
        while state.step < self.config.steps:
            self._one_step(state)
        self.listener.stage("", 0)
        if state.best_step == 0:
            self.folder.finish("")
            raise T2Error(
                f"no checkpoint was better than the base on {len(self.validation)} validation examples "
                f"({state.base_accuracy:.1%}): nothing was published",
                hint="train for more --steps, or with another --learning-rate or --seed",
            )
        return self._publish(state, registry)

    def _start(self) -> RunState:
        self.listener.stage("validate the base", len(self.validation))
        accuracy = self._validate(None, on_done=self.listener.advance)
        self.listener.stage("", 0)
        self.listener.note(f"base accuracy on {len(self.validation)} validation examples: {accuracy:.3f}")
        flat = self.trainer.flat.detach()
        zeros = torch.zeros_like(flat)
        tensors = {"z": flat.clone(), "best": flat.clone(), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
        state = RunState(0, 0.0, 0, accuracy, accuracy, tensors)
        self.folder.save(state)
        return state

    def _restore(self) -> RunState | None:
        state = self.folder.load(self.trainer.flat.numel())
        if state is None:
            return None
        self.trainer.restore(state.step, state.tensors)
        self.folder.metrics.cut_after(state.step)
        self.listener.note(f"resuming after step {state.step} of {self.config.steps}")
        return state

    def _one_step(self, state: RunState) -> None:
        config, started = self.config, time.monotonic()
        stream = config.seed * SEED_STRIDE + state.step
        examples = self.task.examples("train", config.prompts_per_step, stream)
        generator = torch.Generator().manual_seed(stream)
        rollouts = collect(self.adapted, self.task, examples, self.trainer.z(), config, generator)
        sampled = time.monotonic() - started
        result = self.trainer.step(rollouts)
        step = state.step + 1
        validation = None
        if step % config.validate_every == 0 or step == config.steps:
            validation = self._validate(self.trainer.z())
        seconds = time.monotonic() - started
        state.step, state.seconds = step, state.seconds + seconds
        record = StepRecord(
            step=step,
            steps=config.steps,
            reward=result.reward,
            kl=result.kl,
            informative=result.informative,
            gradient_norm=result.gradient_norm,
            learning_rate=result.learning_rate,
            tokens=rollouts.tokens,
            tokens_per_second=rollouts.tokens / sampled,
            seconds=seconds,
            elapsed=state.seconds,
            eta=state.seconds / step * (config.steps - step),
            validation=validation,
        )
        self.folder.metrics.append(record)  # first: a resume cuts lines that the checkpoint does not know
        self._keep(state, validation)
        self.listener.step(record)

    def _keep(self, state: RunState, validation: float | None) -> None:
        """Checkpoint the step that was done; remember it if it is the best so far."""
        optimizer = self.trainer.optimizer.state[self.trainer.flat]
        state.tensors["z"] = self.trainer.flat.detach().clone()
        state.tensors["exp_avg"], state.tensors["exp_avg_sq"] = optimizer["exp_avg"], optimizer["exp_avg_sq"]
        if validation is not None and validation > state.best_accuracy:
            state.best_accuracy, state.best_step = validation, state.step
            state.tensors["best"] = state.tensors["z"]
        self.folder.save(state)

    def _validate(self, z: ZVectors | None, on_done: Advance | None = None) -> float:
        right = right_answers(self.adapted, self.task, self.validation, z, on_done=on_done)
        self.adapted.release()
        return sum(right) / len(right)

    def _publish(self, state: RunState, registry: LocalRegistry) -> Trained:
        best = unflatten(state.tensors["best"].cpu(), self.trainer.ranks)
        z = ZVectors(best)
        n = len(up_to(self.task, "test", self.config.evaluation_examples, EVALUATION_SEED))
        self.listener.stage(f"evaluate on {n} test examples", 2 * n)
        evaluation = compare(self.adapted, self.task, z, n=n, seed=EVALUATION_SEED, on_done=self.listener.advance)
        self.listener.stage("", 0)
        self.adapted.release()
        entry = registry.put(self._manifest(state, evaluation), z_to_bytes(z))
        self.folder.finish(entry.reference)
        return Trained(entry, state.step, state.seconds, evaluation)

    def _published(self, state: RunState, registry: LocalRegistry) -> Trained | None:
        """Return what this run published before it was killed; it must not be published twice."""
        if state.step < self.config.steps or state.best_step == 0:
            return None
        blob = z_to_bytes(ZVectors(unflatten(state.tensors["best"].cpu(), self.trainer.ranks)))
        sha256 = hashlib.sha256(blob).hexdigest()
        for entry in registry.list(base_digest=self.spec.weights):
            manifest = entry.manifest
            same = manifest.name == self.spec.expert and manifest.z.sha256 == sha256
            by_this_run = manifest.training is not None and manifest.training.seconds == round(state.seconds, 1)
            if same and by_this_run and manifest.evaluation:
                self.listener.note(f"{entry.reference} was published before the interruption")
                self.folder.finish(entry.reference)
                return Trained(entry, state.step, state.seconds, manifest.evaluation[0])
        return None

    def _manifest(self, state: RunState, evaluation: EvaluationRecord) -> ExpertManifest:
        config, task = self.config, self.task
        settings = {key: value for key, value in asdict(config).items() if key not in ("preset", "seed")}
        return ExpertManifest(
            name=self.spec.expert,
            version=1,  # the registry assigns the real one
            kind="expert",
            category=task.category,
            description=task.description,
            base=base_record(self.adapted),
            targets=TargetsRecord(config.selection, len(self.adapted.targets), self.trainer.flat.numel()),
            z=ZRecord("z.safetensors", "0" * 64, "linear"),
            examples=showcase(task, config.seed),
            training=TrainingRecord(
                task=task.name,
                preset=config.preset,
                config={**settings, "best_step": state.best_step, **origin(task)},
                seed=config.seed,
                steps=state.step,
                seconds=round(state.seconds, 1),
                device=str(self.adapted.base.device),
                versions=versions(),
            ),
            evaluation=(evaluation,),
            parents=(),
            created=timestamp(),
        )


def check_examples(task: Task, config: TrainConfig) -> None:
    """Raise T2Error if the task has fewer questions than a run with `config` will ask for, or lacks their source.

    A run that ends for that after its last step would have been for nothing. Where questions come from files,
    fewer will do for validation and test: all there are.
    """
    task.examples("train", config.prompts_per_step, config.seed)
    up_to(task, "train", SHOWN_FROM, config.seed)
    up_to(task, "validation", config.validation_examples, config.seed)
    up_to(task, "test", config.evaluation_examples, EVALUATION_SEED)


def showcase(task: Task, seed: int) -> tuple[str, ...]:
    """Return a few short training questions as pass 1 will show them, from different rows of the task.

    They come from the training split: what is shown is never part of an evaluation.
    """
    by_row: dict[str, list[str]] = {}
    for example in up_to(task, "train", SHOWN_FROM, seed):
        question = " ".join(task.messages(example)[-1]["content"].split())
        by_row.setdefault(example.id.rpartition("-")[0], []).append(question)
    rows = [sorted(questions, key=len) for questions in by_row.values()]
    rounds = zip_longest(*(questions[len(questions) // 4 :] for questions in rows))  # short, but not the shortest
    chosen = (
        question
        for group in rounds
        for question in group
        if question.isprintable() and 0 < len(question) < LONGEST_SHOWN
    )
    return tuple(islice(chosen, SHOWN))


def base_record(adapted: AdaptedModel) -> BaseRecord:
    """Return what a manifest says of the base: where it is from, and its fingerprint."""
    identity = adapted.base.identity
    spectrum = spectrum_sketch(singular_values(identity, adapted.targets))
    return BaseRecord(
        name=identity.name,
        source=identity.source,
        revision=identity.revision,
        architecture=identity.architecture,
        fingerprint=FingerprintRecord(identity.weights, spectrum, identity.probes),
    )


def versions() -> dict[str, str]:
    """Return the versions of what made an expert."""
    from importlib.metadata import version

    import t2cli

    found = {name: version(name) for name in ("torch", "transformers")}
    return {"t2cli": t2cli.__version__, "python": platform.python_version(), **found}
