"""The processes that work on one model together, each with a copy of it.

All of them run the same program and call the same methods in the same order. This file has the form for a process that
is alone, where nothing is exchanged; training/distributed.py has the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")


class Team:
    """One process alone: its share is all, and what it says is what all say."""

    rank = 0
    size = 1

    @property
    def leads(self) -> bool:
        """Tell whether this process is the one that writes files and talks."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process' part of `items`; every item is in one process' part, and parts may be empty."""
        return items[self.rank :: self.size]

    def gathered(self, mine: Sequence[Item]) -> list[Item]:
        """Return what every process gave, one after the other."""
        return list(mine)

    def total(self, *numbers: float) -> list[float]:
        """Return each number summed over the processes."""
        return list(numbers)

    def least(self, number: int) -> int:
        """Return the smallest of the processes' numbers."""
        return number

    def add(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by the sum of all processes' ones, the same bits for all."""

    def told(self, value: Item) -> Item:
        """Return the value of the process that leads."""
        return value

    def check_same(self, tensor: torch.Tensor) -> None:
        """Raise T2Error unless all processes have this tensor, bit for bit."""
