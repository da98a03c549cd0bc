"""Put a prompt and all its rollouts into one row, so that the prompt is read once for the whole group.

Notation: P prompts, G rollouts per prompt, T completion tokens, L row length, K kept positions, V vocabulary.

A row is [padding, prompt, rollout 1, ..., rollout G, padding]. Each rollout attends to the prompt and to itself, and its
positions go on from the prompt's end: the log-probabilities are those of separate rows, up to rounding, for a
fraction of the tokens. All prompts end at the same index, so logits are wanted from there on only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn


class Packed(NamedTuple):
    """Model inputs of packed rows, and where each sampled token's prediction is among the kept logits."""

    ids: torch.Tensor  # (P, L)
    attention: torch.Tensor  # (P, 1, L, L), True where a query may look
    positions: torch.Tensor  # (P, L)
    kept: int  # K: logits are needed for the last K positions
    source: torch.Tensor  # (P, G, T) index among the K kept positions of the logits that predict the token
    tokens: torch.Tensor  # (P, G, T) the sampled token ids
    mask: torch.Tensor  # (P, G, T) 1 where there is a token


def pack(
    prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Sequence[int]]], device: torch.device
) -> Packed:
    """Return the packed rows of P prompts and their groups of G rollouts (token ids, none empty)."""
    longest = max(map(len, prompts))
    tail = max(sum(map(len, group)) for group in groups)
    rows, size = len(prompts), len(groups[0])
    length, span = longest + tail, max(len(rollout) for group in groups for rollout in group)
    ids = torch.zeros(rows, length, dtype=torch.long)
    positions = torch.zeros(rows, length, dtype=torch.long)
    segment = torch.full((rows, length), -1)  # -1 padding, 0 prompt, 1.. rollouts
    source = torch.zeros(rows, size, span, dtype=torch.long)
    tokens = torch.zeros(rows, size, span, dtype=torch.long)
    mask = torch.zeros(rows, size, span)
    for row, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
        ids[row, longest - len(prompt) : longest] = torch.tensor(prompt)
        positions[row, longest - len(prompt) : longest] = torch.arange(len(prompt))
        segment[row, longest - len(prompt) : longest] = 0
        start = longest
        for member, rollout in enumerate(group):
            n = len(rollout)
            ids[row, start : start + n] = torch.tensor(rollout)
            positions[row, start : start + n] = len(prompt) + torch.arange(n)
            segment[row, start : start + n] = member + 1
            # the prompt's last token predicts a rollout's first one, its own tokens the others
            source[row, member, 1:n] = start - longest + 1 + torch.arange(n - 1)
            tokens[row, member, :n] = torch.tensor(rollout)
            mask[row, member, :n] = 1
            start += n
    attention = _attention(segment)
    moved = (tensor.to(device) for tensor in (ids, attention, positions))
    return Packed(*moved, tail + 1, source.to(device), tokens.to(device), mask.to(device))


def _attention(segment: torch.Tensor) -> torch.Tensor:
    """Return (P, 1, L, L): causal, within the own segment and into the prompt; every position sees itself."""
    length = segment.shape[1]
    query, key = segment.unsqueeze(2), segment.unsqueeze(1)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = causal & ((key == 0) | (key == query)) & (key >= 0) & (query >= 0)
    return (allowed | torch.eye(length, dtype=torch.bool)).unsqueeze(1)


def rollout_logp(model: nn.Module, packed: Packed) -> torch.Tensor:
    """Return log pi(token) (P, G, T) of the sampled tokens under the model as it is; 0 where there is none."""
    dtype = model.get_input_embeddings().weight.dtype  # type: ignore[operator]
    bias = torch.zeros_like(packed.attention, dtype=dtype).masked_fill(
        ~packed.attention, torch.finfo(dtype).min
    )
    output = model(
        input_ids=packed.ids,
        attention_mask=bias,
        position_ids=packed.positions,
        use_cache=False,
        logits_to_keep=packed.kept,
    )
    logits = output.logits.float()  # (P, K, V)
    normaliser = torch.logsumexp(logits, dim=-1)  # (P, K)
    row = torch.arange(logits.shape[0], device=logits.device).view(-1, 1, 1)
    logp = logits[row, packed.source, packed.tokens] - normaliser[row, packed.source]  # (P, G, T)
    return logp * packed.mask
