"""The policy gradient against numbers worked out by hand and against an independent formula."""

from __future__ import annotations

import math

import pytest
import torch

from t2cli.svf.policy_gradient import k2, k3, leave_one_out, policy_gradient_loss, token_logp


def test_leave_one_out_by_hand() -> None:
    rewards = torch.tensor([[1.0, -1.0, -1.0, -1.0], [1.0, 1.0, -1.0, -1.0], [1.0, 1.0, 1.0, 1.0]])
    third = 2 / 3
    wanted = [[2.0, -third, -third, -third], [2 * third, 2 * third, -2 * third, -2 * third], [0.0] * 4]
    assert torch.allclose(leave_one_out(rewards), torch.tensor(wanted))


def test_advantages_sum_to_zero_per_prompt_and_ignore_a_common_shift() -> None:
    rewards = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    advantages = leave_one_out(rewards)
    assert torch.allclose(advantages.sum(dim=1), torch.zeros(5), atol=1e-6)
    assert torch.allclose(leave_one_out(rewards + 7), advantages, atol=1e-5)


@pytest.mark.parametrize("value", [x / 100 for x in range(-100, 101)])
def test_equal_rewards_teach_exactly_nothing(value: float) -> None:
    for group in (2, 3, 4, 7):
        assert leave_one_out(torch.full((1, group), value)).tolist() == [[0.0] * group]


def test_one_rollout_has_no_baseline() -> None:
    with pytest.raises(ValueError, match="at least two"):
        leave_one_out(torch.ones(3, 1))


def test_token_logp_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0]])
    found = token_logp(logits, torch.tensor([1, 0]))
    assert torch.allclose(found, torch.tensor([math.log(0.75), math.log(0.5)]))


def test_token_logp_of_low_precision_logits_is_normalised_in_float32() -> None:
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    ids = torch.arange(4)
    found = token_logp(logits, ids)
    assert found.dtype == torch.float32
    assert torch.allclose(found, logits.double().log_softmax(-1)[ids, ids].float(), atol=1e-5)


def test_k3_is_never_negative_and_zero_only_for_equal_policies() -> None:
    logp = torch.linspace(-6, 0, 25)
    ours, theirs = torch.meshgrid(logp, logp, indexing="ij")
    estimate = k3(ours, theirs)
    assert torch.all(estimate >= 0)
    assert torch.equal(estimate.diagonal(), torch.zeros(25))
    assert torch.all(estimate[~torch.eye(25, dtype=torch.bool)] > 0)


def test_k3_estimates_the_kl_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(6, generator=generator).double().log_softmax(0)
    theirs = torch.randn(6, generator=generator).double().log_softmax(0)
    expected = (ours.exp() * k3(ours, theirs)).sum()  # under pi_z, the exact mean of the estimator
    assert torch.allclose(expected, (ours.exp() * (ours - theirs)).sum())


def test_the_gradient_of_k2_is_that_of_the_divergence_from_the_base() -> None:
    """What the expectation over samples of pi is, exactly: every token once, weighted by its probability."""
    base = torch.tensor([0.6, 0.3, 0.1])
    logits = torch.tensor([0.1, 0.3, 0.6]).log().requires_grad_()
    logp = torch.log_softmax(logits, dim=0)
    (found,) = torch.autograd.grad((logp.exp().detach() * k2(logp, base.log())).sum(), logits, retain_graph=True)
    (by_k3,) = torch.autograd.grad((logp.exp().detach() * k3(logp, base.log())).sum(), logits, retain_graph=True)
    (of_kl,) = torch.autograd.grad((logp.exp() * (logp - base.log())).sum(), logits)
    assert torch.allclose(found, of_kl, atol=1e-6)
    assert not torch.allclose(by_k3, of_kl, atol=0.1)


