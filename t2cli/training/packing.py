"""Put the prompts of a step and all their rollouts into one row, so that what they share is read once.

Notation: P prompts, G rollouts per prompt, T completion tokens, L row length, K predicted positions, V vocabulary.

The row is a tree: [what all prompts begin with] [rest of prompt 1] [rollout 1.1] ... [rest of prompt 2] ... A token
attends to its own part and to those above it, and its position is its depth in the tree: the log-probabilities are
those of separate rows, up to rounding, for a third of the tokens or less, and without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from t2cli.errors import T2Error
from t2cli.models.cache import attention_window
from t2cli.models.reading import common_prefix


class Packed(NamedTuple):
    """Model inputs of a packed row, and where each sampled token's prediction is among the predicted positions."""

    ids: torch.Tensor  # (1, L)
    attention: torch.Tensor  # (1, 1, L, L), True where a query may look
    positions: torch.Tensor  # (1, L)
    predicted: torch.Tensor  # (K,) the positions whose logits are needed; on the CPU, where any device can read them
    source: torch.Tensor  # (P, G, T) index among the K positions of the logits that predict the token
    tokens: torch.Tensor  # (P, G, T) the sampled token ids
    mask: torch.Tensor  # (P, G, T) 1 where there is a token


class _Row:
    """A packed row while it grows: ids, depth, part and the part's parent."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.part: list[int] = []
        self.parent = [-1]

    def add(self, ids: Sequence[int], depth: int, parent: int) -> int:
        """Append a part below `parent` and return its number."""
        number = len(self.parent)
        self.parent.append(parent)
        self.ids += ids
        self.positions += range(depth, depth + len(ids))
        self.part += [number] * len(ids)
        return number

    def attention(self) -> torch.Tensor:
        """Return (1, 1, L, L): causal, within a part and into those above it."""
        parts = len(self.parent)
        sees = torch.eye(parts, dtype=torch.bool)
        for number in range(1, parts):  # parents come first
            sees[number] |= sees[self.parent[number]]
        part = torch.tensor(self.part)
        causal = torch.ones(len(part), len(part), dtype=torch.bool).tril()
        return (causal & sees[part][:, part])[None, None]


def pack(prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Sequence[int]]], device: torch.device) -> Packed:
    """Return the packed row of P prompts and their groups of G rollouts (token ids, none empty)."""
    span = max(len(rollout) for group in groups for rollout in group)
    shape = (len(prompts), len(groups[0]), span)
    source, tokens = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape)
    shared = common_prefix(prompts)
    row = _Row()
    predicted: list[int] = []
    trunk = row.add(prompts[0][:shared], 0, 0)
    for p, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
        stem = row.add(prompt[shared:], shared, trunk)
        first = len(predicted)
        predicted.append(len(row.ids) - 1)  # the prompt's last token predicts the first of every rollout
        for g, rollout in enumerate(group):
            start, n = len(row.ids), len(rollout)
            row.add(rollout, len(prompt), stem)
            source[p, g, 0] = first
            source[p, g, 1:n] = len(predicted) + torch.arange(n - 1)
            predicted += range(start, start + n - 1)
            tokens[p, g, :n] = torch.tensor(rollout)
            mask[p, g, :n] = 1
    ids, positions = torch.tensor([row.ids]).to(device), torch.tensor([row.positions]).to(device)
    found = (source.to(device), tokens.to(device), mask.to(device))
    return Packed(ids, row.attention().to(device), positions, torch.tensor(predicted), *found)


def rollout_logp(model: nn.Module, packed: Packed, temperature: float = 1.0) -> torch.Tensor:
    """Return log pi(token) (P, G, T) of the sampled tokens under the model as it is; 0 where there is none.

    pi is the distribution at the `temperature` that tokens were drawn at. Raises T2Error where a prompt with its
    rollout is longer than the model's sliding window: the tree has none.
    """
    window, longest = attention_window(model.config), int(packed.positions.max()) + 1
    if window is not None and longest > window:
        raise T2Error(
            f"a prompt with its answer has {longest} tokens, and layers of this base have a window of {window}",
            hint="use shorter prompts and answers, or a base with full attention",
        )
    dtype = model.get_input_embeddings().weight.dtype  # type: ignore[operator]
    bias = torch.zeros_like(packed.attention, dtype=dtype).masked_fill(~packed.attention, torch.finfo(dtype).min)
    output = model(
        input_ids=packed.ids,
        attention_mask=bias,
        position_ids=packed.positions,
        use_cache=False,
        logits_to_keep=packed.predicted,
    )
    logits = output.logits[0].float()  # (K, V)
    if temperature != 1:  # the quotient is another copy of the largest tensor there is
        logits = logits / temperature
    normaliser = torch.logsumexp(logits, dim=-1)  # (K,)
    logp: torch.Tensor = logits[packed.source, packed.tokens] - normaliser[packed.source]  # (P, G, T)
    return logp * packed.mask
