"""`--data`: files on this machine that take the place of a task's own source.

--data FILE                       questions of every split, divided by the hash of their words
--data train=FILE --data test=FILE    (and validation=FILE)
--data test=FILE                  questions to evaluate on, none to train on
--data FOLDER                     the files in it whose names say so, as train.jsonl or ARC-Easy-Test.jsonl
--data other=FILE                 the general questions of a task that tells categories apart (t2cli.tasks.general)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from t2cli.errors import NotFoundError, UsageError
from t2cli.paths import expanded
from t2cli.registry.dispatcher_record import OTHER
from t2cli.tasks.sampling import SPLITS

if TYPE_CHECKING:
    from t2cli.tasks.spec import TaskSpec

SUFFIXES = (".jsonl", ".json", ".parquet")
# What a file's name may call a split; where there is no test file, what some call "dev" is held out.
_WORDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


def parse_data(values: Sequence[str], task: str) -> dict[str, str]:
    """Return split -> absolute path of what `--data` was given, "file" for a file of every split; {} for nothing.

    `task` is the task's name, whose words choose among the files of a folder. Raises UsageError for values that
    do not go together and for a folder where no file fits, NotFoundError for what does not exist.
    """
    found: dict[str, str] = {}
    for value in values:
        split, separator, name = value.partition("=")
        if not separator or split not in (*SPLITS, OTHER):
            split, name = "file", value
        path = expanded(name).resolve()
        if not path.exists():
            raise NotFoundError(f"--data: there is no {name}", hint="a file, a folder, or train=FILE and test=FILE")
        if split != "file" and not path.is_file():
            raise UsageError(f"--data {value}: that is no file", hint="a folder stands alone: --data FOLDER")
        new = _of_folder(path, task) if path.is_dir() else {split: path}
        if twice := set(new) & set(found):
            raise UsageError(f"--data: {sorted(twice)[0]} is given twice", hint="give each once")
        found |= {key: str(each) for key, each in new.items()}
    if OTHER in found and len(found) > 1:
        raise UsageError(f"--data: {OTHER}=FILE stands alone", hint="give the others in the task's file")
    if found and not {"file", OTHER, "test"} & set(found):
        raise UsageError("--data needs train=FILE and test=FILE, or one file of all questions", hint="give both")
    if "file" in found and len(found) > 1:
        raise UsageError("--data: a file of all questions stands alone", hint="or give train=FILE and test=FILE")
    return found


def _of_folder(folder: Path, task: str) -> dict[str, Path]:
    """Return split -> file of a folder; "file" where there is one that names no split, or train alone.

    A file that names a split to hold out is never one of all questions, without a train file neither.
    """
    everything = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    splits_alone = [path for path in everything if set(_words(path.stem)) <= set().union(*_WORDS.values())]
    own = _after(task, [path for path in everything if path not in splits_alone])
    files = [*own, *splits_alone] if own else everything  # not those that are named after other tasks
    found = {split: _only(_named(files, words), folder, split) for split, words in _WORDS.items()}
    chosen = {split: path for split, path in found.items() if path is not None}
    if "test" not in chosen and "validation" in chosen:
        chosen["test"] = chosen.pop("validation")
    is_whole = ({"train", "test"} <= set(chosen) and set(own) <= set(chosen.values())) or len(chosen) == len(files)
    if not chosen or not is_whole or len(set(chosen.values())) < len(chosen):
        if len(files) == 1:
            return {"file": files[0]}
        names = ", ".join(path.name for path in files) or f"none that ends in {', '.join(SUFFIXES)}"
        raise UsageError(
            f"--data: it is not clear which files of {folder} the task {task} is to read: it holds {names}",
            hint="name the files: --data train=FILE --data test=FILE",
        )
    return chosen if "test" in chosen else {"file": chosen["train"]}


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+|[0-9]+", name.lower())


def _after(task: str, files: Sequence[Path]) -> list[Path]:
    """Return the files named after a task: with its first word, and as many of the others as any has."""
    words = _words(task)
    shared = {path: len(set(words) & set(_words(path.stem))) for path in _named(files, words[:1])}
    most = max(shared.values(), default=0)
    return [path for path, count in shared.items() if count == most]


def _named(files: Iterable[Path], words: Sequence[str]) -> list[Path]:
    return [path for path in files if set(words) & set(_words(path.stem))]


def _only(files: Sequence[Path], folder: Path, split: str) -> Path | None:
    if len(files) > 1:
        raise UsageError(
            f"--data: {len(files)} files of {folder} could be {split}: {', '.join(path.name for path in files)}",
            hint="name the files: --data train=FILE --data test=FILE",
        )
    return files[0] if files else None


def with_data(spec: TaskSpec, data: Mapping[str, str]) -> TaskSpec:
    """Return the task with its questions read from `data` (what `parse_data` returned).

    Raises UsageError for a task that makes its questions, or mixes those of several sources.
    """
    from t2cli.tasks.spec import READS, SOURCE_OF_CATEGORIES

    if (spec.source == SOURCE_OF_CATEGORIES) != (OTHER in data):
        hint = "give other=FILE, its general questions" if OTHER not in data else "other=FILE is for dispatch"
        raise UsageError(f"the task {spec.name} does not read its questions from such --data", hint=hint)
    if OTHER in data:
        from t2cli.tasks.dispatch import from_file

        *rows, general = spec.mixture
        return replace(spec, mixture=(*rows, from_file(general, data[OTHER])))
    if spec.source not in READS:
        raise UsageError(
            f"the task {spec.name} makes its questions itself: it takes no --data",
            hint="write a task of your own that reads the file (README: A task of your own)",
        )
    if len(spec.mixture) > 1:
        raise UsageError(
            f"the task {spec.name} mixes {len(spec.mixture)} sources: --data cannot replace them",
            hint="change the paths in its file",
        )
    (row,) = spec.mixture
    # Of math-500 there is a test file only, which the task divides. An expert trained on a part of it must not be
    # evaluated on all of it because the same file comes from a folder.
    divides = _named([Path(str(row.config.get("file", "")))], _WORDS["test"])
    data = {"file": data["test"]} if divides and set(data) == {"test"} else data
    return replace(spec, source="jsonl", mixture=(replace(row, config=MappingProxyType(dict(data))),))


def pinned(spec: TaskSpec, revisions: Mapping[str, str]) -> TaskSpec:
    """Return the task with its data sets on the Hub at the commits that `revisions` (dataset -> commit) names.

    So are those of the tasks that it tells apart.
    """
    from t2cli.tasks.spec import SOURCE_OF_CATEGORIES

    rows = (
        replace(row, config=MappingProxyType({**row.config, "revision": revisions[row.dataset]}))
        if spec.source in ("hub", SOURCE_OF_CATEGORIES) and row.dataset in revisions
        else row
        for row in spec.mixture
    )
    return replace(spec, mixture=tuple(rows), revisions=revisions)
