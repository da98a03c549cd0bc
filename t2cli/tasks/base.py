"""Tasks: questions with right answers, how they are asked, and when a completion is right.

Deviations from the paper (section 4.1) and its released code: the questions are generated, without end,
instead of taken from benchmarks, so that held-out examples are never trained on; a question may be worded
in several ways, so that an expert does not overfit to one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from t2cli.errors import CorruptArtifactError, NotFoundError, T2Error
from t2cli.lookup import require
from t2cli.paths import expanded
from t2cli.tasks.prompts import render
from t2cli.tasks.sampling import Asked, Source, digest, draw, open_source
from t2cli.tasks.spec import Row, TaskSpec
from t2cli.tasks.verify import REWARDS

if TYPE_CHECKING:
    from t2cli.tasks.own_reward import OwnReward

BUILTIN = Path(__file__).parent / "builtin"


@dataclass(frozen=True)
class Example:
    """A question and its right answer; `id` names the row it came from and a hash of its text.

    `fields` are those of the record it was read from, for prompts.
    """

    id: str
    question: str
    answer: str
    fields: Mapping[str, object] = field(default_factory=dict, compare=False)


class Task(Protocol):
    """What training and evaluation need of a task."""

    @property
    def name(self) -> str:
        """The task's name, also the default name of its expert."""

    @property
    def category(self) -> str:
        """What pass 1 answers for questions of this kind."""

    @property
    def description(self) -> str:
        """One line, also shown to the dispatcher."""

    @property
    def max_new_tokens(self) -> int:
        """How many tokens a completion may have."""

    def examples(self, split: str, n: int, seed: int) -> list[Example]:
        """Return `n` different examples of "train", "validation" or "test"; the splits are disjoint."""

    def messages(self, example: Example) -> list[dict[str, str]]:
        """Return the chat that asks the example's question: role and content of each message."""

    def reward(self, example: Example, completion: str) -> float:
        """Return 1.0 for a right completion and -1.0 for a wrong one."""


