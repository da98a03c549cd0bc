"""What an expert was measured to do: one paired evaluation, as manifests record it."""

from __future__ import annotations

from dataclasses import dataclass

from t2cli.registry.fields import Fields


@dataclass(frozen=True)
class EvaluationRecord:
    """A paired comparison on `n` held-out examples: accuracies in [0, 1], gain = expert - base in [-1, 1].

    `ci95` is the Wilson interval of `expert_accuracy`; `gain_ci95` that of the paired gain. `base_answer_tokens` and
    `expert_answer_tokens` are the mean lengths of the answers in tokens, the end token included; `base_cut` and
    `expert_cut` count the answers that had not ended at the limit. None is what was not recorded.
    """

    task: str
    split: str
    n: int
    base_accuracy: float
    expert_accuracy: float
    ci95: tuple[float, float]
    gain: float
    gain_ci95: tuple[float, float] | None
    mcnemar_p: float
    seed: int
    base_answer_tokens: float | None = None
    expert_answer_tokens: float | None = None
    base_cut: int | None = None
    expert_cut: int | None = None


def read_evaluation(row: Fields) -> EvaluationRecord:
    """Return the evaluation in one row of a manifest; CorruptArtifactError, naming the key, if it is none."""
    base_accuracy = row.number("base_accuracy", 0.0, 1.0)
    expert_accuracy = row.number("expert_accuracy", 0.0, 1.0)
    n = row.integer("n", low=1)
    tokens = [
        row.number(key, low=0.0) if row.has(key) else None for key in ("base_answer_tokens", "expert_answer_tokens")
    ]
    cut = [row.integer(key, 0, n) if row.has(key) else None for key in ("base_cut", "expert_cut")]
    return EvaluationRecord(
        task=row.text("task"),
        split=row.text("split"),
        n=n,
        base_accuracy=base_accuracy,
        expert_accuracy=expert_accuracy,
        ci95=row.interval("ci95", 0.0, 1.0),
        gain=row.number("gain", -1.0, 1.0) if row.has("gain") else expert_accuracy - base_accuracy,
        gain_ci95=row.interval("gain_ci95", -1.0, 1.0) if row.has("gain_ci95") else None,
        mcnemar_p=row.number("mcnemar_p", 0.0, 1.0),
        seed=row.integer("seed"),
        base_answer_tokens=tokens[0],
        expert_answer_tokens=tokens[1],
        base_cut=cut[0],
        expert_cut=cut[1],
    )
