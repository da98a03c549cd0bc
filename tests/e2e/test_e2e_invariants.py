"""The two invariants on the real default base, which is fetched when no cache holds it (about 100 MB)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from t2cli.config import SamplingConfig
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import BaseModel
from t2cli.models.generate import generate
from t2cli.models.reading import left_padded, positions_of
from t2cli.svf.fingerprint import tensor_digest
from t2cli.svf.zvector import ZVectors, identity

QUESTIONS = ["What is 17 + 25?", "Name a colour of the rainbow, and say in one short sentence why you like it."]


@pytest.fixture
def adapted(
    isolated: None, default_base: BaseModel, default_home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AdaptedModel]:
    """Adapt the default base for one test; its bases are kept where the base itself is."""
    monkeypatch.setenv("T2_HOME", str(default_home))
    model = AdaptedModel(default_base)
    model.prepare(quiet=True)
    yield model
    model.detach()


def logits_of(adapted: AdaptedModel) -> torch.Tensor:
    prompts = [adapted.base.encode([{"role": "user", "content": question}]) for question in QUESTIONS]
    ids, mask = left_padded(prompts, adapted.base.device)
    with torch.inference_mode():
        output = adapted.model(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask))
    return output.logits[:, -8:]  # these positions are tokens in both rows


def digests(adapted: AdaptedModel) -> dict[str, str]:
    return {name: tensor_digest(tensor) for name, tensor in adapted.model.state_dict().items()}


def test_all_ways_agree_and_identity_is_the_base(adapted: AdaptedModel, random_z: Callable[..., ZVectors]) -> None:
    base = logits_of(adapted)
    one, z = identity(adapted.ranks), random_z(adapted.ranks, sigma=0.05)
    for use in (adapted.use_z(one), adapted.use_z(one, folded=False), adapted.per_row([one, one])):
        with use:
            assert torch.equal(logits_of(adapted), base)
    adapted.release()
    with adapted.use_z(z):
        folded = logits_of(adapted)
    adapted.release()
    assert float((folded - base).norm() / base.norm()) > 1e-3  # the expert changes something
    for use in (adapted.use_z(z, folded=False), adapted.per_row([z, z])):
        with use:
            assert float((logits_of(adapted) - folded).norm() / folded.norm()) < 1e-4


def test_base_survives_uses_and_errors(adapted: AdaptedModel, random_z: Callable[..., ZVectors]) -> None:
    before, base = digests(adapted), logits_of(adapted)
    z = random_z(adapted.ranks, sigma=0.05)
    prompt = adapted.base.encode([{"role": "user", "content": QUESTIONS[0]}])
    with adapted.use_z(z):
        generate(adapted, [prompt], SamplingConfig(max_new_tokens=4))
    for use in (adapted.use_z(z), adapted.per_row([z, ZVectors({})])):
        with pytest.raises(ZeroDivisionError), use:
            logits_of(adapted)[0, 0, 0] / (1 // 0)
    assert digests(adapted) == before
    assert torch.equal(logits_of(adapted), base)