@runtime_checkable
class BatchTask(Task, Protocol):
    """A task that judges many completions in less time than one by one."""

    def rewards(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        """Return the reward of each completion, for the example at its place."""


class SpecTask:
    """A task described by a YAML file (t2cli.tasks.spec); `own` takes the place of its reward.

    `unsafe_code`: judge model-written code without a sandbox, where the task has unit tests.
    """

    def __init__(
        self, spec: TaskSpec, own: OwnReward | None = None, source: Source | None = None, *, unsafe_code: bool = False
    ) -> None:
        self.spec, self.own, self.unsafe_code = spec, own, unsafe_code
        self.name = spec.name
        self.category = spec.category
        self.description = spec.description
        self.max_new_tokens = spec.max_new_tokens
        self.source = source or open_source(spec)

    def origin(self) -> list[dict[str, str]]:
        """Return which files the questions are from: row, split, name and SHA-256 of each; empty where they are made.

        They are read for it; the errors are those of `examples`.
        """
        return self.source.origin()

    def examples(
        self, split: str, n: int, seed: int, *, fewer: bool = False, asked: Asked | None = None
    ) -> list[Example]:
        """Return `n` different examples of "train", "validation" or "test", in random order.

        The same arguments give the same examples. No question text is in two splits, whatever the
        seeds; within a split, other seeds give samples that may overlap, unless `asked` goes from one to the next
        (t2cli.tasks.sampling.draw). Raises NotFoundError for an unknown split or a missing file,
        CorruptArtifactError for a file that is damaged, and T2Error when there are fewer than `n` questions or
        their source is not installed. With `fewer`, a source whose questions are a fixed set gives those it has.
        """
        drawn = draw(self.spec, split, n, seed, self.source, fewer=fewer and self.source.finite, asked=asked)
        return [example_of(*each) for each in drawn]

    def messages(self, example: Example) -> list[dict[str, str]]:
        """Return the chat that asks the example's question, the system text first where there is one.

        Where the task has several wordings, the example's id chooses one. Raises ValueError for an
        example of another task and T2Error when `extract` does not match the question.
        """
        row = self._row(example)
        prompt = row.prompts[digest(f"{example.id}/prompt") % len(row.prompts)]
        variables = {**example.fields, "question": example.question, **self._extracted(row, example.question)}
        system = [{"role": "system", "content": self.spec.system}] if self.spec.system else []
        return [*system, {"role": "user", "content": render(prompt, variables)}]

    def reward(self, example: Example, completion: str) -> float:
        """Return 1.0 for a right completion and -1.0 for a wrong one (t2cli.tasks.verify), or what `own` says."""
        return self.rewards([example], [completion])[0]

    def rewards(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        """Return the reward of each completion; those with unit tests are judged several at a time."""
        pairs = list(zip(examples, completions, strict=True))
        if self.own is not None:
            return [self.own.reward(example.answer, completion) for example, completion in pairs]
        coded = [i for i, (example, _) in enumerate(pairs) if self._row(example).answer.kind == "tests"]
        right = dict(zip(coded, self._passed([pairs[i] for i in coded]), strict=True)) if coded else {}
        for i, (example, completion) in enumerate(pairs):
            answer = self._row(example).answer
            if i not in right:
                right[i] = REWARDS[answer.kind](example.answer, completion, answer.offered(example.question))
        return [1.0 if right[i] else -1.0 for i in range(len(pairs))]

    @property
    def runs_code(self) -> bool:
        """Tell whether completions are run to judge them."""
        return self.own is None and any(row.answer.kind == "tests" for row in self.spec.mixture)

    def _passed(self, pairs: Sequence[tuple[Example, str]]) -> list[bool]:
        from t2cli.tasks.unit_tests import judge

        answers = [example.answer for example, _ in pairs]
        outcomes = judge(answers, [completion for _, completion in pairs], unsafe=self.unsafe_code)
        return [outcome.passed for outcome in outcomes]

    def _row(self, example: Example) -> Row:
        return self.spec.row(example.id.rpartition("-")[0])

    def _extracted(self, row: Row, question: str) -> dict[str, str]:
        if row.extract is None:
            return {}
        if (found := re.search(row.extract, question)) is None:
            raise T2Error(
                f"task {self.name}, row {row.name}: `extract` does not match the question {question!r}",
                hint="correct the regular expression in the task file",
            )
        return {name: text for name, text in found.groupdict().items() if text is not None}


def rewards(task: Task, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
    """Return the reward of each completion, all at once where the task can."""
    if isinstance(task, BatchTask):
        return task.rewards(examples, completions)
    return [task.reward(example, text) for example, text in zip(examples, completions, strict=True)]


def stop_of(task: Task, decode: Callable[[list[int]], str]) -> Callable[[Sequence[int]], bool] | None:
    """Return what tells of token ids whether their text, from `decode`, is complete under the task's `stop`, if any."""
    if not isinstance(task, SpecTask) or task.spec.stop is None:
        return None
    complete = re.compile(task.spec.stop)
    return lambda ids: complete.search(decode(list(ids))) is not None


def require_judge(task: Task) -> bool:
    """Tell whether the task runs model-written code; raises T2Error if so and there is no sandbox for it here."""
    if not isinstance(task, SpecTask) or not task.runs_code:
        return False
    from t2cli.tasks.sandbox import require_sandbox

    require_sandbox(unsafe=task.unsafe_code)
    return True


def example_of(row: Row, question: str, answer: str, fields: Mapping[str, object]) -> Example:
    """Return the example that a row's question is; the same text always gets the same id."""
    return Example(f"{row.name}-{digest(question) >> 192:016x}", question, answer, fields)


def up_to(task: Task, split: str, n: int, seed: int) -> list[Example]:
    """Return `n` examples as `task.examples` does, or all there are where they come from files that hold fewer."""
    if isinstance(task, SpecTask):
        return task.examples(split, n, seed, fewer=True)
    return task.examples(split, n, seed)


def origin(task: Task) -> dict[str, object]:
    """Return what a manifest says of a task's files and own reward: "data", a mapping for each file, and "reward"."""
    if not isinstance(task, SpecTask):
        return {}
    files, own = task.origin(), task.own
    return {**({"data": files} if files else {}), **({"reward": own.name} if own else {})}


def revisions(task: Task) -> dict[str, str]:
    """Return the commits of the Hub data sets a task's questions are from: dataset -> commit."""
    files = task.origin() if isinstance(task, SpecTask) else []
    return {file["dataset"]: file["revision"] for file in files if "dataset" in file}


def task_names() -> list[str]:
    """Return the names of the tasks that come with t2."""
    return sorted(file.stem for file in BUILTIN.glob("*.yaml"))


def load_task(
    name: str,
    data: Mapping[str, str] | None = None,
    *,
    reward: OwnReward | None = None,
    revisions: Mapping[str, str] | None = None,
    unsafe_code: bool = False,
) -> Task:
    """Return the task that comes with t2 under `name`, or the one in the YAML file at that path.

    A `name` that ends in .yaml or .yml is a path. `data` says where its questions are read from instead
    (t2cli.tasks.data_files), `reward` who judges instead, and `revisions` the commits of data sets on the Hub.
    `unsafe_code` has model-written code judged without a sandbox. Raises NotFoundError with near matches for an
    unknown name or a missing file, CorruptArtifactError naming the key that is wrong in a file, and UsageError for
    a task that takes no `data`.
    """
    from t2cli.tasks.data_files import pinned, with_data
    from t2cli.tasks.own_reward import judged_by_own

    spec = pinned(load_spec(name), revisions or {})
    spec = with_data(spec, data) if data else spec
    return SpecTask(judged_by_own(spec) if reward else spec, reward, unsafe_code=unsafe_code)


def load_spec(name: str) -> TaskSpec:
    """Return what a task's file says, its source not yet opened; `name` and errors are those of `load_task`."""
    if name.endswith((".yaml", ".yml")):
        path = expanded(name)
        if not path.is_file():
            raise NotFoundError(f"there is no task file {name}", hint=f"built in: {', '.join(task_names())}")
    else:
        require(name, task_names(), "task")
        path = BUILTIN / f"{name}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorruptArtifactError(f"the task file {name} is no UTF-8 text", hint="save it as UTF-8") from error
    except OSError as error:
        raise T2Error(f"the task file {name} could not be read: {error}", hint="check the file") from error
    return TaskSpec.from_yaml(text, str(path), path.parent)
