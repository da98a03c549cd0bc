"""The gradient of z through a whole model is that of finite differences, and of explicit folded weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.func import functional_call

from t2cli.models.adapted import AdaptedModel
from t2cli.svf.zvector import ZVectors

PROMPT = [5, 9, 200, 31, 7, 8]


def exact_norms(model: torch.nn.Module) -> None:
    """Replace transformers' norms, which round to float32 whatever the model's precision is, by torch's own."""
    for name, norm in list(model.named_modules()):
        if name.endswith("norm"):
            parent, _, child = name.rpartition(".")
            own = torch.nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon, dtype=torch.float64)
            own.weight = norm.weight
            setattr(model.get_submodule(parent), child, own)


def test_gradient_of_z_equals_finite_differences(
    adapt: Callable[..., AdaptedModel], random_z: Callable[..., ZVectors]
) -> None:
    adapted = adapt("qwen2", double=True)
    exact_norms(adapted.model)
    z = {name: vector.double().requires_grad_() for name, vector in random_z(adapted.ranks).items()}

    def loss() -> torch.Tensor:
        with adapted.with_tensors(z):
            logits = adapted.model(input_ids=torch.tensor([PROMPT])).logits[0]
        return logits.log_softmax(-1)[torch.arange(5), torch.tensor(PROMPT[1:])].sum()

    def loss_without_gradient() -> float:
        with torch.no_grad():
            return loss().item()

    gradients = torch.autograd.grad(loss(), list(z.values()))
    step = 1e-6
    for (name, vector), gradient in zip(z.items(), gradients, strict=True):
        for index in (0, vector.numel() - 1):
            with torch.no_grad():
                vector[index] += step
                above = loss_without_gradient()
                vector[index] -= 2 * step
                below = loss_without_gradient()
                vector[index] += step
            assert (above - below) / (2 * step) == pytest.approx(gradient[index].item(), rel=1e-4, abs=1e-6), name


def test_gradient_of_z_equals_that_through_explicit_folded_weights(
    adapt: Callable[..., AdaptedModel], random_z: Callable[..., ZVectors]
) -> None:
    adapted = adapt("llama-grouped", double=True)
    adapted.prepare()
    z = {name: vector.double().requires_grad_() for name, vector in random_z(adapted.ranks).items()}
    ids = torch.tensor([PROMPT])
    with adapted.with_tensors(z):
        factored = adapted.model(input_ids=ids).logits.square().mean()
    ours = torch.autograd.grad(factored, list(z.values()))
    W = {f"{t.module}.linear.weight": adapted.layers[t.weight].fold(z[t.weight]) for t in adapted.targets}
    folded = functional_call(adapted.model, W, (), {"input_ids": ids}).logits.square().mean()
    theirs = torch.autograd.grad(folded, list(z.values()))
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-8, atol=1e-12)
