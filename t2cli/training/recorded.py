"""A training run as a manifest records it: its settings read back, and what comes of running them again.

Settings are read by name. One that this t2 does not know is an error, for the run would be another. One that was not
there yet when the manifest was written has the value at which it does nothing, where there is one, else today's
default, and the caller is told which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from types import UnionType
from typing import NamedTuple, Union, get_args, get_origin, get_type_hints

from t2cli.config import PRESETS, TrainConfig
from t2cli.errors import CorruptArtifactError, T2Error, UsageError
from t2cli.models.catalog import CATALOG
from t2cli.registry.compare import compare, shifts
from t2cli.registry.entry import ExpertEntry
from t2cli.registry.manifest import EvaluationRecord, ExpertManifest, TrainingRecord
from t2cli.registry.zfile import read_arrays
from t2cli.tasks.base import Task, origin

RESULTS = ("best_step",)  # what a run found; recorded among its settings
CIRCUMSTANCES = ("processes", "basis")  # what else decides how numbers are rounded; recorded there, too
SOURCES = ("data", "reward")  # where its questions were from, and who judged, where that was not the task alone
NO_SETTINGS = RESULTS + CIRCUMSTANCES + SOURCES
COUNTS = (  # settings that must not be 0; none is negative
    *("steps", "prompts_per_step", "group", "micro_batch"),
    *("validate_every", "validation_examples", "evaluation_examples"),
)
WITHOUT: dict[str, object] = {"rounds": 1, "stuck": 0.0, "max_relative_step": 0.0, "retries": 0}  # as before they were
NOT_RECORDED = "not recorded"


class Settings(NamedTuple):
    """The settings of a recorded run, and those of them that were not recorded (see above), with their values."""

    config: TrainConfig
    defaults: dict[str, object]


@dataclass(frozen=True)
class Difference:
    """Something that was otherwise when an expert was trained: a version, the device, the questions."""

    what: str
    recorded: str
    now: str


@dataclass(frozen=True)
class Reproduction:
    """An expert beside the one that its recorded run gives now.

    `within` tells whether the new gain lies in the recorded 95 % interval, None where none was recorded. Of z - 1:
    its cosine (None where one of them is the base) and root mean squares.
    """

    recorded: EvaluationRecord
    now: EvaluationRecord
    within: bool | None
    identical: bool  # every number of z, bit for bit
    cosine: float | None
    rms_recorded: float
    rms_now: float
    rms_difference: float
    differences: tuple[Difference, ...]

    @property
    def reproduces(self) -> bool:
        """Tell whether the expert came out again: its gain does, or without an interval its very numbers."""
        return self.identical if self.within is None else self.within


def settings_of(training: TrainingRecord, where: str) -> Settings:
    """Return the settings of a recorded run; `where` names the expert in errors.

    Raises T2Error naming the settings that this t2 does not know, CorruptArtifactError for one that cannot be.
    """
    types = get_type_hints(TrainConfig)
    recorded = {key: value for key, value in training.config.items() if key not in NO_SETTINGS}
    given = {**recorded, "preset": training.preset, "seed": training.seed}
    if unknown := sorted(set(given) - set(types)):
        raise T2Error(
            f"{where} was trained by another version of t2, with settings that this one does not know: "
            + ", ".join(unknown),
            hint=f"use the version that it was trained with: {training.versions.get('t2cli', NOT_RECORDED)}",
        )
    for key, value in given.items():
        given[key] = value = tuple(value) if isinstance(value, list) else value
        if not may_be(value, types[key]) or (isinstance(value, int | float) and value < (key in COUNTS)):
            raise CorruptArtifactError(
                f"{where}: training.config.{key} must not be {value!r:.60}",
                hint="no training can have recorded that: fetch the expert again, or ask who made it",
            )
    basis = PRESETS.get(training.preset, TrainConfig())
    try:
        config = replace(basis, **{**WITHOUT, **given})  # type: ignore[arg-type]
        if config.adapter != "svf":
            raise ValueError(f"adapter must be svf for an expert, not {config.adapter}")
    except ValueError as error:
        raise CorruptArtifactError(
            f"{where}: training.config cannot be: {error}",
            hint="no training can have recorded that: fetch the expert again, or ask who made it",
        ) from error
    missing = [field.name for field in fields(TrainConfig) if field.name not in given]
    return Settings(config, {name: getattr(config, name) for name in missing})


def revisions_of(training: TrainingRecord) -> dict[str, str]:
    """Return the commits of the Hub data sets that a recorded run read: dataset -> commit."""
    named = [file for file in _files_of(training) if {"dataset", "revision"} <= set(file)]
    return {str(file["dataset"]): str(file["revision"]) for file in named}


def _files_of(training: TrainingRecord) -> list[dict[str, object]]:
    """Return what a manifest says of each file that was read, whatever somebody's manifest holds there."""
    files = training.config.get("data")
    return [file for file in files if isinstance(file, dict)] if isinstance(files, list) else []


