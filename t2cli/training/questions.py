"""What a run will ask, looked at before it begins: whether there is enough, and a digest by which a resume knows it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from t2cli.config import PRESETS, TrainConfig
from t2cli.errors import T2Error, UsageError
from t2cli.models.cache import attention_window
from t2cli.models.team import Team
from t2cli.svf.evolution import seed_of_step
from t2cli.tasks.base import Example, SpecTask, Task, origin, up_to
from t2cli.tasks.records import RecordSource
from t2cli.tasks.sampling import Asked
from t2cli.training.publish import EVALUATION_SEED, SHOWN_FROM

if TYPE_CHECKING:
    from t2cli.models.base import BaseModel

Chat = list[dict[str, str]]

ALL = 10**9  # more questions than files hold
FEW = 10  # questions, of which one more or less is ten points


class Lessons:
    """The training questions of a run, in lessons of `prompts_per_step`; a step takes one or more.

    No question is asked again before all others of its row were.

    Evaluations ask different questions, so that few of them are of a kind that has few. Drawn anew for each step,
    training had a fifth of its questions twice, easy ones above all, and was easier than what it was for.
    """

    def __init__(self, task: Task, config: TrainConfig) -> None:
        self._task, self._config = task, config
        self._asked: Asked = {}
        self.taken = 0  # lessons, since the start of the run

    def after(self, taken: int) -> Iterator[list[Example]]:
        """Yield the lessons that follow the first `taken` ones, of which no later one was taken.

        What those asked is found out again where it is not known, after an interruption.
        """
        while self.taken < taken:
            self._take()
        while True:
            yield self._take()

    def _take(self) -> list[Example]:
        n, seed = self._config.prompts_per_step, seed_of_step(self._config.seed, self.taken)
        self.taken += 1
        if isinstance(self._task, SpecTask):
            return self._task.examples("train", n, seed, asked=self._asked)
        return self._task.examples("train", n, seed)


class Questions(NamedTuple):
    """What a run will ask: a digest of it, how many questions choose the checkpoint and measure it, and their chats.

    Of questions that are made as they are needed, `chats` are those that are known before; of files they are all.
    """

    digest: str
    validation: int
    test: int
    chats: tuple[Chat, ...]

    @property
    def warnings(self) -> list[str]:
        """Return what should be known of a task that has few of them."""
        roles = {"choose the checkpoint": self.validation, "measure the expert": self.test}
        return [
            f"only {n} questions {role}: chance decides much with so few; give the task more questions"
            for role, n in roles.items()
            if n < FEW
        ]

    def check_length(self, base: BaseModel, config: TrainConfig) -> None:
        """Raise UsageError if the base cannot read one of them, or has no room left for an answer.

        The gradient of the policy needs question and answer within a sliding window, too (training/packing.py).
        """
        name, context, gradient = base.identity.name, base.context, config.trainer == "policy-gradient"
        window = attention_window(base.model.config) if gradient else None
        if window == 0:
            raise UsageError(
                f"layers of {name} keep a state instead of what they read, of which there is no gradient here",
                hint="use --trainer evolution, or another base",
            )
        limit = context if window is None else min(window, context)
        # No text has more tokens than bytes: the other half is enough for all that a chat template adds.
        long = [chat for chat in self.chats if _size(chat) > limit // 2]
        for chat in long or sorted(self.chats, key=_size)[-1:]:
            if (tokens := len(base.encode(chat))) >= limit:
                raise UsageError(
                    f"the question {chat[-1]['content']!r:.80} has {tokens} tokens, and {name} "
                    + (f"reads at most {limit}" if limit == context else f"has layers that look back {limit}"),
                    hint="shorten it or leave it out, or use a base with a longer context"
                    + ("" if limit == context else "; --trainer evolution needs no such window"),
                )

    def check_together(self, team: Team) -> None:
        """Raise UsageError unless all processes of a team ask the same."""
        if len(set(team.gathered([self.digest]))) > 1:
            raise UsageError(
                "the processes of this training ask different questions",
                hint="give all of them the same task, files and versions of t2 and reasoning-gym",
            )


def questions_of(task: Task, config: TrainConfig) -> Questions:
    """Return what a run with `config` asks, drawn as the run will draw it.

    Raises T2Error if the task has fewer questions than a step asks, lacks their source, or has one in its files that
    makes no prompt: a run that ends for that after hours would have been for nothing. Where questions come from files,
    fewer will do for validation and test.
    """
    train = up_to(task, "train", config.prompts_per_step, config.seed)
    if len(train) < config.prompts_per_step:
        fewest = PRESETS["t2"].prompts_per_step
        other = f", or leave out --preset: steps ask {fewest} then" if config.preset != "t2" else ""
        raise T2Error(
            f"the task {task.name} has {len(train)} different train questions, and each step of this training asks "
            f"{config.prompts_per_step}",
            hint=f"give the task more questions{other}",
        )
    shown = up_to(task, "train", SHOWN_FROM, config.seed)
    validation = up_to(task, "validation", config.validation_examples, config.seed)
    test = up_to(task, "test", config.evaluation_examples, EVALUATION_SEED)
    drawn = (train, shown, validation, test)
    read = isinstance(task, SpecTask) and isinstance(task.source, RecordSource)
    known = (up_to(task, "train", ALL, config.seed), validation, test) if read else drawn
    chats = tuple(task.messages(each) for examples in known for each in examples)
    return Questions(_digest(task, drawn), len(validation), len(test), chats)


def check_same(before: str, now: str, task: Task, folder: Path) -> None:
    """Raise UsageError unless the questions are those that the run in `folder` began with ("": not known)."""
    if before not in ("", now):
        raise UsageError(
            f"the questions of the task {task.name} are not those that the run in {folder} began with: what it learned "
            "from could be what it is measured on now",
            hint="put the task's file and its data back as they were, or leave out --resume to start another run",
        )


def _size(chat: Chat) -> int:
    return sum(len(message["content"].encode()) for message in chat)


def _digest(task: Task, drawn: Sequence[Sequence[Example]]) -> str:
    """Return the SHA-256 of what is asked and how it is judged, wherever the files lie that it is read from."""
    rules: list[object] = [task.name, task.max_new_tokens]
    if isinstance(task, SpecTask):
        rules += [task.spec.stop, [[row.name, vars(row.answer)] for row in task.spec.mixture]]
    files = origin(task).get("data")
    sums = [(file.get("split"), file.get("sha256")) for file in files] if isinstance(files, list) else []
    asked = [[(each.answer, task.messages(each)) for each in examples] for examples in drawn]
    return hashlib.sha256(json.dumps([rules, sums, asked], sort_keys=True).encode()).hexdigest()
