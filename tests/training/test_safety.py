"""Steps are bounded in weight space, and a policy that falls apart is noticed while it does."""

from __future__ import annotations

import itertools

import pytest
import torch

from t2cli.svf.basis import basis_of
from t2cli.training.safety import WINDOW, CollapseWatch, bounded, relative_change


def test_the_change_is_that_of_the_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(12, 20, generator=generator, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    delta = 0.1 * torch.randn(12, generator=generator, dtype=torch.float64)
    expected = torch.linalg.matrix_norm(U @ torch.diag(S * delta) @ Vh) / torch.linalg.matrix_norm(W)
    assert relative_change(delta, basis_of(W).S) == pytest.approx(float(expected), rel=1e-6)


def test_a_long_step_is_shortened_and_a_short_one_left_alone() -> None:
    S, delta = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([0.1, -0.2, 0.3])
    short = bounded(delta, S, 1.0)
    assert short is delta
    cut = bounded(delta, S, 0.01)
    assert relative_change(cut, S) == pytest.approx(0.01, rel=1e-5)
    torch.testing.assert_close(cut / cut.norm(), delta / delta.norm())  # the direction stays


def verdicts(rewards: list[float], kl: float | None = 0.3) -> list[str]:
    watch = CollapseWatch()
    return [watch.see(reward, kl, 48) for reward in rewards]


def test_a_reward_that_falls_to_nothing_is_a_collapse() -> None:
    said = verdicts([-0.2] * 6 + [-1.0] * WINDOW)
    assert said[:6] == [""] * 6
    first = next(why for why in said if why)
    assert "right rollouts fell from 40% to" in first
    assert said.index(first) < 6 + WINDOW


@pytest.mark.parametrize("level", [-0.9, -0.5, 0.0, 0.8])
def test_noise_is_no_collapse(level: float) -> None:
    generator = torch.Generator().manual_seed(1)
    chance = torch.full((200, 48), (level + 1) / 2)
    rewards = 2 * torch.bernoulli(chance, generator=generator).mean(dim=1) - 1
    assert not any(verdicts(rewards.tolist()))


def test_rewards_that_begin_low_and_rise_are_no_collapse() -> None:
    assert not any(verdicts([-1.0] * 8 + [-1 + 0.1 * i for i in range(12)]))


def test_a_policy_that_runs_away_from_the_base_is_a_collapse() -> None:
    said = verdicts([-0.8] * WINDOW + [-0.88] * WINDOW, kl=8.0)
    assert next(why for why in said if why) == "the policy ran 8.0 nats per token away from the base"


def test_a_policy_that_learns_on_its_way_is_none() -> None:
    """Where answers are a token or two, a good policy may be far from the base."""
    assert not any(verdicts([-1 + 0.1 * i for i in range(18)], kl=8.0))


def test_one_step_with_a_large_kl_is_none() -> None:
    watch = CollapseWatch()
    kls = itertools.chain([0.2, 9.0], itertools.repeat(0.2, 10))
    assert not any(watch.see(-0.5, kl, 48) for kl in kls)


def test_records_that_did_not_count_their_rollouts_are_passed_over() -> None:
    watch = CollapseWatch()
    assert [watch.see(-1.0, None, 0) for _ in range(5)] == [""] * 5


def test_a_kl_that_was_not_measured_is_not_zero() -> None:
    watch = CollapseWatch()
    rewards = [-0.8] * WINDOW + [-0.88] * 2 * WINDOW
    said = [watch.see(reward, 8.0 if step % 2 else None, 48) for step, reward in enumerate(rewards)]
    assert any(said)
