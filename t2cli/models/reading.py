"""Prompts into the model: padding, shared beginnings, and groups of rows that are read in different ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch.nn import functional
from transformers import DynamicCache

from t2cli.models.cache import attention_window, growing_cache
from t2cli.models.text_model import TextModel

WORTH_SHARING = 8  # tokens; a shorter common beginning costs more to repeat than to read again

Group = tuple[Sequence[int], Callable[[], AbstractContextManager[None]]]  # rows, and what is in use while they are read


class Prompted(NamedTuple):
    """Where generation begins: the logits (B, V) after the prompts, the cache behind them, and its mask (B, T)."""

    logits: torch.Tensor
    cache: DynamicCache
    mask: torch.Tensor


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all prompts begin with, each keeping at least one of its own."""
    first, most = prompts[0], min(map(len, prompts)) - 1
    for index in range(most):
        if any(prompt[index] != first[index] for prompt in prompts):
            return index
    return most


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


def read(adapted: TextModel, prompts: Sequence[Sequence[int]]) -> Prompted:
    """Return the prompts as read under what is in use.

    What all prompts begin with (a system text, a template) is read once, unless each row has its own expert. Then
    padding is between the beginning and the rest, which a sliding window would count as tokens: no sharing there.
    """
    model, device = adapted.model, adapted.base.device
    cache = growing_cache(model.config)
    may_share = len(prompts) > 1 and not adapted.rows_differ and attention_window(model.config) is None
    shared = common_prefix(prompts) if may_share else 0
    if shared >= WORTH_SHARING:
        prefix = torch.tensor([prompts[0][:shared]], device=device)
        model(input_ids=prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(prompts))
        prompts = [prompt[shared:] for prompt in prompts]
    else:
        shared = 0
    ids, mask = left_padded(prompts, device)
    mask = torch.cat([mask.new_ones(len(prompts), shared), mask], dim=1)
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions_of(mask)[:, shared:],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return Prompted(output.logits[:, -1], cache, mask)


def may_read_in_groups(adapted: TextModel) -> bool:
    """Tell whether rows that were read apart can go on together: a sliding window would count padding as tokens."""
    return attention_window(adapted.model.config) is None


def read_in_groups(adapted: TextModel, prompts: Sequence[Sequence[int]], groups: Sequence[Group]) -> Prompted:
    """Return the prompts as read group by group, together again; every row is in one group."""
    parts = []
    for rows, use in groups:
        with use():
            parts.append(read(adapted, [prompts[row] for row in rows]))
    places = [row for rows, _ in groups for row in rows]
    if len(parts) == 1 and places == sorted(places):
        return parts[0]
    order = torch.tensor(places).argsort()  # on the CPU, for layers may be on several devices
    longest = max(part.mask.shape[1] for part in parts)
    short = [longest - part.mask.shape[1] for part in parts]
    cache = growing_cache(adapted.model.config)
    for index in range(len(cache.layers)):
        layers = [part.cache.layers[index] for part in parts]
        keys = [functional.pad(layer.keys, (0, 0, n, 0)) for layer, n in zip(layers, short, strict=True)]
        values = [functional.pad(layer.values, (0, 0, n, 0)) for layer, n in zip(layers, short, strict=True)]
        cache.update(torch.cat(keys)[order], torch.cat(values)[order], index)
    mask = torch.cat([functional.pad(part.mask, (n, 0)) for part, n in zip(parts, short, strict=True)])
    return Prompted(torch.cat([part.logits for part in parts])[order], cache, mask[order])
