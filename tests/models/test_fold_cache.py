"""Recently used experts stay folded, within a limit of memory."""

from __future__ import annotations

import torch

from t2cli.models.fold_cache import FoldCache
from t2cli.svf.zvector import ZVectors

BYTES = 4 * 100


def asked(cache: FoldCache, z: ZVectors, made: list[ZVectors]) -> dict[str, torch.Tensor]:
    def make() -> dict[str, torch.Tensor]:
        made.append(z)
        return {"w": torch.zeros(100)}

    return cache.get(z, make)


def experts(n: int) -> list[ZVectors]:
    return [ZVectors({"w": torch.ones(3)}) for _ in range(n)]


def test_what_fits_is_made_once() -> None:
    cache, made, (a, b) = FoldCache(2 * BYTES), [], experts(2)
    first = asked(cache, a, made)
    asked(cache, b, made)
    assert asked(cache, a, made) is first
    assert made == [a, b]


def test_the_least_recently_used_leaves_first() -> None:
    cache, made, (a, b, c) = FoldCache(2 * BYTES), [], experts(3)
    for z in (a, b, a, c, a, b):
        asked(cache, z, made)
    assert made == [a, b, c, b]


def test_one_is_kept_however_large() -> None:
    cache, made, (a, b) = FoldCache(0), [], experts(2)
    for z in (a, a, b, a):
        asked(cache, z, made)
    assert made == [a, b, a]


def test_equal_numbers_in_another_object_are_another_expert() -> None:
    cache, made, (a, b) = FoldCache(9 * BYTES), [], experts(2)
    assert asked(cache, a, made) is not asked(cache, b, made)


def test_nothing_is_left_after_clearing() -> None:
    cache, made, (a,) = FoldCache(9 * BYTES), [], experts(1)
    asked(cache, a, made)
    cache.clear()
    asked(cache, a, made)
    assert made == [a, a]


def test_it_is_made_when_it_would_have_paid_for_itself() -> None:
    cache, made, (a, b) = FoldCache(9 * BYTES), [], experts(2)
    assert [cache.pays(a, 4, 10) for _ in range(3)] == [False, False, True]
    asked(cache, a, made)
    assert cache.pays(a, 1, 10)
    assert not cache.pays(b, 9, 10)
    cache.clear()
    assert not cache.pays(a, 9, 10)  # what was done before is paid for


def test_only_the_newest_are_remembered() -> None:
    cache, many = FoldCache(9 * BYTES), experts(100)
    for z in many:
        assert not cache.pays(z, 9, 10)
    assert cache.pays(many[-1], 9, 10)
    assert not cache.pays(many[0], 9, 10)
