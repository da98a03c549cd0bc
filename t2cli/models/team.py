"""The processes that work on one model together, each with a copy of it.

All of them run the same program and call the same methods in the same order. This file has the form for a process that
is alone, where nothing is exchanged; training/distributed.py has the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from t2cli.errors import DivergedError

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

    @contextmanager
    def diverging_together(self) -> Iterator[None]:
        """Have a DivergedError of one process in the block raised in all of them, when all have left it.

        Nothing may be exchanged within the block. Else one process would give up the step, and the others wait for it.
        """
        mine: DivergedError | None = None
        try:
            yield
        except DivergedError as error:
            mine = error
        said = [error for error in self.gathered([(mine.message, mine.hint) if mine else None]) if error is not None]
        if said:
            message, hint = said[0]
            raise DivergedError(message, hint=hint) from mine

    def check_same(self, tensor: torch.Tensor) -> None:
        """Raise T2Error unless all processes have this tensor, bit for bit."""
