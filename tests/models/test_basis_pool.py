"""Small matrices are computed side by side, one thread each, within a bound of memory; large ones alone."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from threadpoolctl import threadpool_info

from t2cli.config import DecomposeConfig
from t2cli.models.basis_pool import compute_each, workers_for
from t2cli.models.targets import Target


@pytest.mark.parametrize("workers", [1, 4])
def test_small_matrices_run_together_and_large_ones_alone(workers: int) -> None:
    shapes = [(512, 512)] * 8 + [(1025, 1025)] + [(512, 512)] * 3 + [(900, 1000)] * 6
    targets = [Target(str(place), "", shape) for place, shape in enumerate(shapes)]
    running: list[Target] = []
    seen: list[list[Target]] = []
    begun: list[Target] = []
    lock = threading.Lock()

    def make(target: Target) -> bool:
        with lock:
            running.append(target)
            begun.append(target)
            seen.append(list(running))
        time.sleep(0.01)
        with lock:
            running.remove(target)
        return True

    results = list(compute_each(targets, make, workers))
    assert sorted(results, key=lambda pair: int(pair[0].weight)) == [(target, True) for target in targets]
    small_first = sorted(targets, key=lambda target: workers > 1 and target.rank > 1024)
    assert begun == small_first
    assert max(map(len, seen)) == workers
    assert all(len(together) == 1 for together in seen if any(target.rank > 1024 for target in together))
    assert max(sum(32 * t.shape[0] * t.shape[1] for t in together) for together in seen) <= 100_000_000


def test_threads_are_what_they_were_before() -> None:
    threads, libraries = torch.get_num_threads(), [pool["num_threads"] for pool in threadpool_info()]
    inside: list[int] = []

    def make(target: Target) -> bool:
        inside.append(torch.get_num_threads())
        inside.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return True

    assert len(list(compute_each([Target(str(place), "", (8, 8)) for place in range(4)], make, 2))) == 4
    assert set(inside) == {1}
    assert (torch.get_num_threads(), [pool["num_threads"] for pool in threadpool_info()]) == (threads, libraries)


def test_other_devices_compute_one_after_the_other() -> None:
    assert workers_for(DecomposeConfig(workers=3)) == 3
    assert workers_for(DecomposeConfig()) == torch.get_num_threads()
    assert workers_for(DecomposeConfig(device="cuda", workers=3)) == workers_for(DecomposeConfig(device="cuda")) == 1
