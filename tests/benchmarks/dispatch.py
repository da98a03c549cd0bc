"""How often pass 1 chooses the right category, on held-out questions.

    python tests/benchmarks/dispatch.py --other FILE.json [--n 100] [--json FILE]

Questions of the built-in tasks come from their test splits, which share no question with the examples that experts
show to pass 1. FILE.json holds general questions: CLINC150's data_small.json (Larson et al. 2019, CC BY 3.0), whose
test questions are used, or a list of texts. Uses the experts that ship with t2; needs the extra [tasks].
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path

ARITHMETIC = "calculator"  # CLINC150's intent that belongs to an expert's category


def general_questions(path: Path, n: int) -> list[str]:
    """Return n of the general questions in a file, the same for the same n."""
    data = json.loads(path.read_text())
    if isinstance(data, dict):
        data = [text for text, intent in data["test"] + data["oos_test"] if intent != ARITHMETIC]
    return random.Random(0).sample(data, n)


def main() -> None:
    """Print the confusion matrix and the accuracy with its interval."""
    from t2cli.cli.session import open_model
    from t2cli.dispatch.decision import OTHER
    from t2cli.dispatch.two_pass import TwoPass
    from t2cli.evaluation.statistics import wilson
    from t2cli.paths import shipped_registry
    from t2cli.registry.local import LocalRegistry
    from t2cli.tasks.base import load_task

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--n", type=int, default=100, help="questions per category")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    questions = {OTHER: general_questions(options.other, options.n)}
    for name in ("math", "reasoning", "code"):  # those of the experts that ship
        task = load_task(name)
        examples = task.examples("test", options.n, 1)
        questions[task.category] = [task.messages(example)[-1]["content"] for example in examples]
    strategy = TwoPass(open_model("smollm2-135m", device="auto"), LocalRegistry([shipped_registry()])).strategy(
        "prompt"
    )
    confusion = Counter(
        (category, strategy.decide([{"role": "user", "content": text}]).category)
        for category, texts in questions.items()
        for text in texts
    )
    names = sorted(questions)
    print(f"{'question of':14}" + "".join(f"{'-> ' + name:>16}" for name in names))
    for row in names:
        print(f"{row:14}" + "".join(f"{confusion[row, column]:16}" for column in names))
    right, total = sum(confusion[name, name] for name in names), sum(confusion.values())
    low, high = wilson(right, total)
    print(f"accuracy {right / total:.3f}, 95 % interval {low:.3f} to {high:.3f}, n = {total}")
    if options.json:
        table = {row: {column: confusion[row, column] for column in names} for row in names}
        options.json.write_text(json.dumps({"confusion": table, "accuracy": right / total, "n": total}, indent=1))


if __name__ == "__main__":
    main()
