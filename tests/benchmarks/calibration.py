"""How honest the probabilities of pass 1 are, how often it is right, and what it costs, on held-out questions.

    python tests/benchmarks/calibration.py --other FILE.json [--n 125] [--split test|validation] [--strategy prompt]
                                           [--timed 30] [--json FILE]

Questions are those of dispatch.py, of a split that is to be named: constants are chosen on the validation split. The
expected calibration error compares, in 15 bins, how certain the strategy is of its category with how often that is the
right one. Times are medians over `--timed` questions when all is warm, beside one bare forward pass over the tokens of
the question alone; the two take turns.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dispatch import ARITHMETIC
from table import print_table, write_json

if TYPE_CHECKING:
    from t2cli.dispatch.decision import Decision, Strategy
    from t2cli.models.adapted import AdaptedModel

BINS = 15
SPLITS = {"test": ("test", "oos_test"), "validation": ("val", "oos_val")}  # of CLINC150


def questions(path: Path, n: int, split: str) -> list[tuple[str, str]]:
    """Return n questions of each category, with its name: the same for the same n and split."""
    from t2cli.dispatch.decision import OTHER
    from t2cli.tasks.base import load_task

    data = json.loads(path.read_text())
    general = [text for part in SPLITS[split] for text, intent in data[part] if intent != ARITHMETIC]
    found = [(OTHER, text) for text in random.Random(0).sample(general, n)]
    for name in ("math", "reasoning", "code"):  # those of the experts that ship
        task = load_task(name)
        found += [(task.category, task.messages(e)[-1]["content"]) for e in task.examples(split, n, 1)]
    return found


def calibration_error(decisions: Sequence[Decision], right: Sequence[bool]) -> float:
    """Return the mean distance between certainty and accuracy over the bins, each weighed by its questions."""
    certain = [max(decision.probabilities.values()) for decision in decisions]
    bins: dict[int, list[int]] = {}
    for index, certainty in enumerate(certain):
        bins.setdefault(min(BINS - 1, int(certainty * BINS)), []).append(index)
    gaps = (abs(sum(certain[i] - right[i] for i in members)) for members in bins.values())
    return sum(gaps) / len(certain)


def timed(adapted: AdaptedModel, strategy: Strategy, texts: Sequence[str]) -> tuple[float, float]:
    """Return the median seconds of pass 1 and of one forward pass over a question's tokens."""
    import torch

    decided, bare = [], []
    for text in texts:
        ids = torch.tensor([adapted.base.tokenizer(text)["input_ids"]])
        started = time.perf_counter()
        strategy.decide([{"role": "user", "content": text}])
        decided.append(time.perf_counter() - started)
        started = time.perf_counter()
        with torch.inference_mode(), adapted.reference():
            adapted.model(input_ids=ids, use_cache=False, logits_to_keep=1)
        bare.append(time.perf_counter() - started)
    return statistics.median(decided), statistics.median(bare)


def main() -> None:
    """Measure and print."""
    from t2cli.cli.session import open_model
    from t2cli.dispatch.batch import Question, decide_all
    from t2cli.dispatch.decision import OTHER
    from t2cli.dispatch.two_pass import TwoPass
    from t2cli.evaluation.statistics import wilson
    from t2cli.paths import shipped_registry
    from t2cli.registry.local import LocalRegistry

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--n", type=int, default=125, help="questions per category")
    parser.add_argument("--split", choices=list(SPLITS), default="test")
    parser.add_argument("--strategy", default="prompt")
    parser.add_argument("--timed", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    adapted = open_model("smollm2-135m", device="cpu", quiet=True)
    strategy = TwoPass(adapted, LocalRegistry([shipped_registry()])).strategy(options.strategy)
    asked = questions(options.other, options.n, options.split)
    decisions = decide_all([Question([{"role": "user", "content": text}], strategy) for _, text in asked])
    right = [decision.category == name for decision, (name, _) in zip(decisions, asked, strict=True)]
    kept = sum(d.category == OTHER for d, (name, _) in zip(decisions, asked, strict=True) if name == OTHER)
    error = calibration_error(decisions, right)
    low, high = wilson(sum(right), len(right))
    seconds, bare = timed(adapted, strategy, random.Random(0).sample([text for _, text in asked], options.timed))
    rows = [
        (f"accuracy of {len(right)}, 95 % interval", f"{sum(right) / len(right):.3f}, {low:.3f} to {high:.3f}"),
        ("general questions that stay with the base", f"{kept} of {options.n}"),
        ("expected calibration error", f"{error:.3f}"),
        ("pass 1, median seconds", f"{seconds:.3f}"),
        ("the same, over one forward pass of the question", f"{seconds / bare:.2f}"),
    ]
    print_table((f"{options.strategy}, split {options.split}", ""), rows)
    numbers = {"accuracy": sum(right) / len(right), "kept": kept, "calibration_error": error, "n": options.n}
    write_json(options.json, {**numbers, "seconds": seconds, "forward_seconds": bare})


if __name__ == "__main__":
    main()
