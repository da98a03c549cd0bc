"""What a run makes of its best checkpoint: an evaluation on held-out examples, and an expert in the registry."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import asdict, dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path

import torch

from t2cli.errors import T2Error
from t2cli.evaluation.evaluate import compare_two, in_use
from t2cli.models.adapted import AdaptedModel
from t2cli.models.basis_cache import basis_files_in_use, singular_values
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.manifest import (
    BaseRecord,
    DispatcherRecord,
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
from t2cli.tasks.base import Task, origin, up_to
from t2cli.tasks.dispatch import label_set_of
from t2cli.training.adapter_folder import save_adapter
from t2cli.training.checkpoint import RunFolder, RunSpec, RunState
from t2cli.training.dispatcher import VALIDATION_EXAMPLES, measured
from t2cli.training.metrics import Listener
from t2cli.training.policy import Policy, Saves, SVFPolicy

SHOWN, SHOWN_FROM, LONGEST_SHOWN = 4, 64, 300  # questions in a manifest, out of how many, and characters of each
SIGNIFICANT = 0.05  # McNemar's p of an expert that must not be published
EVALUATION_SEED = 0  # the same questions for every run, so that experts of a task can be compared


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


class Publisher:
    """Evaluates the best checkpoint of a run and puts it into the registry, or an adapter into the run's folder."""

    def __init__(
        self, adapted: AdaptedModel, policy: Policy, task: Task, spec: RunSpec, folder: RunFolder, listener: Listener
    ) -> None:
        self.adapted = adapted
        self.policy = policy
        self.task = task
        self.spec = spec
        self.folder = folder
        self.listener = listener

    def publish(self, state: RunState, registry: LocalRegistry) -> Trained:
        """Compare the best policy with the base on test examples, and publish it with what was measured.

        Raises T2Error for one that is worse than the base, which chance does not explain: it is not published.
        """
        evaluation = self._evaluation(state.tensors["best"])
        team = self.adapted.team
        if evaluation.gain < 0 and evaluation.mcnemar_p < SIGNIFICANT:
            if team.leads:
                self.folder.finish("")
            raise T2Error(
                f"the best checkpoint is worse than the base on {evaluation.n} held-out questions "
                f"({evaluation.expert_accuracy:.1%} against {evaluation.base_accuracy:.1%}): nothing was published",
                hint="train with a smaller --learning-rate, with another --seed, or for fewer --steps",
            )
        dispatcher = self._dispatcher(state.tensors["best"])
        trained = team.told(self._put(state, evaluation, dispatcher, registry) if team.leads else None)
        assert trained is not None
        return trained

    def _evaluation(self, best: torch.Tensor) -> EvaluationRecord:
        examples = up_to(self.task, "test", self.spec.config.evaluation_examples, EVALUATION_SEED)
        self.listener.stage(f"evaluate on {len(examples)} test examples", 2 * len(examples))
        base = in_use(self.policy.text_model, self.policy.reference)
        trained = in_use(self.policy.text_model, lambda: self.policy.answering(best), self.spec.expert)
        heard = self.listener.advance
        evaluation = compare_two(self.task, examples, base, trained, split="test", seed=EVALUATION_SEED, on_done=heard)
        self.listener.stage("", 0)
        self.policy.release()
        return evaluation

    def _dispatcher(self, best: torch.Tensor) -> DispatcherRecord | None:
        """Return what a manifest says of the best policy as a dispatcher, None for a task of another kind."""
        if (label_set := label_set_of(self.task)) is None:
            return None
        config = self.spec.config
        validation = up_to(self.task, "validation", VALIDATION_EXAMPLES, config.seed)
        test = up_to(self.task, "test", config.evaluation_examples, EVALUATION_SEED)
        with self.policy.answering(best):
            record = measured(self.policy.text_model, self.task, label_set, validation, test)
        self.policy.release()
        return record

    def _put(
        self,
        state: RunState,
        evaluation: EvaluationRecord,
        dispatcher: DispatcherRecord | None,
        registry: LocalRegistry,
    ) -> Trained:
        if isinstance(self.policy, Saves):
            adapter = save_adapter(self.folder, self.policy, state.tensors["best"], evaluation)
            self.folder.finish("")
            return Trained(None, state.step, state.seconds, evaluation, adapter)
        manifest = replace(self._manifest(state, evaluation), dispatcher=dispatcher)
        if dispatcher is not None:
            manifest = replace(manifest, kind="dispatcher")
        entry = registry.put(manifest, z_to_bytes(self._z_of(state)))
        self.folder.finish(entry.reference)
        return Trained(entry, state.step, state.seconds, evaluation)

    def _z_of(self, state: RunState) -> ZVectors:
        """Return the best z of an SVF run: what is published are the effective factors, however they were trained."""
        assert isinstance(self.policy, SVFPolicy)
        return self.policy.z_of(state.tensors["best"].to(self.policy.flat.device))

    def published(self, state: RunState, registry: LocalRegistry) -> Trained | None:
        """Return what this run published before it was killed; it must not be published twice."""
        if not isinstance(self.policy, SVFPolicy):
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
        config, task = self.spec.config, self.task
        basis = basis_files_in_use(self.adapted.base.identity, self.adapted.targets).dtype
        circumstances = {"processes": self.adapted.team.size, "basis": basis}
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
                config={**settings, "best_step": state.best_step, **circumstances, **origin(task)},
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
