"""Decoding speed of a batch: the base, one expert, every row another expert, and PEFT with every row another LoRA.

    python tests/benchmarks/decode.py [--batch 16] [--tokens 48] [--rounds 5] [--layers 30] [--json FILE] [--no-peft]

The rounds take turns, so that a machine that slows down slows all of them; ratios are of the medians. All use the same
loop, cache and prompts on the default base. LoRA: rank 16 on all linear layers, one adapter per row (`adapter_names`).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from table import print_table, write_json

if TYPE_CHECKING:
    from t2cli.models.base import BaseModel

PROMPT = 24  # tokens
RANK = 16
BASE, PER_ROW, LORA = "base", "every row another expert", f"PEFT, every row another LoRA of rank {RANK}"


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


def shortened(base: BaseModel, layers: int) -> BaseModel:
    """Return the base with its first layers only."""
    base.model.model.layers = base.model.model.layers[:layers]
    base.model.config.num_hidden_layers = len(base.model.model.layers)
    return base


def peft_model(batch: int, layers: int) -> Any:
    """Return a copy of the default base with one random LoRA per row."""
    from peft import LoraConfig, get_peft_model

    from t2cli.models.base import load_base

    model = shortened(load_base("smollm2-135m", device="cpu", quiet=True), layers).model
    settings = LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(model, settings, adapter_name="row0")
    for row in range(1, batch):
        adapted.add_adapter(f"row{row}", settings)
    return adapted.eval()


def ways(batch: int, tokens: int, layers: int, *, with_peft: bool) -> dict[str, Callable[[], float]]:
    """Return by name what measures the tokens per second of each way; the base is transformers' own, not wrapped."""
    from t2cli.models.adapted import AdaptedModel
    from t2cli.models.base import load_base
    from t2cli.svf.zvector import ZVectors

    bare = shortened(load_base("smollm2-135m", device="cpu", quiet=True), layers).model
    adapted = AdaptedModel(shortened(load_base("smollm2-135m", device="cpu", quiet=True), layers))
    adapted.prepare(quiet=True)
    ids, config = torch.randint(100, 40_000, (batch, PROMPT)), adapted.model.config
    experts = [ZVectors({n: 1 + 0.1 * torch.randn(r) for n, r in adapted.ranks.items()}) for _ in range(batch)]

    def one_expert() -> float:
        with adapted.use_z(experts[0]):
            return decode_rate(adapted.model, ids, tokens, config)

    def per_row() -> float:
        with adapted.per_row(experts):
            return decode_rate(adapted.model, ids, tokens, config)

    found: dict[str, Callable[[], float]] = {
        BASE: lambda: decode_rate(bare, ids, tokens, config),
        "one expert": one_expert,
        PER_ROW: per_row,
    }
    if with_peft:
        lora, names = peft_model(batch, layers), [f"row{row}" for row in range(batch)]
        found[LORA] = lambda: decode_rate(lora, ids, tokens, config, adapter_names=names)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=30, help="the first so many layers of the base")
    parser.add_argument("--no-peft", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    measured = ways(options.batch, options.tokens, options.layers, with_peft=not options.no_peft)
    rates: dict[str, list[float]] = {name: [] for name in measured}
    for round_ in range(options.rounds + 1):
        for name, way in measured.items():
            rate = way()
            if round_:  # the first warms up
                rates[name].append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    rows = [
        (
            name,
            *(f"{value:.0f}" for value in (min(values), medians[name], max(values))),
            f"{medians[name] / medians[BASE]:.2f}",
        )
        for name, values in rates.items()
    ]
    print_table((f"tokens/s, batch {options.batch}", "min", "median", "max", "of the base"), rows)
    if LORA in medians:
        print(f"per row against PEFT: {medians[PER_ROW] / medians[LORA]:.2f}")
    write_json(options.json, {"batch": options.batch, "layers": options.layers, "tokens_per_second": rates})


if __name__ == "__main__":
    main()
