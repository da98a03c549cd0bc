"""Experts as numbers: mixing, flattening, immutability."""

from __future__ import annotations

import pytest
import torch

from t2cli.svf.zvector import ZVectors, identity, mix, unflatten

RANKS = {"b.weight": 3, "a.weight": 5}


def expert(seed: int, ranks: dict[str, int] = RANKS) -> ZVectors:
    generator = torch.Generator().manual_seed(seed)
    return ZVectors({name: 1 + 0.5 * torch.randn(r, generator=generator) for name, r in ranks.items()})


def assert_same(ours: ZVectors, theirs: ZVectors, atol: float = 0.0) -> None:
    assert list(ours) == list(theirs)
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=0, atol=atol), name


def test_order_is_that_of_the_names_and_counts_are_right() -> None:
    z = expert(0)
    assert list(z) == ["a.weight", "b.weight"]
    assert (len(z), z.parameters, z.ranks) == (2, 8, {"a.weight": 5, "b.weight": 3})


def test_unflatten_undoes_flat_and_passes_gradients() -> None:
    z = expert(0)
    flat = z.flat().requires_grad_()
    parts = unflatten(flat, RANKS)
    assert all(torch.equal(parts[name], z[name]) for name in z)
    (parts["b.weight"] * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert flat.grad is not None
    assert flat.grad.tolist() == [0, 0, 0, 0, 0, 1, 2, 3]


def test_later_changes_of_the_given_tensor_do_not_reach_the_expert() -> None:
    given = torch.ones(3)
    z = ZVectors({"a": given})
    given.mul_(2)
    assert torch.equal(z["a"], torch.ones(3))


def test_numbers_become_detached_float32() -> None:
    z = ZVectors({"a": torch.ones(3, dtype=torch.bfloat16, requires_grad=True)})
    assert (z["a"].dtype, z["a"].requires_grad) == (torch.float32, False)


@pytest.mark.parametrize("bad", [torch.ones(2, 2), torch.tensor(1.0), torch.ones(3, dtype=torch.int64)])
def test_what_is_no_vector_of_floats_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="float vector"):
        ZVectors({"a": bad})


def test_one_hot_mix_is_that_expert() -> None:
    a, b = expert(0), expert(1)
    assert_same(mix([(1.0, a), (0.0, b)]), a)
    assert_same(mix([(0.0, a), (1.0, b)]), b)


def test_no_members_or_no_weight_is_the_base() -> None:
    assert len(mix([])) == 0
    assert_same(mix([(0.0, expert(0))]), identity(RANKS))


@pytest.mark.parametrize("alphas", [(0.3, 0.7), (1.5, -0.5), (0.25, 0.75)])
def test_mix_is_the_papers_where_the_alphas_sum_to_one(alphas: tuple[float, float]) -> None:
    a, b = expert(0), expert(1)
    paper = ZVectors({name: alphas[0] * a[name] + alphas[1] * b[name] for name in a})
    assert_same(mix(list(zip(alphas, (a, b), strict=True))), paper, atol=3e-7)


def test_base_has_what_the_alphas_leave() -> None:
    z = ZVectors({"a": torch.tensor([3.0, 0.0])})
    assert mix([(0.25, z)])["a"].tolist() == [1.5, 0.75]
    assert mix([(2.0, z)])["a"].tolist() == [5.0, -1.0]


def test_order_of_members_does_not_matter() -> None:
    members = [(0.2, expert(0)), (0.3, expert(1)), (0.4, expert(2))]
    assert_same(mix(members), mix(members[::-1]), atol=1e-6)


def test_missing_matrix_counts_as_one() -> None:
    a, b = ZVectors({"a": torch.tensor([3.0])}), ZVectors({"b": torch.tensor([5.0])})
    mixed = mix([(0.5, a), (0.25, b)])
    assert (mixed["a"].tolist(), mixed["b"].tolist()) == ([2.0], [2.0])


def test_ranks_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="rank 3 in one expert and 4"):
        mix([(0.5, ZVectors({"a": torch.ones(3)})), (0.5, ZVectors({"a": torch.ones(4)}))])


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), float("-inf")])
def test_alpha_must_be_finite(alpha: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        mix([(alpha, expert(0))])


def test_mixing_leaves_the_members_alone() -> None:
    a = expert(0)
    before = a.flat()
    mix([(0.5, a), (0.5, expert(1))])
    assert torch.equal(a.flat(), before)
