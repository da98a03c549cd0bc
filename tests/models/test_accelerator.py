"""A base on a GPU: the three ways of applying z agree there, with the CPU and with the gradient's two ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from t2cli.config import SamplingConfig, TrainConfig
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import load_base
from t2cli.models.generate import generate
from t2cli.svf.zvector import ZVectors, unflatten
from t2cli.training.trainer import Trainer

pytestmark = pytest.mark.gpu

BaseFolder = Callable[[str], Path]
MakeZ = Callable[..., ZVectors]

IDS = torch.tensor([[40, 41, 42, 43, 44], [45, 46, 47, 48, 5], [17, 9, 3, 2, 1]])


@pytest.fixture(params=["llama-grouped", "gpt2", "mixtral"])
def on_both(request: pytest.FixtureRequest, base_folder: BaseFolder) -> tuple[AdaptedModel, AdaptedModel]:
    """Return the same base on the CPU and on the GPU."""
    device = "cuda" if torch.cuda.is_available() else "mps"
    folder = str(base_folder(request.param))
    cpu, gpu = (AdaptedModel(load_base(folder, device=where, quiet=True)) for where in ("cpu", device))
    return cpu, gpu


def logits(adapted: AdaptedModel) -> torch.Tensor:
    with torch.inference_mode():
        return adapted.model(input_ids=IDS.to(adapted.base.device)).logits.float().cpu()


def gradient(adapted: AdaptedModel, z: ZVectors, *, trained: bool) -> torch.Tensor:
    flat = z.flat().to(adapted.base.device).requires_grad_()
    vectors = unflatten(flat, adapted.ranks)
    with adapted.trained(z, vectors) if trained else adapted.with_tensors(vectors):
        loss = adapted.model(input_ids=IDS.to(flat.device), use_cache=False).logits.float().logsumexp(-1).sum()
    return torch.autograd.grad(loss, [flat])[0].cpu()


def test_all_ways_agree(on_both: tuple[AdaptedModel, AdaptedModel], random_z: MakeZ) -> None:
    cpu, gpu = on_both
    experts = [random_z(cpu.ranks, seed=seed) for seed in range(len(IDS))]
    plain = logits(gpu)
    with cpu.use_z(experts[0]), gpu.use_z(experts[0]):
        wanted = logits(cpu)
        assert torch.allclose(logits(gpu), wanted, atol=1e-4)
    with gpu.use_z(experts[0], folded=False):
        assert torch.allclose(logits(gpu), wanted, atol=1e-4)
    with cpu.per_row(experts), gpu.per_row(experts):
        assert torch.allclose(logits(gpu), logits(cpu), atol=1e-4)
    assert torch.equal(logits(gpu), plain)


def test_the_gradient_is_that_of_the_cpu(on_both: tuple[AdaptedModel, AdaptedModel], random_z: MakeZ) -> None:
    cpu, gpu = on_both
    vectors = dict(random_z(cpu.ranks))
    first = next(iter(vectors))
    vectors[first] = vectors[first].index_fill(0, torch.tensor([0, 1]), 1e-3)  # small ones go another way
    z = ZVectors(vectors)
    wanted = gradient(cpu, z, trained=True)
    for trained in (True, False):
        assert float((gradient(gpu, z, trained=trained) - wanted).norm() / wanted.norm()) < 1e-4


def test_a_bounded_step_is_that_of_the_cpu(on_both: tuple[AdaptedModel, AdaptedModel]) -> None:
    moved = []
    for adapted in on_both:
        trainer = Trainer(adapted, TrainConfig())
        drawn = torch.randn(trainer.flat.shape, generator=torch.Generator().manual_seed(0))
        trainer.flat.grad = drawn.to(trainer.flat.device)
        trainer.follow()
        moved.append(trainer.flat.detach().cpu())
    assert float((moved[0] - 1).abs().max()) > 0
    assert torch.allclose(*moved, rtol=0, atol=1e-7)


def test_samples_are_those_of_the_cpu(on_both: tuple[AdaptedModel, AdaptedModel]) -> None:
    sampling = SamplingConfig(max_new_tokens=4, temperature=1.0)
    said = [
        generate(adapted, IDS.tolist(), sampling, copies=2, generator=torch.Generator().manual_seed(0))
        for adapted in on_both
    ]
    assert said[0] == said[1]
