"""A training run from start to published expert: steps, validation, checkpoints, evaluation.

Source: math.md 5. Validation examples choose the checkpoint; the evaluation that is stored uses test examples, which
share no question with either.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch

from t2cli.errors import DivergedError, T2Error
from t2cli.evaluation.evaluate import Advance, Answers, answers_in_use
from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import LocalRegistry
from t2cli.svf.evolution import seed_of_step
from t2cli.tasks.base import Example, Task, up_to
from t2cli.training.algorithms import algorithm_of
from t2cli.training.checkpoint import RunFolder, RunSpec, RunState
from t2cli.training.metrics import Listener, StepRecord
from t2cli.training.publish import Publisher, Trained
from t2cli.training.questions import Lessons
from t2cli.training.safety import CollapseWatch, fallen, set_back
from t2cli.training.trainer import StepResult


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
        self.watch = CollapseWatch()
        self.lessons = Lessons(task, spec.config)
        self.publisher = Publisher(adapted, self.policy, task, spec, folder, listener)
        self.validation: Sequence[Example] = up_to(
            task, "validation", spec.config.validation_examples, spec.config.seed
        )

    def run(self, registry: LocalRegistry) -> Trained:
        """Train what is left, evaluate, and publish the best checkpoint.

        Raises T2Error when no checkpoint was better than the base on the validation examples: nothing is published.
        """
        kept = self.folder.load() if self.team.leads else None
        state = self.train()
        if state.best_step and self.team.told(kept is not None and self._ended(kept)):  # it was there to publish only
            before = self.publisher.published(state, registry) if self.team.leads else None
            if trained := self.team.told(before):
                return trained
        if state.best_step == 0:
            if self.team.leads:
                self.folder.finish("")
            raise T2Error(
                f"no checkpoint was better than the base on {len(self.validation)} validation examples "
                f"({state.base_accuracy:.1%}): nothing was published",
                hint="train for more --steps, or with another --learning-rate or --seed",
            )
        return self.publisher.publish(state, registry)

    def train(self) -> RunState:
        """Make the steps that are left, from the last checkpoint or from the start; return where the run ended."""
        state = self._restore() or self._start()
        self.listener.stage("train", self.config.steps - state.step)
        while not self._ended(state):
            self._one_step(state)
        self.listener.stage("", 0)
        if state.step < self.config.steps and state.collapses <= self.config.retries:
            self.listener.note(
                f"ended early, after step {state.step}: none of the last {state.stale} validations found "
                f"anything better than {_best(state)}"
            )
        return state

    def _ended(self, state: RunState) -> bool:
        """Tell whether the steps are done, `patience` validations found nothing better, or retries are used up."""
        done, stale = state.step >= self.config.steps, 0 < self.config.patience <= state.stale
        return done or stale or state.collapses > self.config.retries

    def _start(self) -> RunState:
        self.listener.stage("validate the base", len(self.validation))
        answers = self._validate(self.policy.reference(), on_done=self.listener.advance)
        accuracy = answers.accuracy
        self.listener.stage("", 0)
        self.listener.note(f"base accuracy on {len(self.validation)} validation examples: {accuracy:.3f}")
        flat = self.policy.flat.detach()
        zeros = torch.zeros_like(flat)
        tensors = {"z": flat.clone(), "best": flat.clone(), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
        state = RunState(0, 0.0, 0, accuracy, accuracy, tensors, at_once=self._sizes())
        state.best_right = list(answers.right)
        if self.team.leads:
            self.folder.save(state)
        return state

    def _restore(self) -> RunState | None:
        state = self.team.told(self.folder.load(self.policy.flat.numel()) if self.team.leads else None)
        if state is None:
            return None
        self.trainer.restore(state)
        for room, size in zip(self.rooms, state.at_once, strict=False):  # other sizes would round otherwise
            room.size = size
        if self.team.leads:
            self.folder.metrics.cut_after(state.step)
        self.watch = CollapseWatch(self.team.told(self.folder.metrics.read() if self.team.leads else []))
        self.listener.note(f"resuming after step {state.step} of {self.config.steps}")
        return state

    def _one_step(self, state: RunState) -> None:
        config, started = self.config, time.monotonic()
        lessons = self.lessons.after(state.lessons)
        generator = torch.Generator().manual_seed(seed_of_step(config.seed, state.step))
        step, answers, collapse, setback = state.step + 1, None, "", ""
        try:
            result = self.trainer.update(self.task, lessons, generator)
            suspicion = self.watch.see(result.reward, result.kl, result.rollouts)
            if suspicion or step % config.validate_every == 0 or step == config.steps:
                answers = self._validate(self.policy.answering())
                collapse, setback = self._verdict(state, answers, suspicion)
        except DivergedError as error:  # in all processes, if in one
            result, collapse = StepResult.lost(), error.message
        seconds = time.monotonic() - started
        state.step, state.seconds, state.heat = step, state.seconds + seconds, self.trainer.heat
        state.lessons = self.lessons.taken
        record = StepRecord(
            step=step,
            steps=config.steps,
            reward=result.reward,
            kl=result.kl,
            informative=result.informative,
            gradient_norm=result.gradient_norm,
            learning_rate=result.learning_rate,
            tokens=result.tokens,
            tokens_per_second=result.tokens / max(1e-9, result.sampling_seconds),
            seconds=seconds,
            elapsed=state.seconds,
            eta=state.seconds / step * (config.steps - step),
            validation=None if answers is None else answers.accuracy,
            rollouts=result.rollouts,
            temperature=result.temperature,
            collapse=collapse or setback,
        )
        if self.team.leads:
            self.folder.metrics.append(record)  # first: a resume cuts lines that the checkpoint does not know
        if collapse or setback:
            self._fall_back(state, "collapse" if collapse else "setback", collapse or setback)
        self._keep(state, answers)
        self.listener.step(record)

    def _verdict(self, state: RunState, answers: Answers, suspicion: str) -> tuple[str, str]:
        """Return why a validation shows a collapse, and why a setback, each "" where it does not.

        A `suspicion` comes from the rollouts of a few steps, of which those of a question are much alike: what they
        say may be chance, and validation confirms it or not. Where no step would follow there is no setback.
        """
        if fell := fallen(state.best_accuracy, answers.accuracy, len(self.validation)):
            return suspicion or fell, ""
        worse = set_back(state.best_right, answers.right) if state.best_right else ""
        if suspicion and worse:
            return suspicion, ""
        if suspicion:
            self.watch = CollapseWatch()
            self.listener.note(f"step {state.step + 1}: {suspicion}, but validation did not: going on")
        last = state.collapses >= self.config.retries or state.step + 1 == self.config.steps
        return "", "" if last else worse

    def _fall_back(self, state: RunState, what: str, why: str) -> None:
        """Give up the policy as it is, for the best checkpoint and half the learning rate."""
        state.collapses, state.restarted = state.collapses + 1, state.step
        self.watch = CollapseWatch()
        state.tensors["z"] = state.tensors["best"]
        self.trainer.restore(state)
        over = state.collapses > self.config.retries
        then = "the run ends with" if over else f"going on at {state.caution:.2g} of the learning rate from"
        self.listener.note(f"{what} at step {state.step}: {why}; {then} {_best(state)}")

    def _keep(self, state: RunState, answers: Answers | None) -> None:
        """Checkpoint the step that was done; remember it if it is the best so far (None: it was not validated)."""
        state.tensors["z"] = self.policy.flat.detach().clone()
        state.tensors.update(self.trainer.moments())
        if answers is not None:
            self.team.check_same(self.policy.flat)
            state.stale += 1
        if answers is not None and (answers.accuracy > state.best_accuracy or self._settled(state, answers)):
            state.best_accuracy, state.best_step, state.stale = answers.accuracy, state.step, 0
            state.best_right, state.tensors["best"] = list(answers.right), state.tensors["z"]
        state.at_once = self._sizes()
        if self.team.leads:
            self.folder.save(state)

    def _settled(self, state: RunState, answers: Answers) -> bool:
        """Tell whether the last step's policy is better than the base, and not measurably worse than the best one.

        It is taken then: it has learned from all questions, its last steps are short where the rate decays, and
        validation is only good to some points. On other questions it was better than the one with the best of five
        validations in six of the eight runs on math in which they differ, by 3 points on average.
        """
        if state.step < self.config.steps or self.config.schedule == "constant" or not state.best_right:
            return False
        if state.restarted == state.step:  # the answers are those of a policy that was given up just now
            return False
        return answers.accuracy > state.base_accuracy and not set_back(state.best_right, answers.right)

    def _sizes(self) -> list[int]:
        """Return how much goes through the model at once from now on: what every process has memory for."""
        for room in self.rooms:
            least = self.team.least(room.size)
            if least < room.size:
                self.listener.note(f"memory ran out in another process: {least} {room.things} at once from now on")
            room.size = least
        return [room.size for room in self.rooms]

    def _validate(self, use: AbstractContextManager[None], on_done: Advance | None = None) -> Answers:
        with use:
            answers = answers_in_use(self.policy.text_model, self.task, self.validation, on_done=on_done)
        self.policy.release()
        return answers


def _best(state: RunState) -> str:
    return f"the checkpoint of step {state.best_step}" if state.best_step else "the base"
