"""Decoding speed of a batch: the base, one expert, every row another expert, and PEFT with every row another LoRA.

    python tests/benchmarks/decode.py [--batch 16] [--tokens 48] [--rounds 5] [--json FILE] [--no-peft]
                                      [--base-layers 30] [--widths 512 1024 2048 4096] [--layers 2 4 8]
                                      [--device cpu|cuda]

The rounds take turns, so that a machine that slows down slows all of them; ratios are of the medians. All use the same
loop, cache and prompts on the default base, and on random models of growing width and depth (`--widths` and `--layers`
without numbers: none; a quarter of the tokens and two rounds). LoRA: rank 16 on all linear layers, one adapter per row
(`adapter_names`).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from clock import now
from random_llama import FIXED_WIDTH, LAYERS, WIDTHS, Size, random_adapted, random_base, sizes
from table import print_table, write_json

if TYPE_CHECKING:
    from t2cli.models.adapted import AdaptedModel
    from t2cli.models.base import BaseModel

Ways = dict[str, Callable[[], float]]

DEFAULT = "smollm2-135m"
PROMPT = 24  # tokens
RANK = 16
BASE, PER_ROW, LORA = "base", "every row another expert", f"PEFT, every row another LoRA of rank {RANK}"


def decode_rate(model: Any, ids: torch.Tensor, tokens: int, config: Any, **call: Any) -> float:
    """Return generated tokens per second of `ids` (B, T), the reading of the prompt not counted."""
    from t2cli.models.cache import growing_cache

    cache = growing_cache(config)
    with torch.inference_mode():
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **call).logits
        started = now()
        for _ in range(tokens):
            chosen = logits[:, -1].argmax(dim=-1, keepdim=True)
            logits = model(input_ids=chosen, past_key_values=cache, use_cache=True, **call).logits
        return tokens * len(ids) / (now() - started)


def shortened(base: BaseModel, layers: int) -> BaseModel:
    """Return the base with its first layers only."""
    base.model.model.layers = base.model.model.layers[:layers]
    base.model.config.num_hidden_layers = len(base.model.model.layers)
    return base


def peft_model(base: BaseModel, batch: int) -> Any:
    """Return the base with one random LoRA per row."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(base.model, settings, adapter_name="row0")
    for row in range(1, batch):
        adapted.add_adapter(f"row{row}", settings)
    return adapted.eval()


def ways(make: Callable[[], BaseModel], adapted: AdaptedModel, tokens: int, *, batch: int, with_peft: bool) -> Ways:
    """Return by name what measures the tokens per second of each way; the base is transformers' own, not wrapped."""
    from t2cli.svf.zvector import ZVectors

    bare, config = make().model, adapted.model.config
    ids = torch.randint(100, min(40_000, config.vocab_size), (batch, PROMPT), device=bare.device)
    experts = [ZVectors({n: 1 + 0.1 * torch.randn(r) for n, r in adapted.ranks.items()}) for _ in range(batch)]

    def one_expert() -> float:
        with adapted.use_z(experts[0]):
            return decode_rate(adapted.model, ids, tokens, config)

    def per_row() -> float:
        with adapted.per_row(experts):
            return decode_rate(adapted.model, ids, tokens, config)

    found: Ways = {
        BASE: lambda: decode_rate(bare, ids, tokens, config),
        "one expert": one_expert,
        PER_ROW: per_row,
    }
    if with_peft:
        lora, names = peft_model(make(), batch), [f"row{row}" for row in range(batch)]
        found[LORA] = lambda: decode_rate(lora, ids, tokens, config, adapter_names=names)
    return found


def on_default(options: argparse.Namespace) -> Ways:
    """Return the ways on the default base."""
    from t2cli.models.adapted import AdaptedModel
    from t2cli.models.base import load_base

    def make() -> BaseModel:
        return shortened(load_base(DEFAULT, device=options.device, quiet=True), options.base_layers)

    adapted = AdaptedModel(make())
    adapted.prepare(quiet=True)
    return ways(make, adapted, options.tokens, batch=options.batch, with_peft=not options.no_peft)


def on_random(size: Size, options: argparse.Namespace) -> Ways:
    """Return the ways on a random model."""
    tokens = size.shorter(max(1, options.tokens // 4))
    adapted = random_adapted(size, random_base(size, options.device))
    return ways(
        lambda: random_base(size, options.device), adapted, tokens, batch=options.batch, with_peft=not options.no_peft
    )


def measured(found: Ways, rounds: int) -> dict[str, list[float]]:
    """Return the tokens per second of each way, in turn, after one round to warm up."""
    rates: dict[str, list[float]] = {name: [] for name in found}
    for round_ in range(rounds + 1):
        for name, way in found.items():
            rate = way()
            if round_:
                rates[name].append(rate)
    return rates


def rows_of(model: str, rates: dict[str, list[float]]) -> list[tuple[str, ...]]:
    """Return the table's rows of one model."""
    base = statistics.median(rates[BASE])
    rows = []
    for name, values in rates.items():
        median = statistics.median(values)
        numbers = (min(values), median, max(values))
        rows.append((f"{model}: {name}", *(f"{value:.0f}" for value in numbers), f"{median / base:.2f}"))
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--base-layers", type=int, default=30, help="the first so many layers of the default base")
    parser.add_argument("--widths", type=int, nargs="*", default=WIDTHS, help="of random models")
    parser.add_argument("--layers", type=int, nargs="*", default=LAYERS, help=f"of random models {FIXED_WIDTH} wide")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--no-peft", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    found = {DEFAULT: measured(on_default(options), options.rounds)}
    for size in sizes(options.widths, options.layers):
        found[str(size)] = measured(on_random(size, options), min(2, options.rounds))
    rows = [row for model, rates in found.items() for row in rows_of(model, rates)]
    print_table((f"tokens/s, batch {options.batch}", "min", "median", "max", "of the base"), rows)
    if not options.no_peft:
        medians = {name: statistics.median(values) for name, values in found[DEFAULT].items()}
        print(f"per row against PEFT: {medians[PER_ROW] / medians[LORA]:.2f}")
    grown = {model: rates for model, rates in found.items() if model != DEFAULT}
    numbers = {"tokens_per_second": found[DEFAULT], "grown": grown}
    write_json(options.json, {"batch": options.batch, "layers": options.base_layers, **numbers})


if __name__ == "__main__":
    main()
