"""Questions from reasoning-gym's procedural data sets (an optional dependency).

Only its questions and answers are used: its `score_answer` gives partial credit, and some of its data
sets have wrong answers under some parameters (`basic_arithmetic` with "/", `syllogism` with "Some").
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, Any

from t2cli.errors import T2Error
from t2cli.lookup import require
from t2cli.tasks.sampling import Item

if TYPE_CHECKING:
    from t2cli.tasks.fields import ConfigValue
    from t2cli.tasks.spec import Row, TaskSpec

# Data sets are made in blocks: some prepare all their items at once and refuse larger sizes.
_BLOCK = 10_000


def source(spec: TaskSpec) -> ReasoningGym:
    """Return the source of a task whose rows name data sets of reasoning-gym."""
    return ReasoningGym()


class ReasoningGym:
    """Questions that are made without end."""

    finite = False

    def stream(self, row: Row, split: str, seed: int) -> Iterator[Item]:
        """Yield questions of a row, whatever their split (see `items`)."""
        return (Item(question, answer) for question, answer in items(row.dataset, row.config, seed))

    def origin(self) -> list[dict[str, str]]:
        """Return no files: the task's mixture says it all."""
        return []


def items(dataset: str, config: Mapping[str, ConfigValue], seed: int) -> Iterator[tuple[str, str]]:
    """Yield (question, answer) of `dataset` without end; item i is made with seed + i.

    `config` holds the fields of the data set's configuration, except `seed` and `size`. On the first
    item, raises T2Error when reasoning-gym is not installed, refuses the configuration, or has no
    single right answer for a question, and NotFoundError for an unknown data set.
    """
    for start in itertools.count(seed, _BLOCK):
        block = _create(dataset, config, start)
        for i in range(_BLOCK):
            with _silence():
                item = block[i]
            question, answer = item["question"], item["answer"]
            if not isinstance(answer, str) or not answer.strip():
                raise T2Error(
                    f"reasoning-gym's {dataset} has questions without a single right answer",
                    hint="use another data set in the task's mixture",
                )
            yield question, answer


def _create(dataset: str, config: Mapping[str, ConfigValue], seed: int) -> Any:
    try:
        with _silence():
            import reasoning_gym
            from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise T2Error(
            f"questions of {dataset} come from reasoning-gym, which is not installed",
            hint='pip install "t2cli[tasks]" (building it needs a C compiler)',
        ) from error
    require(dataset, DATASETS, "data set of reasoning-gym")
    try:
        with _silence():
            settings = _with_enums(DATASETS[dataset][1], config)
            return reasoning_gym.create_dataset(dataset, seed=seed, size=_BLOCK, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise T2Error(
            f"reasoning-gym's {dataset} refuses its configuration: {error}",
            hint="check the row's `config` in the task file",
        ) from error


def _with_enums(config_class: type, config: Mapping[str, ConfigValue]) -> dict[str, object]:
    """Return the configuration with the members of enums that its words name; ValueError for a word that names none."""
    defaults = {field.name: field.default for field in fields(config_class)}
    kinds = {name: type(default) for name, default in defaults.items() if isinstance(default, Enum)}
    return {name: kinds[name](value) if name in kinds else value for name, value in config.items()}


def _silence() -> contextlib.redirect_stdout[io.StringIO]:
    """Return a context in which print goes nowhere: t2's standard output carries data only."""
    return contextlib.redirect_stdout(io.StringIO())
