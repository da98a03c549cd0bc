"""One generation of a few-shot search: all candidates in one batch, and folded and answered one after the other.

    python tests/benchmarks/few_shot.py [--candidates 32] [--examples 8] [--alone 32] [--rounds 1] [--json FILE]

Uses the experts that ship for the default base. Both ways score the same mixes on the same questions: right answers,
and the mean log-likelihood of the right answers' tokens. `--alone N` times the first N candidates of the slow way only,
and counts them for all. A candidate alone has its W' folded anew, as candidates of a search are met once.
The batch is a later generation of a search: it cuts answers by the longest right one of the two mixes that warm up
(dispatch/population.py, 3); a candidate alone may go on to the limit.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from table import print_table, write_json

if TYPE_CHECKING:
    from t2cli.dispatch.population import Exam, Judged
    from t2cli.models.adapted import AdaptedModel
    from t2cli.svf.zvector import ZVectors


def questions(n: int) -> list[tuple[str, str]]:
    """Return sums with their answers, the same for the same n."""
    draw = random.Random(0)
    pairs = [(draw.randint(2, 99), draw.randint(2, 99)) for _ in range(n)]
    return [(f"What is {a} + {b}?", str(a + b)) for a, b in pairs]


def alone(adapted: AdaptedModel, exam: Exam, z: ZVectors) -> Judged:
    """Return how one mix answers with folded weights: questions in one batch, right answers in another."""
    from t2cli.dispatch.population import Judged
    from t2cli.models.generate import generate
    from t2cli.models.reading import left_padded, positions_of
    from t2cli.svf.policy_gradient import token_logp

    longest = max(map(len, exam.answers))
    with torch.inference_mode(), adapted.use_z(z):
        done = generate(adapted, exam.prompts, exam.sampling)
        both = [[*prompt, *answer] for prompt, answer in zip(exam.prompts, exam.answers, strict=True)]
        ids, mask = left_padded(both, adapted.base.device)
        output = adapted.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions_of(mask),
            use_cache=False,
            logits_to_keep=longest + 1,
        )
        logp = token_logp(output.logits[:, :-1], ids[:, -longest:])
    adapted.release()
    texts = [adapted.base.decode(list(completion.ids)) for completion in done]
    right = tuple(c.ended and e.is_right(t) for c, e, t in zip(done, exam.examples, texts, strict=True))
    total = sum(float(row[longest - len(answer) :].sum()) for row, answer in zip(logp, exam.answers, strict=True))
    return Judged(right, total / sum(map(len, exam.answers)))


def main() -> None:
    """Measure both ways in turn, compare the scores and print."""
    from t2cli.cli.session import open_model
    from t2cli.config import CEMConfig
    from t2cli.dispatch.examples import FewShot
    from t2cli.dispatch.mixer import Mixer
    from t2cli.dispatch.population import Exam
    from t2cli.paths import shipped_registry
    from t2cli.registry.local import LocalRegistry
    from t2cli.registry.vectors import read_z

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--alone", type=int, help="candidates that are also timed one after the other; all")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    timed = min(options.alone or options.candidates, options.candidates)
    adapted = open_model("smollm2-135m", device="cpu", quiet=True)
    adapted.prepare(quiet=True)
    registry, config = LocalRegistry([shipped_registry()]), CEMConfig()
    mixer = Mixer(adapted, [read_z(registry.find(name)) for name in ("math", "reasoning")])
    noise = torch.randn(options.candidates, mixer.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alphas = 0.5 + config.sigma * noise
    asked = [FewShot([{"role": "user", "content": q}], a, "number", 1) for q, a in questions(options.examples)]
    exam = Exam(adapted, asked, config.max_new_tokens)
    exam.judge(mixer.z(alphas[:2]))  # warms up
    seconds: dict[str, list[float]] = {"one batch": [], "one after the other": []}
    for _ in range(options.rounds):
        started = time.perf_counter()
        together = exam.judge(mixer.z(alphas))
        seconds["one batch"].append(time.perf_counter() - started)
        adapted.release()
        started = time.perf_counter()
        apart = [alone(adapted, exam, mixer.vectors(row)) for row in alphas[:timed]]
        seconds["one after the other"].append((time.perf_counter() - started) * options.candidates / timed)
    different = sum(a.right != b.right for a, b in zip(apart, together, strict=False))
    error = max(abs(a.logp - b.logp) for a, b in zip(apart, together, strict=False))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["one after the other"] / medians["one batch"]
    print_table(
        (f"{options.candidates} candidates, {options.examples} examples", "seconds"),
        [(name, f"{value:.1f}") for name, value in medians.items()],
    )
    print(
        f"ratio {ratio:.2f}; of {timed} candidates {different} have other right answers, log-likelihoods to {error:.1e}"
    )
    accuracies = [judged.accuracy for judged in together]
    numbers = {"seconds": seconds, "ratio": ratio, "other_right_answers": different, "logp_error": error}
    write_json(options.json, {"candidates": options.candidates, "alone": timed, "accuracies": accuracies, **numbers})


if __name__ == "__main__":
    main()
