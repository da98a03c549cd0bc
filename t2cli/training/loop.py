"""A training run from start to published expert: steps, validation, checkpoints, evaluation.

Source: math.md 5. Validation examples choose the checkpoint; the evaluation that is stored uses test examples, which
share no question with either.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import islice, zip_longest
from pathlib import Path

import torch

from t2cli.config import TrainConfig
from t2cli.errors import T2Error
from t2cli.evaluation.evaluate import Advance, answers_in_use, compare_two, in_use
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
from t2cli.svf.zvector import ZVectors
from t2cli.tasks.base import Example, Task
from t2cli.training.adapter_folder import save_adapter
from t2cli.training.algorithms import algorithm_of
from t2cli.training.checkpoint import RunFolder, RunSpec, RunState
from t2cli.training.metrics import Listener, StepRecord
from t2cli.training.policy import Saves, SVFPolicy

SHOWN, SHOWN_FROM, LONGEST_SHOWN = 4, 64, 300  # questions in a manifest, out of how many, and characters of each
EVALUATION_SEED = 0  # the same questions for every run, so that experts of a task can be compared
SEED_STRIDE = 1_000_003  # keeps the random streams of a run's steps apart from those of the next seed


@dataclass(frozen=True)
class Trained:
    """What a run made: the `entry` of an expert, or the folder of an `adapter`, which is none.

    `seconds` is training with validation, without the final evaluation.
    """

    entry: ExpertEntry | None
    steps: int
    seconds: float
    evaluation: EvaluationRecord
    adapter: Path | None = None


class TrainingRun:
    """Drives one run in its folder; `run` may be interrupted at any moment and called again later."""

    def __init__(self, adapted: AdaptedModel, task: Task, spec: RunSpec, folder: RunFolder, listener: Listener) -> None:
        self.adapted = adapted
        self.task = task
        self.spec = spec
        self.config = spec.config
        self.folder = folder
        self.listener = listener
        self.trainer = algorithm_of(adapted, spec.config)
        self.policy = self.trainer.policy
        self.validation: Sequence[Example] = task.examples(
            "validation", spec.config.validation_examples, spec.config.seed
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
        accuracy = self._validate(self.policy.reference(), on_done=self.listener.advance)
        self.listener.stage("", 0)
        self.listener.note(f"base accuracy on {len(self.validation)} validation examples: {accuracy:.3f}")
        flat = self.policy.flat.detach()
        zeros = torch.zeros_like(flat)
        tensors = {"z": flat.clone(), "best": flat.clone(), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
        state = RunState(0, 0.0, 0, accuracy, accuracy, tensors)
        self.folder.save(state)
        return state

    def _restore(self) -> RunState | None:
        state = self.folder.load(self.policy.flat.numel())
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
        result = self.trainer.update(self.task, examples, generator)
        step = state.step + 1
        validation = None
        if step % config.validate_every == 0 or step == config.steps:
            validation = self._validate(self.policy.answering())
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
            tokens=result.tokens,
            tokens_per_second=result.tokens / result.sampling_seconds,
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
        state.tensors["z"] = self.policy.flat.detach().clone()
        state.tensors.update(self.trainer.moments())
        if validation is not None and validation > state.best_accuracy:
            state.best_accuracy, state.best_step = validation, state.step
            state.tensors["best"] = state.tensors["z"]
        self.folder.save(state)

    def _validate(self, use: AbstractContextManager[None], on_done: Advance | None = None) -> float:
        with use:
            answers = answers_in_use(self.policy.text_model, self.task, self.validation, on_done=on_done)
        self.policy.release()
        return answers.accuracy

    def _publish(self, state: RunState, registry: LocalRegistry) -> Trained:
        best, n = state.tensors["best"], self.config.evaluation_examples
        self.listener.stage(f"evaluate on {n} test examples", 2 * n)
        base = in_use(self.policy.text_model, self.policy.reference)
        trained = in_use(self.policy.text_model, lambda: self.policy.answering(best), self.spec.expert)
        heard = self.listener.advance
        evaluation = compare_two(self.task, base, trained, n=n, seed=EVALUATION_SEED, on_done=heard)
        self.listener.stage("", 0)
        self.policy.release()
        if isinstance(self.policy, Saves):
            adapter = save_adapter(self.folder, self.policy, best, evaluation)
            self.folder.finish("")
            return Trained(None, state.step, state.seconds, evaluation, adapter)
        entry = registry.put(self._manifest(state, evaluation), z_to_bytes(self._z_of(state)))
        self.folder.finish(entry.reference)
        return Trained(entry, state.step, state.seconds, evaluation)

    def _z_of(self, state: RunState) -> ZVectors:
        """Return the best z of an SVF run: what is published are the effective factors, however they were trained."""
        assert isinstance(self.policy, SVFPolicy)
        return self.policy.z_of(state.tensors["best"].to(self.policy.flat.device))

    def _published(self, state: RunState, registry: LocalRegistry) -> Trained | None:
        """Return what this run published before it was killed; it must not be published twice."""
        if state.step < self.config.steps or state.best_step == 0 or not isinstance(self.policy, SVFPolicy):
            return None
        blob = z_to_bytes(self._z_of(state))
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
            targets=TargetsRecord(config.selection, len(self.adapted.targets), self.policy.flat.numel()),
            z=ZRecord("z.safetensors", "0" * 64, "linear"),
            examples=showcase(task, config.seed),
            training=TrainingRecord(
                task=task.name,
                preset=config.preset,
                config={**settings, "best_step": state.best_step},
                seed=config.seed,
                steps=state.step,
                seconds=round(state.seconds, 1),
                device=str(self.adapted.base.device),
                versions=versions(),
                threads=torch.get_num_threads(),
            ),
            evaluation=(evaluation,),
            parents=(),
            created=timestamp(),
        )


def check_examples(task: Task, config: TrainConfig) -> None:
    """Raise T2Error if the task has fewer questions than a run with `config` will ask for, or lacks their source.

    A run that ends for that after its last step would have been for nothing.
    """
    task.examples("train", max(config.prompts_per_step, SHOWN_FROM), config.seed)
    task.examples("validation", config.validation_examples, config.seed)
    task.examples("test", config.evaluation_examples, EVALUATION_SEED)


def showcase(task: Task, seed: int) -> tuple[str, ...]:
    """Return a few short training questions as pass 1 will show them, from different rows of the task.

    They come from the training split: what is shown is never part of an evaluation.
    """
    by_row: dict[str, list[str]] = {}
    for example in task.examples("train", SHOWN_FROM, seed):
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
