"""The growing cache holds what transformers' own would, whatever is done to it and in whatever order."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, MistralConfig
from transformers.cache_utils import DynamicSlidingWindowLayer

from t2cli.models.cache import CHUNK, GrowingLayer, growing_cache

CONFIG = LlamaConfig(num_hidden_layers=2, num_attention_heads=2, hidden_size=8)


def grow(caches: list[DynamicCache], batch: int, count: int) -> None:
    """Append the same random keys and values to all caches and compare what each returns."""
    for layer in range(2):
        keys, values = torch.randn(2, batch, 2, count, 4)
        returned = [cache.update(keys.clone(), values.clone(), layer) for cache in caches]
        assert all(torch.equal(pair[part], returned[0][part]) for pair in returned for part in (0, 1))


def assert_same(ours: DynamicCache, theirs: DynamicCache) -> None:
    assert ours.get_seq_length() == theirs.get_seq_length()
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(mine.keys, other.keys)
        assert torch.equal(mine.values, other.values)
        assert mine.get_mask_sizes(3) == other.get_mask_sizes(3)


@pytest.mark.parametrize("seed", range(8))
def test_any_sequence_of_operations(seed: int) -> None:
    chance = random.Random(seed)
    torch.manual_seed(seed)
    ours, theirs = growing_cache(CONFIG), DynamicCache(config=CONFIG)
    batch = 3
    grow([ours, theirs], batch, 5)
    for _ in range(60):
        operation = chance.choice(["token", "token", "token", "tokens", "select", "repeat", "reorder", "crop"])
        if operation == "token":
            grow([ours, theirs], batch, 1)
        elif operation == "tokens":
            grow([ours, theirs], batch, chance.randrange(2, CHUNK))
        elif operation == "select":
            kept = sorted(chance.sample(range(batch), max(1, batch - 1)))
            for cache in (ours, theirs):
                cache.batch_select_indices(torch.tensor(kept))
            batch = len(kept)
        elif operation == "repeat" and batch < 8:
            for cache in (ours, theirs):
                cache.batch_repeat_interleave(2)
            batch *= 2
        elif operation == "reorder":
            order = torch.tensor([chance.randrange(batch) for _ in range(batch)])
            for cache in (ours, theirs):
                cache.reorder_cache(order)
        elif operation == "crop":
            fewer = chance.randrange(1, 4)
            for cache in (ours, theirs):
                cache.crop(-fewer)
        assert_same(ours, theirs)


def test_every_length_around_the_edge_of_the_room() -> None:
    torch.manual_seed(0)
    ours, theirs = growing_cache(CONFIG), DynamicCache(config=CONFIG)
    for _ in range(2 * CHUNK + 3):
        grow([ours, theirs], 2, 1)
    assert_same(ours, theirs)


def test_growing_within_the_room_copies_nothing() -> None:
    cache = growing_cache(CONFIG)
    grow([cache], 2, 3)
    place = cache.layers[0].keys.data_ptr()
    for _ in range(CHUNK):
        grow([cache], 2, 1)
    assert cache.layers[0].keys.data_ptr() == place
    grow([cache], 2, 1)
    assert cache.layers[0].keys.data_ptr() != place


def test_copies_of_a_cache_are_independent() -> None:
    torch.manual_seed(0)
    cache, theirs = growing_cache(CONFIG), DynamicCache(config=CONFIG)
    grow([cache, theirs], 2, 5)
    first, second = copy.deepcopy(cache), copy.deepcopy(cache)
    their_first, their_second = copy.deepcopy(theirs), copy.deepcopy(theirs)
    grow([first, their_first], 2, 3)
    grow([second, their_second], 2, 3)
    assert_same(first, their_first)
    assert_same(second, their_second)
    assert_same(cache, theirs)


def test_reset_forgets() -> None:
    cache, theirs = growing_cache(CONFIG), DynamicCache(config=CONFIG)
    grow([cache], 2, 5)
    cache.reset()
    assert cache.get_seq_length() == 0
    grow([cache, theirs], 3, 2)
    assert_same(cache, theirs)


def test_sliding_layers_keep_their_own_kind() -> None:
    layers = growing_cache(MistralConfig(num_hidden_layers=2, sliding_window=4)).layers
    assert [type(layer) for layer in layers] == [DynamicSlidingWindowLayer] * 2
    assert all(type(layer) is GrowingLayer for layer in growing_cache(CONFIG).layers)
