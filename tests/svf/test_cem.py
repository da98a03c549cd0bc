"""The cross-entropy method finds known optima, breaks ties, and never scores a candidate twice."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from t2cli.config import CEMConfig
from t2cli.svf.cem import Score, search

CONFIG = CEMConfig(iterations=60, patience=60)
TARGET = torch.tensor([0.8, -0.3, 1.4], dtype=torch.float64)


def near(candidates: torch.Tensor) -> list[Score]:
    return [(-float(((candidate - TARGET) ** 2).sum()),) for candidate in candidates]


@pytest.mark.parametrize("seed", range(4))
def test_it_finds_a_known_optimum(seed: int) -> None:
    found = search(near, torch.full((3,), 0.3), replace(CONFIG, seed=seed))
    assert torch.allclose(found.best, TARGET, atol=0.03)
    assert torch.allclose(found.mean, TARGET, atol=0.05)
    assert float(found.std.max()) < 0.1
    assert found.score == near(found.best.unsqueeze(0))[0]


def test_ties_of_a_coarse_score_are_broken_by_the_next() -> None:
    def coarse(candidates: torch.Tensor) -> list[Score]:
        return [(math.floor(fine * 2) / 2, fine) for (fine,) in near(candidates)]

    assert torch.allclose(search(coarse, torch.full((3,), 0.3), CONFIG).best, TARGET, atol=0.03)


def test_same_seed_same_bits_and_another_seed_others() -> None:
    first, again = (search(near, torch.zeros(3), CONFIG) for _ in range(2))
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in ("best", "mean", "std"))
    assert not torch.equal(search(near, torch.zeros(3), replace(CONFIG, seed=1)).best, first.best)


def test_no_candidate_is_scored_twice_and_a_generation_is_one_call() -> None:
    calls: list[torch.Tensor] = []

    def counted(candidates: torch.Tensor) -> list[Score]:
        calls.append(candidates)
        return near(candidates)

    found = search(counted, torch.zeros(3), CONFIG, also=[TARGET, torch.zeros(3), TARGET])
    scored = torch.cat(calls)
    assert len(calls) == found.iterations
    assert len(scored.unique(dim=0)) == len(scored) == found.evaluations
    assert all(len(call) <= CONFIG.population for call in calls)


def test_what_nobody_would_notice_does_not_prolong_the_search() -> None:
    def faint(candidates: torch.Tensor) -> list[Score]:
        return [(0.5, 1e-4 * fine) for (fine,) in near(candidates)]

    config = replace(CONFIG, patience=3)
    short = search(faint, torch.zeros(3), config)
    assert short.iterations == 1 + config.patience
    assert search(faint, torch.zeros(3), replace(config, least_gain=0.0)).iterations > short.iterations
    assert short.score == max(
        short.score, (0.5, 1e-4 * near(torch.zeros(1, 3))[0][0])
    )  # the best is found all the same


def test_many_small_steps_add_up() -> None:
    steps = iter(range(1000))

    def rising(candidates: torch.Tensor) -> list[Score]:
        return [(0.001 * next(steps),)] * len(candidates)

    assert search(rising, torch.zeros(3), replace(CONFIG, iterations=30, patience=6)).iterations == 30


def test_the_result_is_no_worse_than_any_start() -> None:
    config = replace(CONFIG, iterations=1)
    found = search(near, torch.zeros(3), config, also=[torch.ones(3), TARGET])
    assert torch.equal(found.best, TARGET)
    assert found.iterations == 1


def test_it_ends_early_when_nothing_gets_better() -> None:
    told: list[int] = []
    config = replace(CONFIG, patience=3)
    found = search(lambda c: [(0.0,)] * len(c), torch.zeros(2), config, on_iteration=lambda i, _: told.append(i))
    assert found.iterations == 4
    assert told == [1, 2, 3, 4]
    assert float(found.std.min()) >= config.least_sigma


def test_a_score_that_is_no_number_is_the_worst() -> None:
    def broken(candidates: torch.Tensor) -> list[Score]:
        return [
            (math.nan,) if candidate[0] > 0.5 else value
            for candidate, value in zip(candidates, near(candidates), strict=True)
        ]

    found = search(broken, torch.zeros(3), CONFIG)
    assert float(found.best[0]) == pytest.approx(0.5, abs=0.05)
