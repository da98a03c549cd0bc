"""The folded weights of recently used experts, so that switching back to one costs nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch

from t2cli.svf.zvector import ZVectors

FOLD_CACHE_BYTES = 2 << 30
REMEMBERED = 16  # experts that are not folded, of which is known how much has been done without


class FoldCache:
    """The folded weights of recently used experts, the least recently used leaving first.

    One expert's weights are always kept, however large; more of them only while all are within `limit` bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._without: dict[int, tuple[ZVectors, int]] = {}  # by id: how much was done without the folded weights
        self._kept: dict[int, tuple[ZVectors, dict[str, torch.Tensor]]] = {}  # by id: the key object is kept too

    def get(self, z: ZVectors, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Return the folded weights of this `z`, from `make` if they are not here."""
        found = self._kept.pop(id(z), None)
        if found is None:
            self._make_room(sum(size_of(W) for _, folded in list(self._kept.values())[-1:] for W in folded.values()))
            found = (z, make())
            self._without.pop(id(z), None)
        self._kept[id(z)] = found
        return found[1]

    def pays(self, z: ZVectors, work: int, cost: int) -> bool:
        """Tell whether to do `work` with the folded weights of `z`, and count it where it is done without.

        They are used where they are here, or where making them costs no more than all that was done without. So no
        more than twice is lost of what knowing the future would save.
        """
        if id(z) in self._kept:
            return True
        _, before = self._without.pop(id(z), (z, 0))
        self._without[id(z)] = (z, before + work)
        while len(self._without) > REMEMBERED:
            del self._without[next(iter(self._without))]
        return before + work >= cost

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()

    def _make_room(self, expected: int) -> None:
        """Drop the oldest until `expected` more bytes fit."""
        while self._kept and self._bytes() + expected > self.limit:
            del self._kept[next(iter(self._kept))]

    def _bytes(self) -> int:
        return sum(size_of(W) for _, folded in self._kept.values() for W in folded.values())


def size_of(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor."""
    return tensor.numel() * tensor.element_size()
