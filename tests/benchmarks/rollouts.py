"""Rollouts of training beside transformers' own `generate` on the same prompts: useful tokens per second.

    python tests/benchmarks/rollouts.py [--prompts 12] [--group 4] [--rounds 5] [--json FILE] [--device cpu|cuda]

Ours is what a training step does: prompts encoded, W' folded anew, answers sampled, decoded and judged. Theirs is
`generate(do_sample=True, num_return_sequences=group)` of the base alone, with as many new tokens at most, and nothing
else. A useful token is one up to and with the end of an answer, and padding counts for neither. The two take turns.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from clock import now
from table import print_table, write_json

OURS, THEIRS = "rollouts of t2", "transformers' generate"


def our_rate(adapted: Any, task: Any, examples: Any, config: Any, seed: int) -> float:
    """Return tokens per second of one step's rollouts as an expert close to the base."""
    from t2cli.svf.zvector import ZVectors
    from t2cli.training.rollouts import collect

    generator = torch.Generator().manual_seed(seed)
    z = ZVectors({name: 1 + 1e-3 * torch.randn(r, generator=generator) for name, r in adapted.ranks.items()})
    started = now()
    with adapted.use_z(z):
        rollouts = collect(adapted, task, examples, config, generator)
    rate = rollouts.tokens / (now() - started)
    adapted.release()
    return rate


def their_rate(base: Any, prompts: list[list[int]], group: int, longest: int, seed: int) -> float:
    """Return tokens per second of transformers' own sampling."""
    from t2cli.models.reading import left_padded

    ids, mask = left_padded(prompts, base.device)
    torch.manual_seed(seed)
    started = now()
    output = base.model.generate(
        ids,
        attention_mask=mask,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_return_sequences=group,
        max_new_tokens=longest,
        eos_token_id=sorted(base.eos),
        pad_token_id=min(base.eos),
    )
    seconds = now() - started
    answers = output[:, ids.shape[1] :].tolist()
    return sum(useful(answer, base.eos) for answer in answers) / seconds


def useful(answer: list[int], eos: frozenset[int]) -> int:
    """Return how many tokens an answer has up to and with its end."""
    return next((place + 1 for place, token in enumerate(answer) if token in eos), len(answer))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from t2cli.config import TrainConfig
    from t2cli.models.adapted import AdaptedModel
    from t2cli.models.base import load_base
    from t2cli.tasks.base import load_task

    bare, task = load_base("smollm2-135m", device=options.device, quiet=True), load_task("math")
    adapted = AdaptedModel(load_base("smollm2-135m", device=options.device, quiet=True))
    adapted.prepare(quiet=True)
    config = TrainConfig(prompts_per_step=options.prompts, group=options.group)
    rates: dict[str, list[float]] = {OURS: [], THEIRS: []}
    for round_ in range(options.rounds + 1):
        examples = task.examples("train", options.prompts, round_)
        prompts = [bare.encode(task.messages(example)) for example in examples]
        found = {
            OURS: our_rate(adapted, task, examples, config, round_),
            THEIRS: their_rate(bare, prompts, options.group, task.max_new_tokens, round_),
        }
        for name, rate in found.items():
            if round_:  # the first warms up
                rates[name].append(rate)
    of = statistics.median(rates[THEIRS])
    rows = [
        (name, *(f"{value:.0f}" for value in (min(found), middle, max(found))), f"{middle / of:.2f}")
        for name, found in rates.items()
        for middle in [statistics.median(found)]
    ]
    print_table((f"useful tokens/s, {options.prompts} x {options.group}", "min", "median", "max", "ratio"), rows)
    write_json(options.json, {"prompts": options.prompts, "group": options.group, "tokens_per_second": rates})


if __name__ == "__main__":
    main()
