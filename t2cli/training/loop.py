"""A training run from start to published expert: steps, validation, checkpoints, evaluation.

Source: math.md 5. Validation examples choose the checkpoint; the evaluation that is stored uses test examples, which
share no question with either.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch

from t2cli.config import TrainConfig
from t2cli.errors import T2Error
from t2cli.evaluation.evaluate import Advance, answers_in_use
from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import LocalRegistry
from t2cli.tasks.base import Example, Task, up_to
from t2cli.training.algorithms import algorithm_of
from t2cli.training.checkpoint import RunFolder, RunSpec, RunState
from t2cli.training.metrics import Listener, StepRecord
from t2cli.training.publish import EVALUATION_SEED, SHOWN_FROM, Publisher, Trained

SEED_STRIDE = 1_000_003  # keeps the random streams of a run's steps apart from those of the next seed


class TrainingRun:
    """Drives one run in its folder; `run` may be interrupted at any moment and called again later."""

    def __init__(self, adapted: AdaptedModel, task: Task, spec: RunSpec, folder: RunFolder, listener: Listener) -> None:
        self.adapted = adapted
        self.task = task
        self.spec = spec
        self.config = spec.config
        self.folder = folder
        self.listener = listener
        self.team = adapted.team
        self.trainer = algorithm_of(adapted, spec.config)
        self.policy = self.trainer.policy
        self.rooms = (*self.trainer.rooms, adapted.answers_at_once)
        for room in self.rooms:
            room.say = listener.note
        self.publisher = Publisher(adapted, self.policy, task, spec, folder, listener)
        self.validation: Sequence[Example] = up_to(
            task, "validation", spec.config.validation_examples, spec.config.seed
        )

    def run(self, registry: LocalRegistry) -> Trained:
        """Train what is left, evaluate, and publish the best checkpoint.

        Raises T2Error when no checkpoint was better than the base on the validation examples: nothing is published.
        """
        state = self._restore()
        if state is not None and self._ended(state) and state.best_step:
            before = self.publisher.published(state, registry) if self.team.leads else None
            if trained := self.team.told(before):
                return trained
        state = state or self._start()
        self.listener.stage("train", self.config.steps - state.step)
        while not self._ended(state):
            self._one_step(state)
        self.listener.stage("", 0)
        if state.step < self.config.steps:
            self.listener.note(
                f"ended early, after step {state.step}: none of the last {state.stale} validations found a better "
                f"checkpoint than {f'that of step {state.best_step}' if state.best_step else 'the base'}"
            )
        if state.best_step == 0:
            if self.team.leads:
                self.folder.finish("")
            raise T2Error(
                f"no checkpoint was better than the base on {len(self.validation)} validation examples "
                f"({state.base_accuracy:.1%}): nothing was published",
                hint="train for more --steps, or with another --learning-rate or --seed",
            )
        return self.publisher.publish(state, registry)

    def _ended(self, state: RunState) -> bool:
        """Tell whether the steps are done, or `patience` validations went by without a better checkpoint."""
        return state.step >= self.config.steps or 0 < self.config.patience <= state.stale

    def _start(self) -> RunState:
        self.listener.stage("validate the base", len(self.validation))
        accuracy = self._validate(self.policy.reference(), on_done=self.listener.advance)
        self.listener.stage("", 0)
        self.listener.note(f"base accuracy on {len(self.validation)} validation examples: {accuracy:.3f}")
        flat = self.policy.flat.detach()
        zeros = torch.zeros_like(flat)
        tensors = {"z": flat.clone(), "best": flat.clone(), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
        state = RunState(0, 0.0, 0, accuracy, accuracy, tensors)
        if self.team.leads:
            self.folder.save(state)
        return state

    def _restore(self) -> RunState | None:
        state = self.team.told(self.folder.load(self.policy.flat.numel()) if self.team.leads else None)
        if state is None:
            return None
        self.trainer.restore(state.step, state.tensors)
        for room, size in zip(self.rooms, state.at_once, strict=False):  # other sizes would round otherwise
            room.size = size
        if self.team.leads:
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
        if self.team.leads:
            self.folder.metrics.append(record)  # first: a resume cuts lines that the checkpoint does not know
        self._keep(state, validation)
        self.listener.step(record)

    def _keep(self, state: RunState, validation: float | None) -> None:
        """Checkpoint the step that was done; remember it if it is the best so far."""
        state.tensors["z"] = self.policy.flat.detach().clone()
        state.tensors.update(self.trainer.moments())
        if validation is not None:
            self.team.check_same(self.policy.flat)
            state.stale += 1
        if validation is not None and validation > state.best_accuracy:
            state.best_accuracy, state.best_step, state.stale = validation, state.step, 0
            state.tensors["best"] = state.tensors["z"]
        for room in self.rooms:
            room.size = self.team.least(room.size)
        state.at_once = [room.size for room in self.rooms]
        if self.team.leads:
            self.folder.save(state)

    def _validate(self, use: AbstractContextManager[None], on_done: Advance | None = None) -> float:
        with use:
            answers = answers_in_use(self.policy.text_model, self.task, self.validation, on_done=on_done)
        self.policy.release()
        return answers.accuracy


def check_examples(task: Task, config: TrainConfig) -> None:
    """Raise T2Error if the task has fewer questions than a run with `config` will ask for, or lacks their source.

    A run that ends for that after its last step would have been for nothing. Where questions come from files,
    fewer will do for validation and test: all there are.
    """
    task.examples("train", config.prompts_per_step, config.seed)
    up_to(task, "train", SHOWN_FROM, config.seed)
    up_to(task, "validation", config.validation_examples, config.seed)
    up_to(task, "test", config.evaluation_examples, EVALUATION_SEED)
