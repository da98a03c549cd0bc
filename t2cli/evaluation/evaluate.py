"""Measure who answers best on a task: greedy answers to held-out examples, beside the base on the same questions.

Training ends with it, `t2 eval` is it: one function for both, so that their numbers can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from t2cli.evaluation.choices import Choices
from t2cli.evaluation.labels import read_labels
from t2cli.evaluation.statistics import Interval, Paired, paired_gain, wilson
from t2cli.models.adapted import AdaptedModel
from t2cli.models.generate import Completion, greedy_in_batches
from t2cli.models.text_model import TextModel
from t2cli.registry.manifest import EvaluationRecord
from t2cli.svf.zvector import ZVectors
from t2cli.tasks.base import Example, Task, rewards, stop_of, up_to
from t2cli.tasks.dispatch import LabelSet, label_set_of

if TYPE_CHECKING:
    import torch

Advance = Callable[[int], None]
Use = Callable[[], AbstractContextManager[None]]  # puts the base, an expert or another policy in use for a block

ROOM = 4  # an evaluation lets answers be this many times as long as in training, so that a wordy base is not cut short
NOBODY, BY_HAND = "none", "fixed"  # the strategies of the base alone and of an expert that was named


@dataclass(frozen=True)
class Answers:
    """What somebody answered to n examples, in their order: text, whether right, tokens, whether cut at the limit.

    A strategy also has its `choices`.
    """

    texts: tuple[str, ...]
    right: tuple[bool, ...]
    tokens: tuple[int, ...]  # generated ones, the end token included
    cut: tuple[bool, ...]
    choices: Choices | None = None

    @property
    def accuracy(self) -> float:
        """Return the share of right answers."""
        return sum(self.right) / len(self.right)

    @property
    def mean_tokens(self) -> float:
        """Return the mean length of an answer in tokens."""
        return sum(self.tokens) / len(self.tokens)


@dataclass(frozen=True)
class Answerer:
    """Who answers: the base, an expert, or a strategy that chooses for each question."""

    strategy: str  # NOBODY: the base; BY_HAND: `expert`; else a row of dispatch's table
    answer: Callable[[Task, Sequence[Example], Advance | None], Answers]
    expert: str | None = None  # its reference
    digest: str | None = None

    @property
    def name(self) -> str:
        """Return what people call it."""
        if self.expert is not None:
            return self.expert
        return "base" if self.strategy == NOBODY else self.strategy


@dataclass(frozen=True)
class Row:
    """How well somebody answered; `paired` compares with the base on the same examples, None for the base itself."""

    who: Answerer
    answers: Answers
    ci95: Interval
    paired: Paired | None


@dataclass(frozen=True)
class Evaluation:
    """Everybody on the same examples of a task: the base first. `limit` is the longest answer in tokens.

    `held_out`: nobody was trained on these questions, or chosen by them, as far as is known.
    """

    task: Task
    split: str
    seed: int
    limit: int
    examples: tuple[Example, ...]
    rows: tuple[Row, ...]
    held_out: bool


def answers_in_use(
    model: TextModel, task: Task, examples: Sequence[Example], *, on_done: Advance | None = None
) -> Answers:
    """Return the greedy answers to the examples under what is in use in the model.

    Of a task whose answers are categories: the likeliest category, an answer of one token that is never cut.
    """
    if (label_set := label_set_of(task)) is not None:
        logp = read_labels(model, task, label_set, examples, on_done=on_done)
        return _categories(model, task, examples, label_set, logp)
    prompts = [model.base.encode(task.messages(example)) for example in examples]
    stop = stop_of(task, model.base.decode)
    completions = greedy_in_batches(model, prompts, limit_of(task), on_done=on_done, stop=stop)
    return judged(model, task, examples, completions)


def judged(model: TextModel, task: Task, examples: Sequence[Example], completions: Sequence[Completion]) -> Answers:
    """Return what the completions answer to the examples, each judged by the task."""
    texts = [model.base.decode(completion.ids) for completion in completions]
    return Answers(
        texts=tuple(texts),
        right=_right(model, task, examples, texts),
        tokens=tuple(len(completion.ids) for completion in completions),
        cut=tuple(not completion.ended for completion in completions),
    )


def _categories(
    model: TextModel, task: Task, examples: Sequence[Example], label_set: LabelSet, logp: torch.Tensor
) -> Answers:
    """Return the likeliest categories as answers, from their log-probabilities (N, C)."""
    texts = [label_set.categories[place] for place in logp.argmax(dim=1).tolist()]
    right = _right(model, task, examples, texts)
    return Answers(tuple(texts), right, (1,) * len(texts), (False,) * len(texts))


def _right(model: TextModel, task: Task, examples: Sequence[Example], texts: Sequence[str]) -> tuple[bool, ...]:
    """Return whether each answer is right. A model's team shares them, and every process returns all verdicts.

    There is one verdict for each answer: a reward may be of two minds, as where code runs out of time, and processes
    that knew different ones would choose different checkpoints.
    """
    mine = model.team.share(range(len(texts)))
    found = rewards(task, [examples[index] for index in mine], [texts[index] for index in mine])
    verdicts = dict(model.team.gathered(list(zip(mine, found, strict=True))))
    return tuple(verdicts[index] > 0 for index in range(len(texts)))


def limit_of(task: Task) -> int:
    """Return how many tokens an answer may have in an evaluation."""
    return ROOM * task.max_new_tokens


def in_use(model: TextModel, use: Use, expert: str | None = None, digest: str | None = None) -> Answerer:
    """Return the model in a use of it as who answers: the base, unless it is named as an `expert`."""

    def answer(task: Task, examples: Sequence[Example], on_done: Advance | None) -> Answers:
        with use():
            return answers_in_use(model, task, examples, on_done=on_done)

    return Answerer(NOBODY if expert is None else BY_HAND, answer, expert, digest)


def the_base(adapted: AdaptedModel) -> Answerer:
    """Return the base alone as who answers."""
    return in_use(adapted, adapted.reference)


def an_expert(adapted: AdaptedModel, z: ZVectors, reference: str, digest: str | None = None) -> Answerer:
    """Return an expert as who answers, with folded weights, which are released afterwards."""

    @contextmanager
    def folded() -> Iterator[None]:
        try:
            with adapted.use_z(z):
                yield
        finally:
            adapted.release()

    return in_use(adapted, folded, reference, digest)


def evaluate(
    task: Task,
    examples: Sequence[Example],
    base: Answerer,
    others: Sequence[Answerer],
    *,
    split: str,
    seed: int,
    held_out: bool = True,
    on_done: Advance | None = None,
) -> Evaluation:
    """Let the base and then all `others` answer the examples, drawn from `split` with `seed`, and compare each with it.

    The test split shares no question with training or validation, whatever their seeds; `held_out`, that nobody
    had these questions in another way, is for the caller to say. `on_done` counts to len(examples) for each of them.
    """
    rows: list[Row] = []
    for who in (base, *others):
        answers = who.answer(task, examples, on_done)
        paired = paired_gain(rows[0].answers.right, answers.right) if rows else None
        rows.append(Row(who, answers, wilson(sum(answers.right), len(examples)), paired))
    return Evaluation(task, split, seed, limit_of(task), tuple(examples), tuple(rows), held_out)


def compare(
    adapted: AdaptedModel,
    task: Task,
    z: ZVectors,
    *,
    n: int,
    seed: int,
    split: str = "test",
    on_done: Advance | None = None,
) -> EvaluationRecord:
    """Return the paired evaluation of `z` against the base on `n` examples of `split`, for the manifest.

    Where the task's files hold fewer, on all of them. `on_done` counts to 2 n.
    """
    examples = up_to(task, split, n, seed)
    who = an_expert(adapted, z, task.name)
    return compare_two(task, examples, the_base(adapted), who, split=split, seed=seed, on_done=on_done)


def compare_two(
    task: Task,
    examples: Sequence[Example],
    alone: Answerer,
    who: Answerer,
    *,
    split: str,
    seed: int,
    on_done: Advance | None = None,
) -> EvaluationRecord:
    """Return the paired evaluation of `who` against the base `alone` on examples drawn from `split` with `seed`."""
    done = evaluate(task, examples, alone, [who], split=split, seed=seed, on_done=on_done)
    base, expert = done.rows
    assert expert.paired is not None
    return EvaluationRecord(
        task=task.name,
        split=split,
        n=len(examples),
        base_accuracy=base.answers.accuracy,
        expert_accuracy=expert.answers.accuracy,
        ci95=expert.ci95,
        gain=expert.paired.gain,
        gain_ci95=expert.paired.ci95,
        mcnemar_p=expert.paired.mcnemar_p,
        seed=seed,
        base_answer_tokens=base.answers.mean_tokens,
        expert_answer_tokens=expert.answers.mean_tokens,
        base_cut=sum(base.answers.cut),
        expert_cut=sum(expert.answers.cut),
    )
