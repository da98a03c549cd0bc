"""When memory runs out: less goes through the model at once, and what failed is done again."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from t2cli.errors import T2Error

# What the allocators of the CPU and of MPS, and CUDA's libraries, say in a plain RuntimeError; CUDA's allocator has a
# class of its own.
SAID = (
    *("DefaultCPUAllocator: can't allocate memory", "not enough memory", "bad_alloc", "MPS backend out of memory"),
    *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that there was no memory, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in SAID)


class Room:
    """How many things go through the model at once: half as many, from then on, each time that memory runs out."""

    def __init__(self, size: int, things: str, say: Callable[[str], None] | None = None) -> None:
        self.size = size
        self.things = things
        self.say = say

    def over(self, items: Sequence[Item], work: Callable[[Sequence[Item]], Result]) -> list[Result]:
        """Return what `work` makes of consecutive parts of `items`, each of at most `size`.

        `work` must leave nothing behind where it fails: its part is then given to it again, in halves. Raises T2Error
        where memory does not even suffice for one item.
        """
        results: list[Result] = []
        start = 0
        while start < len(items):
            part = items[start : start + self.size]
            try:
                results.append(work(part))
                start += len(part)
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise T2Error(
                        f"there is not enough memory for one of the {self.things} alone",
                        hint="use a smaller --base, a task with shorter answers, or a device with more memory",
                    ) from error
            # out of the handler: the failed attempt's frames, and all that they held, are gone only here
            self._halve(len(part))
        return results

    def _halve(self, tried: int) -> None:
        self.size = (tried + 1) // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.say is not None:
            self.say(f"memory ran out with {tried} {self.things} at once: going on with {self.size}")