def check_sources(training: TrainingRecord, task: Task, where: str) -> None:
    """Raise UsageError unless the task has the very files, and its own judge, that the recorded run had."""
    if reward := training.config.get("reward"):
        raise UsageError(
            f"{where} was trained with a reward of somebody's own, {reward!s:.80}: its manifest does not hold the code",
            hint="train it anew with t2 train --reward, and compare the two with t2 eval",
        )
    recorded, now = training.config.get("data", []), origin(task).get("data", [])
    if recorded != now:
        files = [file.get("file") for file in _files_of(training)]
        raise UsageError(
            f"{where} was trained on other files than the task has now: {', '.join(map(str, files)) or 'none'}",
            hint="name those with --data, or a task file that reads them with --task",
        )


def learned_from(training: TrainingRecord, task: Task) -> list[str]:
    """Return the files of the task's test questions that a recorded run had, wholly or in part, for other splits.

    A file that both divide is no such file: its test questions were test questions then. Files are known by their
    SHA-256, so that their names, and the task's, do not matter; those of Hub data sets as well.
    """
    before = {(str(file.get("sha256")), str(file.get("split"))) for file in _files_of(training)}
    asked = _tested(task)
    others = {"test": ("train", "validation", "all"), "all": ("train", "validation")}
    return [file["file"] for file in asked if any((file["sha256"], split) in before for split in others[file["split"]])]


def perhaps_learned_from(training: TrainingRecord, task: Task) -> list[str]:
    """Return the files of the task's test questions of which nobody knows whether a recorded run had questions of them.

    These are other files than the run read for the same task: the Hub's data set and what was downloaded from it hold
    the same questions in other bytes.
    """
    before = {str(file.get("sha256")) for file in _files_of(training)}
    if not before or training.task != task.name:
        return []
    return [file["file"] for file in _tested(task) if file["sha256"] not in before]


def _tested(task: Task) -> list[dict[str, str]]:
    """Return what there is to say of each file that holds test questions of a task."""
    files = origin(task).get("data")
    return [file for file in (files if isinstance(files, list) else []) if file["split"] in ("test", "all")]


def base_of(entry: ExpertEntry) -> str:
    """Return the recorded base as --base would name it; UsageError where the manifest cannot say where it is."""
    base = entry.manifest.base
    if base.name in CATALOG and CATALOG[base.name].source == base.source:
        return base.name
    if base.source.startswith("hub:"):
        return base.source.removeprefix("hub:") + (f"@{base.revision}" if base.revision else "")
    raise UsageError(
        f"{entry.reference} was trained on {base.folder}, and its manifest does not say where that is",
        hint="name the base's folder: --base FOLDER",
    )


def may_be(value: object, declared: object) -> bool:
    """Tell whether `value` may be that of a field declared so; a float may be written as an int."""
    origin = get_origin(declared)
    if origin in (Union, UnionType):
        return any(may_be(value, each) for each in get_args(declared))
    if isinstance(value, bool) or declared is bool:
        return isinstance(value, bool) and declared is bool
    if declared is float:
        return isinstance(value, int | float)
    kind = origin or declared
    return isinstance(value, kind) if isinstance(kind, type) else value in get_args(declared)


def evaluation_of(manifest: ExpertManifest, training: TrainingRecord) -> EvaluationRecord | None:
    """Return the recorded evaluation on the task that an expert was trained on, None if there is none."""
    return next((row for row in manifest.evaluation if row.task == training.task), None)


def beside(entry: ExpertEntry, again: ExpertEntry, recorded: EvaluationRecord, now: EvaluationRecord) -> Reproduction:
    """Return how the expert `again` compares with `entry`, whose recorded run gave it."""
    import numpy

    z, new = (read_arrays(each.z_bytes(), str(each.path)) for each in (entry, again))
    total = compare(shifts(z, new), None).total
    interval = recorded.gain_ci95
    return Reproduction(
        recorded=recorded,
        now=now,
        within=None if interval is None else interval[0] <= now.gain <= interval[1],
        identical=z.keys() == new.keys() and all(numpy.array_equal(z[name], new[name]) for name in z),
        cosine=total.cosine,
        rms_recorded=total.rms_a,
        rms_now=total.rms_b,
        rms_difference=total.rms_difference,
        differences=tuple(differences(entry.manifest, again.manifest)),
    )


def differences(then: ExpertManifest, now: ExpertManifest) -> Iterator[Difference]:
    """Yield what else was not the same in two runs of the same settings."""
    was, is_ = _circumstances(then), _circumstances(now)
    for what in dict.fromkeys([*was, *is_]):
        before, after = was.get(what, NOT_RECORDED), is_.get(what, NOT_RECORDED)
        if before != after:
            yield Difference(what, before, after)


def _circumstances(manifest: ExpertManifest) -> dict[str, str]:
    training = manifest.training
    assert training is not None
    threads = {} if training.threads is None else {"threads": str(training.threads)}
    others = {name: str(training.config[name]) for name in CIRCUMSTANCES if name in training.config}
    # The few that a manifest shows stand for all: the same task and seed give the same ones.
    questions = {"training questions": " | ".join(manifest.examples)} if manifest.examples else {}
    return {**training.versions, "device": training.device, **threads, **others, **questions}
