"""Advantages, log-probabilities and the policy-gradient loss.

Source: Transformer-Squared (arXiv 2501.06252), equation 2:
    J = E[ log pi_z(y | x) * r(y, y*) ] - lambda * KL(pi_z || pi_base),   r in {-1, +1}

Notation: P prompts, G rollouts per prompt, B = P * G rollouts, T completion tokens, V vocabulary.

Deviations from the paper:
1. The reward is replaced by a leave-one-out advantage (RLOO; Ahmadian et al. 2024, arXiv 2402.14740): the mean reward
   of the prompt's other rollouts is the baseline. Plain REINFORCE on -1/+1 rewards collapses this class of model;
   it is there as the baseline `none`.
2. The KL term's gradient is that of the k2 estimator on the sampled tokens, (log pi_z - log pi_base)^2 / 2: on average
   that of KL(pi_z || pi_base), and linear in the difference. That of k3, as in GRPO, is exponential in it: one token
   which the base would say and pi_z hardly does outweighed all rewards of a step, and policies that had learned to
   answer were thrown off by it. For the log the value is k3 (Schulman 2020): never negative, and of low variance.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Loss(NamedTuple):
    """`total` has the gradient, by k2; `kl` is the mean k3 estimate per token, detached, for the log."""

    total: torch.Tensor
    kl: torch.Tensor


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """Return the advantages (P, G) of rewards (P, G): each minus the mean of the others of its prompt.

    Where all rewards of a prompt are equal they are exactly 0, however a mean of such numbers is rounded. Raises
    ValueError for G = 1, which has no other rollout.
    """
    group = rewards.shape[1]
    if group < 2:
        raise ValueError("a leave-one-out baseline needs at least two rollouts per prompt")
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (group - 1)
    equal = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)
    return torch.where(equal, torch.zeros_like(rewards), rewards - others)


def no_baseline(rewards: torch.Tensor) -> torch.Tensor:
    """Return the rewards (P, G) themselves as advantages, as the paper has them."""
    return rewards


BASELINES = {"leave-one-out": leave_one_out, "none": no_baseline}


def token_logp(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return log pi(id) (...,) of the given token ids (...,) under logits (..., V), in float32."""
    chosen = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1).float()
    return chosen - torch.logsumexp(logits.float(), dim=-1)


def k2(logp: torch.Tensor, reference_logp: torch.Tensor) -> torch.Tensor:
    """Return d^2 / 2 per sampled token with d = ref - logp; its gradient is on average that of KL(pi_z || pi_base)."""
    return (reference_logp - logp).square() / 2


def k3(logp: torch.Tensor, reference_logp: torch.Tensor) -> torch.Tensor:
    """Return the k3 estimate of KL(pi_z || pi_base) per sampled token: exp(d) - d - 1 with d = ref - logp."""
    difference = reference_logp - logp
    return torch.exp(difference) - difference - 1


def policy_gradient_loss(
    logp: torch.Tensor,
    reference_logp: torch.Tensor,
    mask: torch.Tensor,
    advantages: torch.Tensor,
    *,
    kl_coefficient: float,
    rollouts: int,
) -> Loss:
    """Return -J for a part of a step's rollouts; summed over the parts it is the mean over `rollouts`.

    logp, reference_logp, mask (B, T): the sampled tokens' log-probabilities under z and under the base, and 1 where
    there is a token; advantages (B,). Gradients flow through logp alone.
    """
    mask = mask.to(logp.dtype)
    reinforce = -(advantages.detach() * (logp * mask).sum(dim=1)).sum()
    reference_logp = reference_logp.detach()
    penalty = (k2(logp, reference_logp) * mask).sum()
    total = (reinforce + kl_coefficient * penalty) / rollouts
    kl = (k3(logp.detach(), reference_logp) * mask).sum() / mask.sum().clamp_min(1)
    return Loss(total, kl)
