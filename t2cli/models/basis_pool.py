"""Small matrices side by side, each on one thread, and large ones alone on all: no thread waits for another.

Two decompositions of 576 x 576 on one thread each took 0.6 of the time of two in turn on two threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from t2cli.config import DecomposeConfig
from t2cli.models.targets import Target

SMALL_RANK = 1024  # larger matrices are computed alone: the libraries' own threads are enough for them
SMALL_TOGETHER = 100_000_000  # bytes that small matrices may take together where the largest weight takes less


def workers_for(config: DecomposeConfig) -> int:
    """Return how many small matrices are computed at once; other devices compute one after the other."""
    import torch

    # CUDA's linear algebra may not be entered by two threads at first, and gains nothing from more
    return (config.workers or torch.get_num_threads()) if config.device == "cpu" else 1


def compute_each(
    targets: Sequence[Target], make: Callable[[Target], bool | None], workers: int
) -> Iterator[tuple[Target, bool | None]]:
    """Yield each target with `make(target)`: the small ones first, up to `workers` at once, then the others alone.

    What is in memory at once takes no more than the largest weight alone, or than SMALL_TOGETHER where that is more.
    """
    small = [target for target in targets if workers > 1 and target.rank <= SMALL_RANK]
    with _one_thread_each() if small else contextlib.nullcontext():
        yield from _side_by_side(small, make, workers, max(SMALL_TOGETHER, *map(_cost, targets)) if small else 0)
    chosen = set(small)
    yield from ((target, make(target)) for target in targets if target not in chosen)


def _cost(target: Target) -> int:
    return 32 * target.shape[0] * target.shape[1]  # four float64 copies


def _side_by_side(
    targets: Sequence[Target], make: Callable[[Target], bool | None], workers: int, limit: int
) -> Iterator[tuple[Target, bool | None]]:
    """Yield each target with `make(target)` from a pool whose running ones take at most `limit` bytes."""
    running: dict[Future[bool | None], Target] = {}
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for target in targets:
            while running and (len(running) == workers or _cost(target) + sum(map(_cost, running.values())) > limit):
                yield from _finished(running)
            running[pool.submit(make, target)] = target
        while running:
            yield from _finished(running)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let libraries compute on one thread in the block: two small matrices are done sooner than in turn."""
    import torch
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(threads)


def _finished(running: dict[Future[bool | None], Target]) -> Iterator[tuple[Target, bool | None]]:
    """Wait until some of `running` are finished; take them out and yield them in the order in which they began."""
    done = wait(running, return_when=FIRST_COMPLETED).done
    if any(future.exception() for future in done):
        done = wait(running).done  # of several that fail, the first to begin is the one told of, whoever is faster
    for future in [future for future in running if future in done]:
        yield running.pop(future), future.result()
