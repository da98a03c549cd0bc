"""Measure an expert on a task: greedy answers to held-out examples, beside the base on the same questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from t2cli.evaluation.statistics import paired_gain, wilson
from t2cli.models.adapted import AdaptedModel
from t2cli.models.generate import greedy_in_batches
from t2cli.registry.manifest import EvaluationRecord
from t2cli.svf.zvector import ZVectors
from t2cli.tasks.base import Example, Task, rewards, stop_of, up_to

Advance = Callable[[int], None]

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
    prompts = [adapted.base.encode(task.messages(example)) for example in examples]
    with adapted.reference() if z is None else adapted.use_z(z):
        room, stop = ROOM * task.max_new_tokens, stop_of(task, adapted.base.decode)
        completions = greedy_in_batches(adapted, prompts, room, on_done=on_done, stop=stop)
    texts = [adapted.base.decode(list(completion.ids)) for completion in completions]
    return [reward > 0 for reward in rewards(task, examples, texts)]


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

    Where the task's files hold fewer, on all of them.

    The test split shares no question with training or validation, whatever their seeds. `on_done` counts to 2 n.
    """
    examples = up_to(task, split, n, seed)
    n = len(examples)
    base = right_answers(adapted, task, examples, None, on_done=on_done)
    expert = right_answers(adapted, task, examples, z, on_done=on_done)
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
