"""The folder of a training run, and its checkpoint: enough to go on as if nothing had happened.

    $T2_HOME/runs/<base>-<digest>/<expert>/<number>/
        run.json              what was asked for; written once
        state.safetensors     z, the best z, the optimiser's moments, and the counters; replaced after every step
        metrics.jsonl         a line per step
        tensorboard/          the same as events, where they were asked for
        expert.txt            the reference of the published expert, when the run is finished

Random numbers need no state: those of a step come from the seed and the step's number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from t2cli.config import TrainConfig
from t2cli.errors import CorruptArtifactError, NotFoundError, T2Error, UsageError
from t2cli.files import clear_temporaries, write_atomic
from t2cli.paths import runs_dir
from t2cli.training.metrics import MetricsFile

if TYPE_CHECKING:
    import torch

FORMAT = "t2.run/1"
TENSORS = ("z", "best", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class RunSpec:
    """What a run was asked to do."""

    task: str  # a built-in name, or the path of a task file
    expert: str
    base: str  # as given by the user
    weights: str  # digest of the base
    config: TrainConfig
    data: dict[str, str] = field(default_factory=dict)  # --data: split -> absolute path
    reward: dict[str, str] = field(default_factory=dict)  # --reward: its name, and the folder it is imported from
    revisions: dict[str, str] = field(default_factory=dict)  # data sets on the Hub: name -> commit
    questions: str = ""  # digest of what is asked (training/questions.py); runs of before have none


@dataclass
class RunState:
    """Where a run is. `best_step` 0 is the base itself."""

    step: int
    seconds: float
    best_step: int
    best_accuracy: float
    base_accuracy: float
    tensors: dict[str, torch.Tensor]  # z, best, exp_avg, exp_avg_sq: each (parameters,)
    stale: int = 0  # validations since the best
    at_once: list[int] = field(default_factory=list)  # rollouts, prompts and answers that memory had room for
    collapses: int = 0  # and setbacks: how often the run went back to its best checkpoint
    restarted: int = 0  # the step after which the optimiser was new
    heat: float = 1.0  # of the rollouts, over the temperature at first
    lessons: int = 0  # of prompts_per_step questions, that the steps took
    best_right: list[bool] = field(default_factory=list)  # which validation examples the best has right; []: not known

    def __post_init__(self) -> None:
        self.lessons = max(self.lessons, self.step)  # each takes one at least, and took one when this was not kept

    @property
    def caution(self) -> float:
        """Return the share of the scheduled learning rate that is used: half after each collapse or setback."""
        return float(0.5**self.collapses)


class RunFolder:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = MetricsFile(path / "metrics.jsonl")

    @property
    def finished(self) -> bool:
        """Tell whether the run has published its expert, or ended without one."""
        return (self.path / "expert.txt").is_file()

    @property
    def published(self) -> str:
        """Return the reference of the published expert; "" while there is none."""
        path = self.path / "expert.txt"
        return path.read_text().strip() if path.is_file() else ""

    def finish(self, reference: str) -> None:
        """Record the published expert; "" when there was nothing to publish."""
        write_atomic(self.path / "expert.txt", reference + "\n")

    def spec(self) -> RunSpec:
        """Return what the run was asked to do. Raises CorruptArtifactError if run.json is damaged."""
        try:
            record = json.loads((self.path / "run.json").read_text())
            if record.pop("format") != FORMAT:
                raise ValueError("written by another version of t2")
            spec = RunSpec(**{**record, "config": TrainConfig(**record["config"])})
            _check_types(spec)
            return spec
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _damaged(self.path / "run.json", error) from error

    def save(self, state: RunState) -> None:
        """Replace the checkpoint; a kill at any moment leaves the old one or the new one."""
        from safetensors.torch import save

        counters = json.dumps(
            {each.name: getattr(state, each.name) for each in fields(state) if each.name != "tensors"}
        )
        tensors = {name: state.tensors[name].detach().cpu().clone() for name in TENSORS}
        metadata = {"format": FORMAT, "counters": counters, "sha256": _digest(counters, tensors)}
        write_atomic(self.path / "state.safetensors", save(tensors, metadata))

    def load(self, parameters: int | None = None) -> RunState | None:
        """Return the checkpoint, or None before the first.

        Raises CorruptArtifactError if it is damaged, or not for this many `parameters` (None: any number).
        """
        from safetensors import SafetensorError, safe_open

        path = self.path / "state.safetensors"
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in TENSORS}
            if metadata["format"] != FORMAT:
                raise ValueError("written by another version of t2")
            if metadata["sha256"] != _digest(metadata["counters"], tensors):
                raise ValueError("its numbers are not those that were written")
            if parameters is not None and tensors["z"].numel() != parameters:
                raise ValueError(f"it has {tensors['z'].numel()} numbers, and this base needs {parameters}")
            return RunState(tensors=tensors, **json.loads(metadata["counters"]))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error) from error

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the run against other processes, without what killed ones were writing.

        Raises UsageError if another process is working in it.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UsageError(
                f"another process is training in {self.path}",
                hint="wait for it, or start a run without --resume",
            ) from error
        try:
            clear_temporaries(self.path)
            yield
        finally:
            lock.release()


def _digest(counters: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of what a checkpoint says: a flipped bit must not become a slightly other expert."""
    total = hashlib.sha256(counters.encode())
    for name in TENSORS:
        total.update(tensors[name].numpy().tobytes())
    return total.hexdigest()


