"""A key/value cache that grows in place.

transformers' DynamicCache copies all keys and values for every token; at 48 rows that was a quarter of the time of
generation. Here each layer has room ahead, and copies once per CHUNK tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

CHUNK = 64  # tokens of room to add when a layer is full


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A DynamicLayer whose `keys` and `values` (B, heads, T, d) are the filled parts of larger buffers."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past = self.get_seq_length()
        end = past + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < end:
            room = end + CHUNK
            self._buffers = (
                _with_room(self.keys, key_states, past, room),
                _with_room(self.values, value_states, past, room),
            )
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., past:end, :] = states
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Reorder the rows; the copies get new buffers when they grow."""
        super().reorder_cache(beam_idx)
        self._buffers = None

    def reset(self) -> None:
        """Forget everything."""
        self._buffers = None
        super().reset()

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row; the copies get new buffers when they grow."""
        super().batch_repeat_interleave(repeats)
        self._buffers = None

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices`; the copies get new buffers when they grow."""
        super().batch_select_indices(indices)
        self._buffers = None


def _with_room(old: torch.Tensor, like: torch.Tensor, past: int, room: int) -> torch.Tensor:
    buffer = like.new_empty(*like.shape[:-2], room, like.shape[-1])
    if past:
        buffer[..., :past, :] = old
    return buffer


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """Return an empty cache for a model; layers that are not plain full attention keep transformers' own kind."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def attention_window(config: PreTrainedConfig) -> int | None:
    """Return how many tokens back the narrowest layer of a model looks, itself included; None without such a limit.

    0 for layers that keep a state instead of keys and values.
    """
    layers = DynamicCache(config=config).layers
    return min(
        (getattr(layer, "sliding_window", 0) for layer in layers if type(layer) is not DynamicLayer), default=None
    )
