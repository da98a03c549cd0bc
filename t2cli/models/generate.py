"""Batched generation, token by token, and log-probabilities of given token ids.

One loop serves training, evaluation and chat: prompts of a group are read once and their cache is repeated for every
rollout, rows leave the batch when they end, and sampled token ids are returned as they are, never re-tokenised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from t2cli.config import SamplingConfig
from t2cli.errors import DivergedError, UsageError
from t2cli.models.base import BaseModel
from t2cli.models.memory import Room
from t2cli.models.reading import read
from t2cli.models.text_model import TextModel

COLDEST = 1e-6  # temperature
SHRINK = 0.75  # finished rows leave the batch when fewer than this share are alive: copying the cache costs too

Stop = Callable[[Sequence[int]], bool]  # whether the token ids of a completion are all that is wanted


@dataclass(frozen=True)
class Completion:
    """Generated token ids, the end token included when there was one; `ended`: by it, or because it was complete."""

    ids: tuple[int, ...]
    ended: bool


@torch.inference_mode()
def generate(
    adapted: TextModel,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    copies: int = 1,
    generator: torch.Generator | None = None,
    draws: torch.Tensor | None = None,
    on_token: Callable[[int, int], None] | None = None,
    limits: Sequence[int] | None = None,
    stop: Stop | None = None,
) -> list[Completion]:
    """Continue each of the prompts `copies` times under the expert in use; rows are grouped by prompt.

    `on_token(row, id)` is called as tokens come. Sampling at a temperature takes a number per row and token of `draws`
    (see `draw`), by default drawn from `generator`: what a row says does not depend on the rows beside it. `limits`
    are the most new tokens of each row, where they differ; no row gets more than the base can read. A row also ends
    with the token after which `stop` finds it complete. Raises UsageError for a prompt that leaves no room for a token.
    """
    if not all(prompts):
        raise ValueError("a prompt needs at least one token")
    room = [left_for(adapted.base, prompt) for prompt in prompts for _ in range(copies)]
    most = list(map(min, limits or [sampling.max_new_tokens] * len(room), room))
    if adapted.rows not in (None, len(prompts)):
        raise ValueError(f"{adapted.rows} rows have experts of their own, and there are {len(prompts)} prompts")
    with adapted.rows_kept():
        logits, cache, mask = read(adapted, prompts)
        if copies > 1:
            index = torch.arange(len(prompts), device=logits.device).repeat_interleave(copies)
            cache.batch_repeat_interleave(copies)
            adapted.select_rows(index)
            logits, mask = logits[index], mask[index]
        if draws is None and sampling.temperature > 0:
            draws = draw(len(logits), sampling, generator)
        return continued(adapted, logits, cache, mask, sampling, most, draws, on_token, stop)


def left_for(base: BaseModel, prompt: Sequence[int]) -> int:
    """Return how many tokens an answer to a prompt may have. Raises UsageError where that is none."""
    room = base.context - len(prompt)
    if room < 1:
        raise UsageError(
            f"the prompt has {len(prompt)} tokens and {base.identity.name} reads at most {base.context}",
            hint="shorten it, or use a base with a longer context",
        )
    return room


def draw(rows: int, sampling: SamplingConfig, generator: torch.Generator | None) -> torch.Tensor:
    """Return the random numbers (rows, max_new_tokens) in [0, 1) that choose the tokens of so many rows.

    On the CPU, so that a seed gives the same numbers on every device; all before the first token, so that it gives
    them however the rows are spread over batches and processes.
    """
    return torch.rand(rows, sampling.max_new_tokens, generator=generator, dtype=torch.float64)


def continued(
    adapted: TextModel,
    logits: torch.Tensor,
    cache: DynamicCache,
    mask: torch.Tensor,
    sampling: SamplingConfig,
    most: Sequence[int],
    draws: torch.Tensor | None = None,
    on_token: Callable[[int, int], None] | None = None,
    stop: Stop | None = None,
) -> list[Completion]:
    """Generate from logits (B, V), the cache behind them and its mask (B, T); `most` tokens per row."""
    eos, total = adapted.base.eos, len(logits)
    written: list[list[int]] = [[] for _ in range(total)]
    ended = [False] * total
    rows = list(range(total))  # the output row of each row still in the batch
    for step in range(max(most)):
        chosen = choose(logits, sampling.temperature, None if draws is None else draws[rows, step])  # (B,)
        for place, token in enumerate(chosen.tolist()):
            row = rows[place]
            if not ended[row] and step < most[row]:
                written[row].append(token)
                ended[row] = token in eos or (stop is not None and stop(written[row]))
                if on_token is not None and not ended[row]:
                    on_token(row, token)
        alive = [place for place, row in enumerate(rows) if not ended[row] and step + 1 < most[row]]
        if not alive:
            break
        if len(alive) <= SHRINK * len(rows):
            keep = torch.tensor(alive)  # on the CPU, for layers and their caches may be on several devices
            cache.batch_select_indices(keep)
            adapted.select_rows(keep)
            chosen, mask, rows = chosen[keep], mask[keep], [rows[place] for place in alive]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        # rows that have ended stay for a while, and must not be read beyond the last position of a learned embedding
        positions = (mask.sum(dim=1, keepdim=True) - 1).clamp_max(adapted.base.context - 1)
        output = adapted.model(
            input_ids=chosen.unsqueeze(1),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1]
    return [Completion(tuple(tokens), end) for tokens, end in zip(written, ended, strict=True)]


def choose(logits: torch.Tensor, temperature: float, drawn: torch.Tensor | None) -> torch.Tensor:
    """Return one token id per row (B,) of logits (B, V): the best at temperature 0, else that of drawn (B,) in [0, 1).

    A temperature below COLDEST is 0: float32 cannot hold logits divided by it. Raises DivergedError where
    the model's numbers have overflowed: no token means anything then.
    """
    if temperature < COLDEST or drawn is None:
        best, chosen = logits.max(dim=-1)
        _check_finite(best)
        return chosen
    # the inverse of the distribution function: one random number per row, where torch.multinomial draws one per token
    where = logits.device if logits.device.type != "mps" else torch.device("cpu")  # MPS has no float64
    cumulative = torch.softmax(logits.float().to(where) / temperature, dim=-1).double().cumsum(dim=-1)
    _check_finite(cumulative[:, -1])
    wanted = drawn.to(where).unsqueeze(1) * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, wanted, right=True).squeeze(1)
    return chosen.clamp_max(logits.shape[-1] - 1).to(logits.device)


def _check_finite(values: torch.Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise DivergedError(
            "the model's predictions are not finite numbers",
            hint="the expert, or the weights of the mix, change the base too much: use smaller weights",
        )


def greedy_in_batches(
    adapted: TextModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    batch_size: int | None = None,
    on_done: Callable[[int], None] | None = None,
    stop: Stop | None = None,
) -> list[Completion]:
    """Return the greedy completion of every prompt, in their order; prompts of like length share a batch.

    Batches are of `batch_size`, by default of the model's `answers_at_once`, and smaller where memory runs out. A
    model's team shares the prompts, and every process returns all completions.
    """
    mine = adapted.team.share(sorted(range(len(prompts)), key=lambda index: len(prompts[index])))
    sampling = SamplingConfig(max_new_tokens=max_new_tokens)

    def answered(batch: Sequence[int]) -> list[tuple[int, Completion]]:
        completions = generate(adapted, [prompts[index] for index in batch], sampling, stop=stop)
        if on_done is not None:
            on_done(len(batch))
        return list(zip(batch, completions, strict=True))

    room = adapted.answers_at_once if batch_size is None else Room(batch_size, "answers")
    with adapted.team.diverging_together():
        found = [pair for part in room.over(mine, answered) for pair in part]
    results = dict(adapted.team.gathered(found))
    if on_done is not None and len(mine) < len(prompts):
        on_done(len(prompts) - len(mine))
    return [results[index] for index in range(len(prompts))]


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yield consecutive parts of `items` of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