def _check_types(record: RunSpec | TrainConfig) -> None:
    """Raise TypeError for a field that is not of the type it is declared with; a float may be written as an int."""
    numbers = (int, float)
    allowed: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": numbers, "TrainConfig": TrainConfig}
    allowed["dict[str, str]"] = dict
    for each in fields(record):
        value = getattr(record, each.name)
        texts = [*value, *value.values()] if isinstance(value, dict) else []
        right = isinstance(value, allowed[str(each.type)]) and all(isinstance(text, str) for text in texts)
        if isinstance(value, bool) or not right:
            raise TypeError(f"{each.name} must not be {value!r:.60}")
        if isinstance(value, TrainConfig):
            _check_types(value)


def _damaged(path: Path, why: Exception) -> CorruptArtifactError:
    return CorruptArtifactError(f"{path} is damaged: {why}", hint="start the training again without --resume")


def runs_of(base_folder: str, expert: str) -> list[RunFolder]:
    """Return the runs of an expert for a base, oldest first."""
    home = runs_dir() / base_folder / expert
    numbers = sorted(int(path.name) for path in home.glob("*") if path.name.isdecimal() and path.is_dir())
    return [RunFolder(home / str(number)) for number in numbers]


def names_of_runs(base_folder: str) -> list[str]:
    """Return the names of the experts that there are runs of for a base."""
    home = runs_dir() / base_folder
    return sorted(path.name for path in home.iterdir() if path.is_dir()) if home.is_dir() else []


def new_run(base_folder: str, spec: RunSpec) -> RunFolder:
    """Make the folder of a new run; two processes that start at once get two folders."""
    home = runs_dir() / base_folder / spec.expert
    number = 1 + max((int(run.path.name) for run in runs_of(base_folder, spec.expert)), default=0)
    for candidate in range(number, number + 1000):
        path = home / str(candidate)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            from t2cli.files import disk_error

            raise disk_error(path, error) from error
        write_atomic(path / "run.json", json.dumps({"format": FORMAT, **asdict(spec)}, indent=1))
        return RunFolder(path)
    raise T2Error(f"no free run number in {home}", hint="delete old runs there")


def run_to_resume(base_folder: str, expert: str) -> RunFolder:
    """Return the newest unfinished run of an expert. Raises NotFoundError if there is none."""
    unfinished = [run for run in runs_of(base_folder, expert) if not run.finished and (run.path / "run.json").is_file()]
    if not unfinished:
        raise NotFoundError(
            f"there is no unfinished run of {expert} for {base_folder}",
            hint="leave out --resume to start one",
        )
    return unfinished[-1]
