"""Batched generation, token by token, and log-probabilities of given token ids.

One loop serves training, evaluation and chat: prompts of a group are read once and their cache is repeated for every
rollout, rows leave the batch when they end, and sampled token ids are returned as they are, never re-tokenised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from t2cli.config import SamplingConfig
from t2cli.models.adapted import AdaptedModel

SHRINK = (
    0.75  # finished rows leave the batch when fewer than this share are alive: copying the cache costs too
)


@dataclass(frozen=True)
class Completion:
    """Generated token ids, the end token included when there was one (`ended`)."""

    ids: tuple[int, ...]
    ended: bool


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and mask (B, T), padded on the left so that all prompts end together."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """Return position ids (B, T) that count only the tokens where mask (B, T) is 1."""
    return (mask.cumsum(dim=1) - 1).clamp_min(0)


@torch.inference_mode()
def generate(
    adapted: AdaptedModel,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    copies: int = 1,
    generator: torch.Generator | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Continue each of the prompts `copies` times under the expert in use; rows are grouped by prompt.

    `on_token(row, id)` is called as tokens come. Sampling at a temperature draws from `generator`, on the CPU, so
    that a seed gives the same numbers on every device.
    """
    model, eos = adapted.model, adapted.base.eos
    ids, mask = left_padded(prompts, adapted.base.device)
    output = model(
        input_ids=ids, attention_mask=mask, position_ids=positions_of(mask), use_cache=True, logits_to_keep=1
    )
    logits, cache = output.logits[:, -1], output.past_key_values
    if copies > 1:
        index = torch.arange(len(prompts), device=ids.device).repeat_interleave(copies)
        cache.batch_repeat_interleave(copies)
        adapted.select_rows(index)
        logits, mask = logits[index], mask[index]
    total = len(prompts) * copies
    written: list[list[int]] = [[] for _ in range(total)]
    ended = [False] * total
    rows = list(range(total))  # the output row of each row still in the batch
    for step in range(sampling.max_new_tokens):
        chosen = choose(logits, sampling.temperature, generator)  # (B,)
        for place, token in enumerate(chosen.tolist()):
            row = rows[place]
            if not ended[row]:
                written[row].append(token)
                ended[row] = token in eos
                if on_token is not None and not ended[row]:
                    on_token(row, token)
        alive = [place for place, row in enumerate(rows) if not ended[row]]
        if not alive or step + 1 == sampling.max_new_tokens:
            break
        if len(alive) <= SHRINK * len(rows):
            keep = torch.tensor(alive, device=ids.device)
            cache.batch_select_indices(keep)
            adapted.select_rows(keep)
            chosen, mask, rows = chosen[keep], mask[keep], [rows[place] for place in alive]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        output = model(
            input_ids=chosen.unsqueeze(1),
            attention_mask=mask,
            position_ids=mask.sum(dim=1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1]
    return [Completion(tuple(tokens), end) for tokens, end in zip(written, ended, strict=True)]


def choose(logits: torch.Tensor, temperature: float, generator: torch.Generator | None) -> torch.Tensor:
    """Return one token id per row (B,) of logits (B, V): the best at temperature 0, else a draw."""
    if temperature <= 0:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits.float().cpu() / temperature, dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1).to(logits.device)


def greedy_in_batches(
    adapted: AdaptedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    batch_size: int = 32,
    on_done: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Return the greedy completion of every prompt, in their order; prompts of like length share a batch."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    results: dict[int, Completion] = {}
    sampling = SamplingConfig(max_new_tokens=max_new_tokens)
    for batch in chunks(order, batch_size):
        completions = generate(adapted, [prompts[index] for index in batch], sampling)
        results.update(zip(batch, completions, strict=True))
        if on_done is not None:
            on_done(len(batch))
    return [results[index] for index in range(len(prompts))]


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yield consecutive parts of `items` of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
