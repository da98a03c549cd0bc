"""Training in several processes, on one machine or more, as torchrun starts them.

    torchrun --nproc-per-node 2 -m t2cli train --task math

Every process has the whole base. Of a step's prompts each samples and backpropagates its share; the gradient of z alone
is added up, 0.4 MB for the default base, so the update, the best checkpoint and the decision to stop are the same
everywhere. The first process alone writes and talks. When one dies torchrun ends all; --resume goes on.

How much goes through a model at once is each process' own affair within a step (models/memory.py): nothing is
exchanged between micro-batches. After the step all go on with the least.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from t2cli.errors import T2Error, UsageError
from t2cli.models.team import Item, Team
from t2cli.paths import launched

if TYPE_CHECKING:
    import torch

PATIENCE = timedelta(minutes=30)  # the others wait while one of them fetches or decomposes the base


class Ranks(Team):
    """The processes of torch.distributed's default group."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    def gathered(self, mine: Sequence[Item]) -> list[Item]:
        """Return what every process gave, in the order of the processes."""
        import torch.distributed as dist

        everybody: list[Any] = [None] * self.size
        with _exchanging():
            dist.all_gather_object(everybody, list(mine))
        return [item for items in everybody for item in items]

    def total(self, *numbers: float) -> list[float]:
        """Return each number summed over the processes, in float64."""
        import torch

        summed = torch.tensor(numbers, dtype=torch.float64)
        self.add(summed)
        return [float(number) for number in summed]

    def least(self, number: int) -> int:
        """Return the smallest of the processes' numbers."""
        return min(self.gathered([number]))

    def add(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by the sum of all processes' ones, the same bits for all."""
        import torch.distributed as dist

        reachable = tensor if tensor.device.type in ("cpu", "cuda") else tensor.cpu()
        with _exchanging():
            dist.all_reduce(reachable)
        if reachable is not tensor:
            tensor.copy_(reachable)

    def told(self, value: Item) -> Item:
        """Return the value of the process that leads."""
        import torch.distributed as dist

        said: list[Any] = [value]
        with _exchanging():
            dist.broadcast_object_list(said, src=0)
        told: Item = said[0]
        return told

    def check_same(self, tensor: torch.Tensor) -> None:
        """Raise T2Error unless all processes have this tensor, bit for bit."""
        mine = hashlib.sha256(tensor.detach().cpu().numpy().tobytes()).hexdigest()
        if len(set(self.gathered([mine]))) > 1:
            raise T2Error(
                "the processes of this training no longer have the same z",
                hint="use the same versions of t2, torch and transformers everywhere, and go on with --resume",
            )


@contextmanager
def _exchanging() -> Iterator[None]:
    """Say in a user's words that another process has gone; want of memory is this process' own affair."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise T2Error(
            f"another process of this training has ended, or cannot be reached: {_first_line(error)}",
            hint="its own message says why; start all of them again with --resume",
        ) from error


def _first_line(error: Exception) -> str:
    """Return what an error says first; torch's own go on with a trace of C++."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _join(backend: str) -> None:
    """Meet the other processes where torchrun says."""
    import torch.distributed as dist

    try:
        dist.init_process_group(backend, timeout=PATIENCE)
    except RuntimeError as error:
        raise T2Error(
            f"the processes of this training did not meet: {_first_line(error)}",
            hint="start all of them, with an address that each can reach and a port that is free (torchrun --help)",
        ) from error


@contextmanager
def joined(device: str) -> Iterator[Team]:
    """Join the processes that torchrun started with this one; alone without torchrun.

    `device` as in --device; on CUDA each process of a machine takes a GPU of its own. Raises UsageError where there
    are fewer of them than processes.
    """
    place = launched()
    if place is None:
        yield Team()
        return
    import torch
    import torch.distributed as dist

    from t2cli.models.base import SPREAD, resolve_device

    if device == SPREAD:
        raise UsageError(
            "--device spread is for one process, which uses all devices",
            hint="start t2 train without torchrun, or leave out --device",
        )
    on_cuda = resolve_device(device).type == "cuda"
    if on_cuda:
        if place.local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"{place.local_rank + 1} processes on this machine, and {torch.cuda.device_count()} GPUs",
                hint="give torchrun --nproc-per-node the number of GPUs",
            )
        torch.cuda.set_device(place.local_rank)
    _join("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    yield Ranks(place.rank, place.size)
    dist.destroy_process_group()  # not after an error: it could wait for processes that are gone
