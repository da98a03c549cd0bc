"""One training step, forward and backward: z of t2 beside a LoRA of rank 16 by PEFT, on the same tokens.

    python tests/benchmarks/train_step.py [--rows 48] [--length 64] [--rounds 3] [--json FILE] [--alone WAY]
                                          [--widths 512 1024 2048 4096] [--layers 2 4 8] [--device cpu|cuda]

On the default base, and with a quarter of the rows on random models of growing width and depth (`--widths` and
`--layers` without numbers: none). The loss is the mean log-probability of the tokens. Each way runs in a process of its
own, so that the peak memory is its own (growth over that of the loaded model); the
processes take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clock import now, peak_megabytes
from random_llama import FIXED_WIDTH, LAYERS, WIDTHS, Size, random_adapted, random_base, sizes
from table import print_table, write_json

SHARED, REFOLDED, FACTORED, LORA = "t2", "t2, folding included", "t2, autograd", "PEFT LoRA, rank 16"
WAYS = (SHARED, REFOLDED, FACTORED, LORA)
GROWN_WAYS = (SHARED, REFOLDED, LORA)
DEFAULT = "smollm2-135m"

Runs = dict[str, list[dict[str, Any]]]  # way -> what each process said


def loss_of(model: Any, ids: Any) -> Any:
    """Return the mean log-probability of the tokens, negated."""
    from t2cli.svf.policy_gradient import token_logp

    logits = model(input_ids=ids, use_cache=False).logits
    return -token_logp(logits[:, :-1], ids[:, 1:]).mean()


def run_t2(way: str, ids: Any, rounds: int, base: Any, size: Size | None) -> list[float]:
    """Return seconds per step with z, after one to warm up; in t2's own loop W' is there, from sampling with it."""
    import torch

    from t2cli.models.adapted import AdaptedModel
    from t2cli.svf.zvector import ZVectors, unflatten

    if size is None:
        adapted = AdaptedModel(base)
        adapted.prepare(quiet=True)
    else:
        adapted = random_adapted(size, base)
    flat = (1 + 0.1 * torch.randn(sum(adapted.ranks.values()), device=base.device)).requires_grad_()
    z = ZVectors({name: vector.detach() for name, vector in unflatten(flat, adapted.ranks).items()})
    seconds = []
    for _ in range(rounds + 1):
        if way == REFOLDED:
            adapted.release()
        elif way == SHARED:
            with adapted.use_z(z):  # as the rollouts do
                pass
        started = now()
        vectors = unflatten(flat, adapted.ranks)
        with adapted.with_tensors(vectors) if way == FACTORED else adapted.trained(z, vectors):
            loss_of(adapted.model, ids).backward()
        seconds.append(now() - started)
        flat.grad = None
    return seconds[1:]


def run_peft(ids: Any, rounds: int, base: Any) -> list[float]:
    """Return seconds per step with a LoRA on every linear layer."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(base.model, settings)
    seconds = []
    for _ in range(rounds + 1):
        started = now()
        loss_of(model, ids).backward()
        seconds.append(now() - started)
        model.zero_grad(set_to_none=True)
    return seconds[1:]


def alone(options: argparse.Namespace, size: Size | None) -> None:
    """Run one way in this process and print its numbers as JSON."""
    import torch

    from t2cli.models.base import load_base

    torch.manual_seed(0)
    base = random_base(size, options.device) if size else load_base(DEFAULT, device=options.device, quiet=True)
    ids = torch.randint(
        100, min(40_000, base.model.config.vocab_size), (options.rows, options.length), device=base.device
    )
    before = peak_megabytes()
    if options.alone == LORA:
        seconds = run_peft(ids, options.rounds, base)
    else:
        seconds = run_t2(options.alone, ids, options.rounds, base, size)
    print(json.dumps({"seconds": seconds, "megabytes": peak_megabytes() - before}))


def measured(ways: Sequence[str], turns: int, sizes: Sequence[object]) -> Runs:
    """Return what processes of each way, in turn, say they took; `sizes` are their arguments."""
    found: Runs = {way: [] for way in ways}
    for _ in range(turns):
        for way in ways:
            command = [sys.executable, __file__, *map(str, sizes), "--alone", way]
            result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
            found[way].append(json.loads(result.stdout.splitlines()[-1]))
    return found


def numbers_of(found: Runs) -> dict[str, Any]:
    """Return the seconds and the memory of each way."""
    return {
        "seconds": {way: [s for run in runs for s in run["seconds"]] for way, runs in found.items()},
        "megabytes": {way: max(run["megabytes"] for run in runs) for way, runs in found.items()},
    }


def rows_of(model: str, numbers: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the table's rows of one model."""
    seconds, memory = numbers["seconds"], numbers["megabytes"]
    median = {way: statistics.median(values) for way, values in seconds.items()}
    return [
        (
            f"{model}: {way}",
            f"{min(seconds[way]):.2f}",
            f"{median[way]:.2f}",
            f"{median[way] / median[LORA]:.2f}",
            f"{memory[way]:.0f}",
            f"{memory[way] / memory[LORA]:.2f}",
        )
        for way in seconds
    ]


def main() -> None:
    """Measure all ways in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="steps per process")
    parser.add_argument("--turns", type=int, default=2, help="processes per way")
    parser.add_argument("--widths", type=int, nargs="*", default=WIDTHS, help="of random models")
    parser.add_argument("--layers", type=int, nargs="*", default=LAYERS, help=f"of random models {FIXED_WIDTH} wide")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", choices=WAYS)
    parser.add_argument("--random", type=int, nargs=2, metavar=("WIDTH", "LAYERS"), help="with --alone: the model")
    options = parser.parse_args()
    if options.alone:
        size = Size(*options.random) if options.random else None
        alone(options, size)
        return
    on = ["--device", options.device]
    shape = [*on, "--rows", options.rows, "--length", options.length, "--rounds", options.rounds]
    found = {DEFAULT: numbers_of(measured(WAYS, options.turns, shape))}
    for size in sizes(options.widths, options.layers):
        rows, length = max(1, options.rows // 4), size.shorter(options.length)
        shape = [*on, "--rows", size.shorter(rows), "--length", length, "--rounds", min(2, options.rounds)]
        found[str(size)] = numbers_of(measured(GROWN_WAYS, 1, [*shape, "--random", *size]))
    table = [row for model, numbers in found.items() for row in rows_of(model, numbers)]
    tokens = f"{options.rows} x {options.length} tokens"
    print_table((tokens, "min s", "median s", "of PEFT's", "MB", "of PEFT's"), table)
    grown = {model: numbers for model, numbers in found.items() if model != DEFAULT}
    write_json(options.json, {**found[DEFAULT], "grown": grown})


if __name__ == "__main__":
    main()
