"""One training step, forward and backward: z of t2 beside a LoRA of rank 16 by PEFT, on the same tokens.

    python tests/benchmarks/train_step.py [--rows 48] [--length 64] [--rounds 3] [--json FILE] [--alone WAY]

The loss is the mean log-probability of the tokens. Each way runs in a process of its own, so that the peak memory is
its own (growth of the largest resident size over that of the loaded model); the processes take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from table import print_table, write_json

SHARED, REFOLDED, FACTORED, LORA = "t2", "t2, folding included", "t2, autograd", "PEFT LoRA, rank 16"
WAYS = (SHARED, REFOLDED, FACTORED, LORA)


def loss_of(model: Any, ids: Any) -> Any:
    """Return the mean log-probability of the tokens, negated."""
    from t2cli.svf.policy_gradient import token_logp

    logits = model(input_ids=ids, use_cache=False).logits
    return -token_logp(logits[:, :-1], ids[:, 1:]).mean()


def run_t2(way: str, ids: Any, rounds: int, base: Any) -> list[float]:
    """Return seconds per step with z, after one to warm up; in t2's own loop W' is there, from sampling with it."""
    import torch

    from t2cli.models.adapted import AdaptedModel
    from t2cli.svf.zvector import ZVectors, unflatten

    adapted = AdaptedModel(base)
    adapted.prepare(quiet=True)
    flat = (1 + 0.1 * torch.randn(sum(adapted.ranks.values()))).requires_grad_()
    z = ZVectors({name: vector.detach() for name, vector in unflatten(flat, adapted.ranks).items()})
    seconds = []
    for _ in range(rounds + 1):
        if way == REFOLDED:
            adapted.release()
        elif way == SHARED:
            with adapted.use_z(z):  # as the rollouts do
                pass
        started = time.perf_counter()
        vectors = unflatten(flat, adapted.ranks)
        with adapted.with_tensors(vectors) if way == FACTORED else adapted.trained(z, vectors):
            loss_of(adapted.model, ids).backward()
        seconds.append(time.perf_counter() - started)
        flat.grad = None
    return seconds[1:]


def run_peft(ids: Any, rounds: int, base: Any) -> list[float]:
    """Return seconds per step with a LoRA on every linear layer."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(base.model, settings)
    seconds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        loss_of(model, ids).backward()
        seconds.append(time.perf_counter() - started)
        model.zero_grad(set_to_none=True)
    return seconds[1:]


def alone(way: str, rows: int, length: int, rounds: int) -> None:
    """Run one way in this process and print its numbers as JSON."""
    import resource

    import torch

    from t2cli.models.base import load_base

    torch.manual_seed(0)
    base = load_base("smollm2-135m", device="cpu", quiet=True)
    ids = torch.randint(100, 40_000, (rows, length))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = run_peft(ids, rounds, base) if way == LORA else run_t2(way, ids, rounds, base)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"seconds": seconds, "megabytes": grown / 1024}))


def main() -> None:
    """Measure all ways in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="steps per process")
    parser.add_argument("--turns", type=int, default=2, help="processes per way")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", choices=WAYS)
    options = parser.parse_args()
    if options.alone:
        alone(options.alone, options.rows, options.length, options.rounds)
        return
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    sizes = ["--rows", str(options.rows), "--length", str(options.length), "--rounds", str(options.rounds)]
    for _ in range(options.turns):
        for way in WAYS:
            command = [sys.executable, __file__, *sizes, "--alone", way]
            result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
            found[way].append(json.loads(result.stdout.splitlines()[-1]))
    seconds = {way: [s for run in runs for s in run["seconds"]] for way, runs in found.items()}
    memory = {way: max(run["megabytes"] for run in runs) for way, runs in found.items()}
    of = LORA
    rows = [
        (
            way,
            f"{min(seconds[way]):.2f}",
            f"{statistics.median(seconds[way]):.2f}",
            f"{statistics.median(seconds[way]) / statistics.median(seconds[of]):.2f}",
            f"{memory[way]:.0f}",
            f"{memory[way] / memory[of]:.2f}",
        )
        for way in WAYS
    ]
    tokens = f"{options.rows} x {options.length} tokens"
    print_table((tokens, "min s", "median s", "of PEFT's", "MB", "of PEFT's"), rows)
    write_json(options.json, {"seconds": seconds, "megabytes": memory})


if __name__ == "__main__":
    main()
