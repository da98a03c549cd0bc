"""Measure an expert on a task: greedy answers to held-out examples, beside the base on the same questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from t2cli.evaluation.statistics import paired_gain, wilson
from t2cli.models.adapted import AdaptedModel
from t2cli.models.answerer import Answerer
from t2cli.models.generate import greedy_in_batches
from t2cli.registry.manifest import EvaluationRecord
from t2cli.svf.zvector import ZVectors
from t2cli.tasks.base import Example, Task

Advance = Callable[[int], None]
Use = Callable[[], AbstractContextManager[None]]  # puts the base, an expert or another policy in use for a block

ROOM = 4  # an evaluation lets answers be this many times as long as in training, so that a wordy base is not cut short


def right_answers(
    adapted: AdaptedModel,
    task: Task,
    examples: Sequence[Example],
    z: ZVectors | None,
    *,
    on_done: Advance | None = None,
) -> list[bool]:
    """Return for each example whether the greedy answer is right, under `z` or under the base (None)."""
    with adapted.reference() if z is None else adapted.use_z(z):
        return answered_right(adapted, task, examples, on_done=on_done)


def answered_right(
    answerer: Answerer, task: Task, examples: Sequence[Example], *, on_done: Advance | None = None
) -> list[bool]:
    """Return for each example whether the greedy answer is right, under what is in use."""
    prompts = [answerer.base.encode(task.messages(example)) for example in examples]
    completions = greedy_in_batches(answerer, prompts, ROOM * task.max_new_tokens, on_done=on_done)
    texts = [answerer.base.decode(list(completion.ids)) for completion in completions]
    return [task.reward(example, text) > 0 for example, text in zip(examples, texts, strict=True)]


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

    The test split shares no question with training or validation, whatever their seeds. `on_done` counts to 2 n.
    """
    uses = adapted.reference, lambda: adapted.use_z(z)
    return compare_uses(adapted, task, *uses, n=n, seed=seed, split=split, on_done=on_done)


def compare_uses(
    answerer: Answerer,
    task: Task,
    reference: Use,
    policy: Use,
    *,
    n: int,
    seed: int,
    split: str = "test",
    on_done: Advance | None = None,
) -> EvaluationRecord:
    """Return the paired evaluation of what `policy` puts in use against what `reference` does, as `compare`."""
    examples = task.examples(split, n, seed)
    with reference():
        base = answered_right(answerer, task, examples, on_done=on_done)
    with policy():
        expert = answered_right(answerer, task, examples, on_done=on_done)
    paired = paired_gain(base, expert)
    return EvaluationRecord(
        task=task.name,
        split=split,
        n=n,
        base_accuracy=sum(base) / n,
        expert_accuracy=sum(expert) / n,
        ci95=wilson(sum(expert), n),
        gain=paired.gain,
        gain_ci95=paired.ci95,
        mcnemar_p=paired.mcnemar_p,
        seed=seed,
    )
