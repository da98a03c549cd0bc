"""What evaluations say, as plain data: a record for --json, a line per answer for --save, and verdicts in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from t2cli.evaluation import choices
from t2cli.evaluation.evaluate import Evaluation, Row
from t2cli.evaluation.statistics import holm

SIGNIFICANT = 0.05
NO_DIFFERENCE = "not distinguishable from the base"

Record = dict[str, object]


def adjusted(evaluations: Sequence[Evaluation]) -> list[list[float | None]]:
    """Return Holm's p-value of every row, None for the base: all comparisons of one call are read together."""
    found = [row.paired for evaluation in evaluations for row in evaluation.rows]
    together = iter(holm([paired.mcnemar_p for paired in found if paired is not None]))
    return [[None if row.paired is None else next(together) for row in evaluation.rows] for evaluation in evaluations]


def verdict(gain: float, p: float) -> str:
    """Return in words what a paired comparison showed; `p` is Holm's where there are several."""
    if p >= SIGNIFICANT:
        return NO_DIFFERENCE
    return "better than the base" if gain > 0 else "worse than the base"


def record(evaluation: Evaluation, holm_p: Sequence[float | None], comparisons: int) -> Record:
    """Return an evaluation as --json has it; `holm_p` are those of its rows, adjusted for all `comparisons`."""
    return {
        "task": evaluation.task.name,
        "category": evaluation.task.category,
        "split": evaluation.split,
        "held_out": evaluation.held_out,
        "n": len(evaluation.examples),
        "seed": evaluation.seed,
        "max_answer_tokens": evaluation.limit,
        "comparisons": comparisons,
        "rows": [_row(row, p) for row, p in zip(evaluation.rows, holm_p, strict=True)],
    }


def _row(row: Row, holm_p: float | None) -> Record:
    answers, paired = row.answers, row.paired
    return {
        "expert": row.who.expert,
        "strategy": row.who.strategy,
        "digest": row.who.digest,
        "accuracy": answers.accuracy,
        "ci95": list(row.ci95),
        "gain": paired and paired.gain,
        "gain_ci95": paired and list(paired.ci95),
        "gained": paired and paired.gained,
        "lost": paired and paired.lost,
        "mcnemar_p": paired and paired.mcnemar_p,
        "holm_p": holm_p,
        "verdict": None if paired is None or holm_p is None else verdict(paired.gain, holm_p),
        "mean_answer_tokens": answers.mean_tokens,
        "cut_answers": sum(answers.cut),
        **(choices.record(answers.choices) if answers.choices else {}),
    }


def answer_records(evaluation: Evaluation) -> Iterator[Record]:
    """Yield every answer, with what is needed to judge it again: all to one question after another."""
    for index, example in enumerate(evaluation.examples):
        for row in evaluation.rows:
            yield {
                "task": evaluation.task.name,
                "split": evaluation.split,
                "seed": evaluation.seed,
                "id": example.id,
                "question": example.question,
                "messages": evaluation.task.messages(example),
                "right_answer": example.answer,
                "expert": row.who.expert,
                "strategy": row.who.strategy,
                "digest": row.who.digest,
                "answer": row.answers.texts[index],
                "right": row.answers.right[index],
                "tokens": row.answers.tokens[index],
                "cut": row.answers.cut[index],
                **_choice(row, index),
            }


def _choice(row: Row, index: int) -> Record:
    """Return what a strategy chose for one question; nothing of an expert that was named."""
    if row.answers.choices is None:
        return {}
    return {"category": row.answers.choices.categories[index], "weights": dict(row.answers.choices.weights[index])}
