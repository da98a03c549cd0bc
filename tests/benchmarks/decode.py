"""Decoding speed of a batch: the base, one expert, every row another expert, and PEFT with every row another LoRA.

    python tests/benchmarks/decode.py [--batch 16] [--tokens 48] [--rounds 5] [--json FILE] [--no-peft]

The rounds take turns, so that a machine that slows down slows all of them; ratios are of the medians. All use the same
loop, cache and prompts on the default base. LoRA: rank 16 on all linear layers, one adapter per row (`adapter_names`).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from table import print_table, write_json

PROMPT = 24  # tokens
RANK = 16


def decode_rate(model: Any, ids: torch.Tensor, tokens: int, config: Any, **call: Any) -> float:
    """Return generated tokens per second of `ids` (B, T), the reading of the prompt not counted."""
    from t2cli.models.cache import growing_cache

    cache = growing_cache(config)
    with torch.inference_mode():
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **call).logits
        started = time.perf_counter()
        for _ in range(tokens):
            chosen = logits[:, -1].argmax(dim=-1, keepdim=True)
            logits = model(input_ids=chosen, past_key_values=cache, use_cache=True, **call).logits
        return tokens * len(ids) / (time.perf_counter() - started)


def peft_model(batch: int) -> Any:
    """Return a copy of the default base with one random LoRA per row."""
    from peft import LoraConfig, get_peft_model

    from t2cli.models.base import load_base

    model = load_base("smollm2-135m", device="cpu", quiet=True).model
    settings = LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(model, settings, adapter_name="row0")
    for row in range(1, batch):
        adapted.add_adapter(f"row{row}", settings)
    return adapted.eval()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peft", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from t2cli.models.adapted import AdaptedModel
    from t2cli.models.base import load_base
    from t2cli.svf.zvector import ZVectors

    torch.manual_seed(0)
    adapted = AdaptedModel(load_base("smollm2-135m", device="cpu", quiet=True))
    adapted.prepare(quiet=True)
    batch, config = options.batch, adapted.model.config
    ids = torch.randint(100, 40_000, (batch, PROMPT))
    experts = [ZVectors({n: 1 + 0.1 * torch.randn(r) for n, r in adapted.ranks.items()}) for _ in range(batch)]

    @contextmanager
    def per_row() -> Iterator[None]:
        with adapted.per_row(experts):
            yield

    ways: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "base": nullcontext,
        "one expert": lambda: adapted.use_z(experts[0]),
        "every row another expert": per_row,
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    lora = None if options.no_peft else peft_model(batch)
    lora_name = f"PEFT, every row another LoRA of rank {RANK}"
    if lora is not None:
        rates[lora_name] = []
    names = [f"row{row}" for row in range(batch)]
    for round_ in range(options.rounds + 1):
        for name, way in ways.items():
            with way():
                rate = decode_rate(adapted.model, ids, options.tokens, config)
            if round_:  # the first warms up
                rates[name].append(rate)
        if lora is not None:
            rate = decode_rate(lora, ids, options.tokens, config, adapter_names=names)
            if round_:
                rates[lora_name].append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    rows = [
        (
            name,
            f"{min(values):.0f}",
            f"{medians[name]:.0f}",
            f"{max(values):.0f}",
            f"{medians[name] / medians['base']:.2f}",
        )
        for name, values in rates.items()
    ]
    print_table((f"tokens/s, batch {batch}", "min", "median", "max", "of the base"), rows)
    if lora is not None:
        print(f"per row against PEFT: {medians['every row another expert'] / medians[lora_name]:.2f}")
    write_json(options.json, {"batch": batch, "tokens_per_second": rates})


if __name__ == "__main__":
    main()
