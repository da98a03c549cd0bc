"""Time and memory on the CPU and on GPUs, which work on while Python goes ahead."""

from __future__ import annotations

import resource
import time

import torch


def now() -> float:
    """Return seconds on a clock, once everything that was given to a GPU is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_megabytes() -> float:
    """Return the most memory this process has had so far: on the GPU if it uses one, else resident."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
