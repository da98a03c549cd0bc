"""A task for a tiny random base to learn, and the smallest run of it; also imported by processes that tests start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from t2cli.config import TrainConfig
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import load_base
from t2cli.tasks.base import Example, Task
from t2cli.training.checkpoint import RunFolder, RunSpec, new_run
from t2cli.training.loop import TrainingRun
from t2cli.training.metrics import Listener, Silent

SMALL = TrainConfig(
    steps=4,
    prompts_per_step=8,
    learning_rate=0.3,
    max_relative_step=0.0,  # a tiny model needs long steps
    warmup_steps=1,
    validate_every=2,
    validation_examples=24,
    evaluation_examples=40,
)


@dataclass(frozen=True)
class OddTask:
    """An answer is right if it holds an odd digit."""

    name: str = "odd"
    category: str = "digits"
    description: str = "answers that hold an odd digit"
    max_new_tokens: int = 3

    def examples(self, split: str, n: int, seed: int) -> list[Example]:
        return [Example(f"row-{split}-{seed}-{i}", f"{split} {seed % 1000} number {i}?", "1") for i in range(n)]

    def messages(self, example: Example) -> list[dict[str, str]]:
        return [{"role": "user", "content": example.question}]

    def reward(self, example: Example, completion: str) -> float:
        return 1.0 if set(completion) & set("13579") else -1.0


def open_base(folder: str | Path) -> AdaptedModel:
    """Load and adapt a tiny base."""
    return AdaptedModel(load_base(str(folder), device="cpu", quiet=True))


def spec_of(adapted: AdaptedModel, config: TrainConfig = SMALL) -> RunSpec:
    identity = adapted.base.identity
    return RunSpec("odd", "odd", "counting", identity.weights, config)


def start(
    adapted: AdaptedModel,
    config: TrainConfig = SMALL,
    *,
    folder: RunFolder | None = None,
    listener: Listener | None = None,
    task: Task | None = None,
) -> TrainingRun:
    """Return a run that is ready to go, in a new folder or in that of a run that was interrupted."""
    folder = folder or new_run(adapted.base.identity.folder_name, spec_of(adapted, config))
    return TrainingRun(adapted, task or OddTask(), folder.spec(), folder, listener or Silent())
