"""What a call of t2 train asks for: the task, the settings, the run to go on with."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from t2cli.cli.options import DEFAULT_BASE, check_judge
from t2cli.cli.output import Output
from t2cli.config import TrainConfig
from t2cli.errors import UsageError

if TYPE_CHECKING:
    from t2cli.tasks.base import Task
    from t2cli.training.checkpoint import RunFolder, RunSpec
    from t2cli.training.questions import Questions


LABELS = "labels"  # the trainer of tasks whose answers are categories
OPTIONS = {"selection": "targets"}  # of settings whose option has another name


class Request(NamedTuple):
    """A run that was asked for; `home` is the name of the base's folder."""

    task: Task
    spec: RunSpec
    home: str
    unsafe_code: bool


def requested(
    task: str,
    data: list[str],
    reward: str,
    name: str,
    base: str,
    config: TrainConfig,
    out: Output,
    *,
    unsafe_code: bool,
    resume: bool,
) -> Request:
    """Return what a run is asked to do.

    Raises for names there are not, and for a task whose answers are programs where there is no sandbox for them; with
    `resume` it is the run that says who judges them.
    """
    from t2cli.models.catalog import locate
    from t2cli.models.identity import identify
    from t2cli.paths import expanded
    from t2cli.registry.reference import check_new_name
    from t2cli.tasks.base import load_spec, load_task, task_names
    from t2cli.tasks.data_files import parse_data
    from t2cli.tasks.own_reward import OwnReward, locate_reward
    from t2cli.training.checkpoint import RunSpec

    files = parse_data(data, load_spec(task).name)
    place_of_reward = locate_reward(reward) if reward else {}
    judge = OwnReward.load(place_of_reward) if reward else None
    known_task = load_task(task, files, reward=judge, unsafe_code=unsafe_code)
    if not resume:
        check_judge([known_task], out)
    check_new_name(expert := name or known_task.name)
    place = task if task in task_names() else str(expanded(task).resolve())  # resumed from anywhere
    identity = identify(locate(base, quiet=out.quiet), quiet=out.quiet)
    spec = RunSpec(place, expert, base, identity.weights, config, files, place_of_reward)
    return Request(known_task, spec, identity.folder_name, unsafe_code)


def trainer_of(task: str, asked: str) -> str:
    """Return the trainer for a task: `labels` where its answers are categories, else the one that was asked for.

    Raises UsageError for one that does not go with the task.
    """
    from t2cli.tasks.base import load_spec
    from t2cli.tasks.spec import SOURCE_OF_CATEGORIES

    categories = load_spec(task).source == SOURCE_OF_CATEGORIES
    if categories and asked == "evolution":
        raise UsageError(f"--trainer evolution is not for {task}, whose answers are categories", hint="leave it out")
    if not categories and asked == LABELS:
        raise UsageError(
            f"--trainer labels is for tasks whose answers are categories, not for {task}", hint="leave it out"
        )
    return LABELS if categories else asked


def check_device(config: TrainConfig, device: str) -> None:
    """Raise UsageError for a LoRA of a base that is spread: its factors are one vector, which lies on one device."""
    from t2cli.models.base import SPREAD

    if config.adapter == "lora" and device == SPREAD:
        raise UsageError(
            "--device spread puts the base on several devices, and a LoRA is trained on one",
            hint="leave out --device spread, or train with --adapter svf",
        )


def settings_of(folder: RunFolder, asked: RunSpec, given: Mapping[str, object], out: Output) -> RunSpec:
    """Return what the run to resume was asked to do.

    Raises UsageError if that was another task; warns of settings that were `given` and are not what it began with.
    """
    from t2cli.tasks.own_reward import is_changed

    spec = folder.spec()
    if spec.task != asked.task:
        raise UsageError(
            f"the run in {folder.path} is for the task {spec.task}, not for {asked.task}",
            hint=f"resume it with --task {shlex.quote(spec.task)}, or leave out --resume to start another run",
        )
    ignored = [
        f"--{OPTIONS.get(name, name).replace('_', '-')} {value}"
        for name, value in given.items()
        if value != getattr(spec.config, name)
    ]
    if asked.data and asked.data != spec.data:
        if spec.questions:  # the files may have moved; that they ask the same is checked where they are read
            spec = replace(spec, data=asked.data)
        else:
            ignored.append("--data")
    if asked.reward and any(asked.reward[key] != spec.reward.get(key) for key in ("name", "folder")):
        ignored.append("--reward")
    if spec.reward and is_changed(spec.reward):
        out.warn(
            f"the code of the reward {spec.reward['name']} has changed since the run began: "
            "what it says from now on is compared with what it said before"
        )
    if ignored:
        out.warn(f"{' and '.join(ignored)} ignored: a run goes on with the settings it began with")
    return spec


def task_of(spec: RunSpec, unsafe_code: bool) -> Task:
    """Return the task of a run that goes on, with the files and the commits it began with."""
    from t2cli.tasks.base import load_task
    from t2cli.tasks.own_reward import OwnReward

    judge = OwnReward.load(spec.reward) if spec.reward else None
    return load_task(spec.task, spec.data, reward=judge, revisions=spec.revisions, unsafe_code=unsafe_code)


def looked_at(task: Task, spec: RunSpec, folder: RunFolder | None) -> Questions:
    """Return what a run asks. Raises UsageError unless the one in `folder`, if any, began with the same."""
    from t2cli.training.questions import check_same, questions_of

    questions = questions_of(task, spec.config)
    if folder is not None:
        check_same(folder.spec().questions, questions.digest, task, folder.path)
    return questions


def resuming(
    spec: RunSpec, default_name: str, registry: Path | None, device: str, unsafe_code: bool, *, moved: bool
) -> str:
    """Return the command that goes on with a run, from any folder; `moved`: with its files where they are now."""
    words = ["t2", "train", "--task", spec.task]
    words += data_words(spec.data) if moved else []
    words += ["--name", spec.expert] if spec.expert != default_name else []
    words += ["--base", spec.base] if spec.base != DEFAULT_BASE else []
    return shlex.join([*words, *place_words(registry, device, unsafe_code), "--resume"])


def data_words(data: Mapping[str, str]) -> list[str]:
    """Return the options that name these files."""
    given = [file if split == "file" else f"{split}={file}" for split, file in data.items()]
    return [word for value in given for word in ("--data", value)]


def place_words(registry: Path | None, device: str, unsafe_code: bool) -> list[str]:
    """Return the options that a run does not record, as they were given: where it writes, computes and judges."""
    from t2cli.paths import expanded

    words = ["--registry", str(expanded(registry).resolve())] if registry is not None else []
    words += ["--device", device] if device != "auto" else []
    return words + (["--unsafe-code"] if unsafe_code else [])
