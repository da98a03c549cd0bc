"""A base over several devices: answers and trains as on one, and is refused where weights would be out of memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from t2cli.config import SamplingConfig
from t2cli.errors import T2Error
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import SPREAD, load_base
from t2cli.models.generate import generate
from t2cli.svf.zvector import ZVectors, unflatten
from t2cli.training.packing import pack, rollout_logp

BaseFolder = Callable[[str], Path]
MakeZ = Callable[..., ZVectors]

PROMPTS = [[40, 41, 42, 43, 44, 45, 46, 47, 48, number] for number in (5, 17, 9)]
EVERYTHING = {"": "cpu"}
BY_PARTS = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "cpu",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}


def numbers_of(adapted: AdaptedModel, random_z: MakeZ) -> list[torch.Tensor]:
    """Return what an expert says, and the log-probabilities of a tree with the gradient of z."""
    z = random_z(adapted.ranks)
    with adapted.use_z(z):
        said = generate(adapted, PROMPTS, SamplingConfig(max_new_tokens=6), copies=2)
    packed = pack(PROMPTS, [[[5, 6], [7]], [[8], [9]], [[1], [2, 3]]], adapted.base.device)
    flat = z.flat().to(adapted.base.device).requires_grad_()
    with adapted.trained(z, unflatten(flat, adapted.ranks)):
        logp = rollout_logp(adapted.model, packed)
    (gradient,) = torch.autograd.grad(logp.sum(), [flat])
    ids = [torch.tensor(completion.ids) for completion in said]
    return [*ids, logp.detach().cpu(), gradient.cpu()]


@pytest.mark.parametrize("device_map", [None, EVERYTHING, BY_PARTS], ids=["auto", "everything", "by parts"])
def test_a_base_that_is_mapped_answers_and_learns_as_one_that_is_not(
    device_map: dict[str, str] | None, base_folder: BaseFolder, random_z: MakeZ, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(base_folder("llama-grouped"))
    plain = AdaptedModel(load_base(folder, device="cpu", quiet=True))
    if torch.cuda.is_available() and device_map is None:
        pytest.skip("auto would take the GPU: the test for several of them is another")
    mapped = AdaptedModel(load_base(folder, device=SPREAD, device_map=device_map, quiet=True))
    for one, other in zip(numbers_of(plain, random_z), numbers_of(mapped, random_z), strict=True):
        assert torch.equal(one, other)


def test_weights_that_would_be_out_of_memory_are_refused(base_folder: BaseFolder, tmp_path: Path) -> None:
    folder = str(base_folder("llama-grouped"))
    with pytest.raises(T2Error, match=r"does not fit: 9 weights .*model\.layers\.1") as caught:
        load_base(folder, device=SPREAD, device_map={**BY_PARTS, "model.layers.1": "disk"}, quiet=True)
    assert "smaller base" in caught.value.hint


@pytest.mark.gpu
def test_two_gpus(base_folder: BaseFolder, random_z: MakeZ) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    folder = str(base_folder("llama-grouped"))
    plain = AdaptedModel(load_base(folder, device="cuda", quiet=True))
    devices = {**dict.fromkeys(BY_PARTS, 0), "model.layers.1": 1, "model.norm": 1, "lm_head": 1}
    mapped = AdaptedModel(load_base(folder, device=SPREAD, device_map=devices, quiet=True))
    mapped.prepare()
    assert {layer.require_basis().Q.device.index for layer in mapped.layers.values()} == {0, 1}
    for one, other in zip(numbers_of(plain, random_z), numbers_of(mapped, random_z), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
