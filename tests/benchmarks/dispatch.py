"""How often pass 1 chooses the right category, on held-out questions, and what that costs.

    python tests/benchmarks/dispatch.py --other FILE.json [--strategy classifier] [--n 125] [--json FILE]

Questions of the built-in tasks come from their test splits, which share no question with the examples that experts
show to pass 1, nor with those that a dispatcher was trained on. FILE.json holds general questions: CLINC150's
data_small.json (Larson et al. 2019, CC BY 3.0), whose test questions are used, or a list of texts. The questions as
people type them are those of tests/dispatch/typed.py. Uses the experts that ship with t2; needs the extra [tasks].

Times are medians over questions, warm, on one thread, in turn for each question: pass 1; a bare forward pass over the
question's own tokens; and an answer of 64 tokens.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2cli.dispatch.decision import Strategy
    from t2cli.dispatch.two_pass import TwoPass

sys.path.insert(0, str(Path(__file__).parents[1] / "dispatch"))
from typed import FRESH, TYPED

ARITHMETIC = "calculator"  # CLINC150's intent that belongs to an expert's category
TASKS = ("math", "reasoning", "code")  # those of the experts that ship
TOKENS = 64  # of the answer that pass 1 is compared with


def general_questions(path: Path, n: int) -> dict[str, list[str]]:
    """Return n general questions of each kind that a file has, the same for the same n."""
    data = json.loads(path.read_text())
    if not isinstance(data, dict):
        return {"general": random.Random(0).sample(data, n)}
    named = {"in scope of CLINC150": data["test"], "out of its scope": data["oos_test"]}
    return {
        kind: random.Random(0).sample([text for text, intent in pairs if intent != ARITHMETIC], n)
        for kind, pairs in named.items()
    }


def asked(strategy: Strategy, texts: Sequence[str]) -> list[tuple[str | None, bool]]:
    """Return the category of each question, and whether it was left to the base."""
    decisions = [strategy.decide([{"role": "user", "content": text}]) for text in texts]
    return [(decision.category, decision.abstained) for decision in decisions]


def judged(strategy: Strategy, questions: Mapping[str, Sequence[str]], other: str) -> dict[str, object]:
    """Print and return the confusion: a question counts as `other` where it is left to the base."""
    from t2cli.evaluation.statistics import wilson

    confusion = Counter(
        (category, other if abstained else str(said))
        for category, texts in questions.items()
        for said, abstained in asked(strategy, texts)
    )
    names = sorted(questions)
    print(f"{'question of':14}" + "".join(f"{'-> ' + name:>16}" for name in names))
    for row in names:
        print(f"{row:14}" + "".join(f"{confusion[row, column]:16}" for column in names))
    right, total = sum(confusion[name, name] for name in names), sum(confusion.values())
    low, high = wilson(right, total)
    print(f"accuracy {right / total:.3f}, 95 % interval {low:.3f} to {high:.3f}, n = {total}")
    table = {row: {column: confusion[row, column] for column in names} for row in names}
    return {"confusion": table, "accuracy": right / total, "ci95": [low, high], "n": total}


def times(two_pass: TwoPass, strategy: Strategy, questions: Sequence[str]) -> dict[str, float]:
    """Print and return the median seconds of pass 1, of a bare forward pass, and of an answer."""
    import torch

    from t2cli.config import SamplingConfig
    from t2cli.models.generate import generate

    adapted = two_pass.adapted
    adapted.base = dataclasses.replace(adapted.base, eos=frozenset())  # an answer has all its tokens
    found: dict[str, list[float]] = {"pass 1": [], "bare forward pass": [], f"answer of {TOKENS} tokens": []}

    def timed(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    def bare(ids: list[int]) -> None:
        with torch.inference_mode(), adapted.reference():
            adapted.model(input_ids=torch.tensor([ids]), logits_to_keep=1)

    def answer(chat: list[dict[str, str]]) -> None:
        z = two_pass.z_of(decision.weights)
        with adapted.reference() if z is None else adapted.use_z(z):
            generate(adapted, [adapted.base.encode(chat)], SamplingConfig(TOKENS))

    for warm_up in (True, False):
        for text in questions[:3] if warm_up else questions:
            chat = [{"role": "user", "content": text}]
            ids = list(adapted.base.tokenizer(text)["input_ids"])
            decision = strategy.decide(chat)
            works = (lambda: strategy.decide(chat), lambda: bare(ids), lambda: answer(chat))  # noqa: B023 (run at once)
            for name, work in zip(found, works, strict=True):
                seconds = timed(work)
                if not warm_up:
                    found[name].append(seconds)
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    first, forward, whole = medians.values()
    for name, seconds in medians.items():
        print(f"{name:26} {1000 * seconds:8.1f} ms")
    print(
        f"pass 1 takes {first / forward:.2f} bare forward passes, and {100 * first / whole:.1f} % of the answer's time"
    )
    return {**medians, "forward passes": first / forward, "share of the answer": first / whole}


def main() -> None:
    """Print confusion, accuracy, what stays with the base, and times of each strategy."""
    import torch

    from t2cli.cli.session import open_model
    from t2cli.dispatch.decision import OTHER
    from t2cli.dispatch.two_pass import TwoPass
    from t2cli.paths import shipped_registry
    from t2cli.registry.local import LocalRegistry
    from t2cli.tasks.base import load_task

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--strategy", action="append", choices=("classifier", "prompt"))
    parser.add_argument("--registry", type=Path, help="of the experts, in place of those that ship")
    parser.add_argument("--n", type=int, default=125, help="questions per category")
    parser.add_argument("--timed", type=int, default=30, help="questions that are timed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    general = general_questions(options.other, options.n)
    questions = {OTHER: [text for texts in general.values() for text in texts][:: len(general)]}
    for name in TASKS:
        task = load_task(name)
        examples = task.examples("test", options.n, 1)
        questions[task.category] = [task.messages(example)[-1]["content"] for example in examples]
    mixed = [text for texts in zip(*questions.values(), strict=True) for text in texts][: options.timed]
    results: dict[str, object] = {}
    for name in options.strategy or ["classifier"]:
        registry = LocalRegistry([options.registry or shipped_registry()])
        two_pass = TwoPass(open_model("smollm2-135m", device="cpu"), registry)
        strategy = two_pass.strategy(name)
        print(f"\n{name}: {len(questions)} times {options.n} held-out questions")
        held_out = judged(strategy, questions, OTHER)
        print("\nas people type them")
        typed = judged(strategy, TYPED, OTHER)
        print("\nthe same, written later")
        fresh = judged(strategy, FRESH, OTHER)
        kept = {kind: sum(left for _, left in asked(strategy, texts)) for kind, texts in general.items()}
        print()
        for kind, count in kept.items():
            print(f"general questions {kind}: {count} of {options.n} stay with the base")
        cost = times(two_pass, strategy, mixed)
        people = {"typed": typed, "fresh": fresh}
        results[name] = {"held out": held_out, **people, "kept": kept, "of": options.n, "seconds": cost}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