def test_a_token_that_only_the_base_would_say_does_not_outweigh_the_rewards() -> None:
    logp = torch.full((4, 24), -0.1)
    logp[0, 0] = -9.0  # met once in 8,000 samples; the base would say it one time in ten
    logp.requires_grad_()
    reference, mask = torch.full((4, 24), -0.1), torch.ones(4, 24)
    reference[0, 0] = -2.3
    advantages = torch.tensor([1.0, -1 / 3, -1 / 3, -1 / 3])
    for coefficient, longest in ((0.02, 1.2), (0.1, 1.7)):
        loss = policy_gradient_loss(logp, reference, mask, advantages, kl_coefficient=coefficient, rollouts=4)
        (gradient,) = torch.autograd.grad(loss.total, logp)
        assert float(4 * gradient.abs().max()) < longest


def test_loss_by_hand() -> None:
    logp = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]], requires_grad=True)
    reference = torch.tensor([[-1.0, -2.0], [-3.0 + math.log(2.0), 0.0]])
    mask = torch.tensor([[1, 1], [1, 0]])
    loss = policy_gradient_loss(logp, reference, mask, torch.tensor([2.0, -1.0]), kl_coefficient=0.5, rollouts=4)
    # -(2 * -3 - 1 * -3) = 3 for the rewards
    assert loss.total.item() == pytest.approx((3 + 0.5 * math.log(2.0) ** 2 / 2) / 4)
    assert loss.kl.item() == pytest.approx((2 - math.log(2.0) - 1) / 3)
    assert not loss.kl.requires_grad
    loss.total.backward()
    assert logp.grad is not None
    # d/dlogp of d^2 / 2 with d = ref - logp is -d = -log 2
    wanted = torch.tensor([[-2.0, -2.0], [1.0 - 0.5 * math.log(2.0), 0.0]]) / 4
    assert torch.allclose(logp.grad, wanted)


def test_gradient_equals_that_of_an_independent_formula() -> None:
    torch.manual_seed(0)
    logits, reference_logits = torch.randn(2, 6, 5, 9, dtype=torch.float64)
    ids, lengths = torch.randint(9, (6, 5)), torch.tensor([5, 3, 1, 4, 5, 2])
    rewards = torch.tensor([[1.0, -1.0, -1.0], [1.0, 1.0, -1.0]])
    mask = (torch.arange(5) < lengths[:, None]).long()

    ours = logits.clone().requires_grad_()
    loss = policy_gradient_loss(
        ours.log_softmax(-1).gather(-1, ids[..., None])[..., 0],
        reference_logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0],
        mask,
        leave_one_out(rewards).flatten(),
        kl_coefficient=0.3,
        rollouts=6,
    )
    loss.total.backward()

    theirs = logits.clone().requires_grad_()
    objective = torch.zeros((), dtype=torch.float64)
    for b in range(6):
        prompt, member = divmod(b, 3)
        others = [rewards[prompt, other].item() for other in range(3) if other != member]
        advantage = rewards[prompt, member].item() - sum(others) / 2
        for t in range(int(lengths[b])):
            p = theirs[b, t].softmax(-1)[ids[b, t]]
            q = reference_logits[b, t].softmax(-1)[ids[b, t]]
            objective = objective + advantage * p.log() - 0.3 * (q / p).log() ** 2 / 2
    (-objective / 6).backward()
    assert torch.allclose(loss.total, -objective / 6)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-7)


def test_parts_of_a_step_add_up_to_the_whole() -> None:
    torch.manual_seed(0)
    logp, reference = -torch.rand(2, 6, 4)
    mask, advantages = torch.ones(6, 4), torch.randn(6)
    whole = policy_gradient_loss(logp, reference, mask, advantages, kl_coefficient=0.1, rollouts=6).total
    parts = [
        policy_gradient_loss(logp[s], reference[s], mask[s], advantages[s], kl_coefficient=0.1, rollouts=6).total
        for s in (slice(0, 2), slice(2, 6))
    ]
    assert torch.allclose(whole, torch.stack(parts).sum())


def test_nothing_sampled_is_no_division_by_zero() -> None:
    empty = torch.zeros(2, 3)
    loss = policy_gradient_loss(empty, empty, empty, torch.ones(2), kl_coefficient=0.1, rollouts=2)
    assert (loss.total.item(), loss.kl.item()) == (0, 0)
