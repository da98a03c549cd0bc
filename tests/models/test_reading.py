"""Prompts that are read in groups, each in its own way, go on together as if they had been read together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from t2cli.config import SamplingConfig
from t2cli.models.adapted import AdaptedModel
from t2cli.models.generate import Completion, continued, generate
from t2cli.models.reading import may_read_in_groups, read_in_groups
from t2cli.svf.zvector import ZVectors

Adapt = Callable[..., AdaptedModel]
MakeZ = Callable[..., ZVectors]

SYSTEM = list(range(20, 32))
PROMPTS = [[*SYSTEM, 5, 9, 200], [17], [*SYSTEM, 250], [60, 61], [*SYSTEM, 44, 45, 46, 47], [7, 8, 9]]
SAMPLING = SamplingConfig(max_new_tokens=12, temperature=1.0)
VARIANTS = ["llama-grouped", "qwen3", "phi3", "gpt2", "gpt-neox", "olmo2", "falcon", "mixtral"]


@torch.inference_mode()
def in_groups(adapted: AdaptedModel, experts: list[ZVectors | None], draws: torch.Tensor) -> list[Completion]:
    """Return what rows say, of which 0, 2 and 4 are read folded, 1 and 5 as the base, and 3 per row."""
    a, _, b = experts[0], experts[1], experts[3]
    assert a is not None
    groups = [
        ((0, 2, 4), partial(adapted.use_z, a)),
        ((3,), partial(adapted.per_row, [b])),
        ((5, 1), adapted.reference),
    ]
    start = read_in_groups(adapted, PROMPTS, groups)
    with adapted.per_row(experts):
        return continued(adapted, *start, SAMPLING, [12] * len(PROMPTS), draws)


@pytest.mark.parametrize("variant", VARIANTS)
def test_groups_go_on_as_rows_that_were_read_together(variant: str, adapt: Adapt, random_z: MakeZ) -> None:
    adapted = adapt(variant, double=True)
    assert may_read_in_groups(adapted)
    a, b = random_z(adapted.ranks, seed=1), random_z(adapted.ranks, seed=2)
    experts = [a, None, a, b, a, None]
    draws = torch.rand(len(PROMPTS), 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with adapted.per_row(experts):
        together = generate(adapted, PROMPTS, SAMPLING, draws=draws)
    assert in_groups(adapted, experts, draws) == together
    assert len({completion.ids for completion in together}) > 3  # they have something to differ in


@pytest.mark.parametrize("variant", ["gemma2", "gemma3", "gpt-oss"])
def test_a_sliding_window_would_count_padding(variant: str, adapt: Adapt) -> None:
    assert not may_read_in_groups(adapt(variant))


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4, 5], [3, 0, 5, 1, 2, 4]])
def test_one_group_of_all_in_any_order(rows: list[int], adapt: Adapt) -> None:
    adapted = adapt("llama")
    with torch.inference_mode():
        start = read_in_groups(adapted, PROMPTS, [(rows, adapted.reference)])
        found = continued(adapted, *start, SamplingConfig(5), [5] * len(PROMPTS))
    assert found == generate(adapted, PROMPTS, SamplingConfig(5))


def test_an_expert_is_folded_once_what_it_read_would_have_paid_for_it(adapt: Adapt, random_z: MakeZ) -> None:
    adapted = adapt("llama")
    z, other = random_z(adapted.ranks), random_z(adapted.ranks, seed=1)
    cost = sum(t.rank**2 * sum(t.shape) for t in adapted.targets) // sum(t.rank**2 for t in adapted.targets)
    assert not adapted.folding_pays(z, cost // 2)
    assert not adapted.folding_pays(other, cost // 2)
    assert adapted.folding_pays(z, cost - cost // 2)
    assert not adapted.folding_pays(other, 1)
    with adapted.use_z(other):
        pass
    assert adapted.folding_pays(other, 1)  # it is at hand
    adapted.release()
    assert not adapted.folding_pays(other, 1)  # and had to be made anew
    assert not adapted.folding_pays(ZVectors({}), 10**9)  # there is nothing to fold
