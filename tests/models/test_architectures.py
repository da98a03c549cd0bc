"""The invariants on every architecture: fused, transposed, biased, tied and 3-D weights, windows, expert layers."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from t2cli.config import DecomposeConfig, SamplingConfig
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import BaseModel
from t2cli.models.basis_cache import decompose, load_bases
from t2cli.models.generate import generate
from t2cli.models.reading import left_padded, positions_of
from t2cli.models.targets import Target, checkpoint_targets, find_targets
from t2cli.svf.basis import basis_of
from t2cli.svf.zvector import ZVectors, identity

Adapt = Callable[..., AdaptedModel]
Load = Callable[[str], BaseModel]
MakeZ = Callable[..., ZVectors]

SEPARATE = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
NEOX = {"query_key_value", "dense"}, {"dense_h_to_4h", "dense_4h_to_h"}
SLICES = SEPARATE[0], {f"{name}.{e}" for name in ("gate_up_proj", "down_proj") for e in range(4)}

# the matrices of a layer, in the attention and in the MLP
MATRICES: dict[str, tuple[set[str], set[str]]] = {
    "llama": SEPARATE,
    "llama-grouped": SEPARATE,
    "llama-biased": SEPARATE,
    "mistral": SEPARATE,
    "qwen2": SEPARATE,
    "qwen3": SEPARATE,
    "gemma2": SEPARATE,
    "gemma3": SEPARATE,
    "olmo2": SEPARATE,
    "phi3": ({"qkv_proj", "o_proj"}, {"gate_up_proj", "down_proj"}),
    "gpt2": ({"c_attn", "c_proj"}, {"c_fc", "c_proj"}),
    "gpt-neox": NEOX,
    "falcon": NEOX,
    "mixtral": SLICES,
    "qwen3-moe": SLICES,
    "gpt-oss": SLICES,
}
ALL = pytest.mark.parametrize("variant", MATRICES)
PROMPTS = [[5, 9, 200, 31, 7, 8], [17, 3, 90], [250, 11, 12, 13]]


def logits_of(model: PreTrainedModel, prompts: list[list[int]] = PROMPTS) -> torch.Tensor:
    ids, mask = left_padded(prompts, torch.device("cpu"))
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask)).logits[:, -1]


def stored(model: PreTrainedModel, target: Target) -> torch.Tensor:
    """Return a target's weight (m, n) in a model that is not adapted, as a view."""
    parameter: torch.Tensor = getattr(model.get_submodule(target.module), target.parameter).data
    part = parameter if target.index is None else parameter[target.index]
    return part.T if target.transposed else part


def eager(model: PreTrainedModel) -> PreTrainedModel:
    model.config._experts_implementation = "eager"
    return model


@pytest.fixture
def make_exact(adapt: Adapt, monkeypatch: pytest.MonkeyPatch) -> Adapt:
    """Return a function that adapts a base in float64, norms and softmax too, which transformers rounds to float32."""

    def make(variant: str) -> AdaptedModel:
        adapted = adapt(variant, double=True)
        adapted.prepare()
        monkeypatch.setattr(torch, "float32", torch.float64)
        monkeypatch.setattr(torch, "float", torch.float64)
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
        return adapted

    return make


@ALL
def test_selections_part_the_matrices(variant: str, load: Load) -> None:
    model = load(variant).model
    attention, mlp = (find_targets(model, selection) for selection in ("attention", "mlp"))
    for targets, wanted in zip((attention, mlp), MATRICES[variant], strict=True):
        first = {t.weight for t in targets if re.search(r"\.(layers|h)\.0\.", t.weight)}
        assert {name.removesuffix(".weight").split(".", 4)[-1].removeprefix("experts.") for name in first} == wanted
    assert sorted([*attention, *mlp], key=lambda t: t.weight) == find_targets(model)
    for target in (*attention, *mlp):
        assert tuple(stored(model, target).shape) == target.shape
        assert target.weight.startswith(f"{target.module}.{target.parameter}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@ALL
def test_identity_is_the_base_bit_for_bit(variant: str, dtype: torch.dtype, load: Load, adapt: Adapt) -> None:
    wanted = logits_of(eager(load(variant).model).to(dtype))
    adapted = adapt(variant)
    adapted.model.to(dtype)
    assert torch.equal(logits_of(adapted.model), wanted)
    one = identity(adapted.ranks)
    for name, use in {
        "folded": adapted.use_z(one),
        "factored": adapted.use_z(one, folded=False),
        "rows": adapted.per_row([one] * len(PROMPTS)),
        "tensors": adapted.with_tensors(dict(one)),
        "trained": adapted.trained(one, dict(one)),
        "reference": adapted.reference(),
    }.items():
        with use:
            assert torch.equal(logits_of(adapted.model), wanted), name


@ALL
def test_all_ways_are_the_papers_weights(variant: str, load: Load, make_exact: Adapt, random_z: MakeZ) -> None:
    models = [eager(load(variant).model).double() for _ in range(3)]
    adapted = make_exact(variant)
    rows = [random_z(adapted.ranks, seed) for seed in range(3)]
    papers, base = [], logits_of(adapted.model)
    for row, (z, model) in enumerate(zip(rows, models, strict=True)):
        for target in adapted.targets:
            U, S, Vh = torch.linalg.svd(stored(model, target), full_matrices=False)
            stored(model, target).copy_((U * (S * z[target.weight].double())) @ Vh)
        papers.append(logits_of(model)[row])
    wanted = torch.stack(papers)
    assert float((base - wanted).norm() / wanted.norm()) > 1e-2  # the experts change something
    folded, factored = [], []
    for row, z in enumerate(rows):
        with adapted.use_z(z):
            folded.append(logits_of(adapted.model)[row])
        with adapted.use_z(z, folded=False):
            factored.append(logits_of(adapted.model)[row])
    with adapted.per_row(rows):
        per_row = logits_of(adapted.model)
    for found in (torch.stack(folded), torch.stack(factored), per_row):
        assert float((found - wanted).norm() / wanted.norm()) < 1e-5  # the basis is kept in float32
    assert torch.allclose(torch.stack(folded), torch.stack(factored), rtol=1e-9, atol=1e-9)
    assert torch.allclose(per_row, torch.stack(factored), rtol=1e-9, atol=1e-9)


class Boom(Exception):
    pass


def fail_after_a_forward(adapted: AdaptedModel) -> None:
    logits_of(adapted.model)
    raise Boom


@ALL
def test_base_survives_use_and_errors_and_comes_back(variant: str, load: Load, adapt: Adapt, random_z: MakeZ) -> None:
    untouched = load(variant).model
    implementation = untouched.config._experts_implementation
    weights = untouched.state_dict()
    adapted = adapt(variant)
    base, z = logits_of(adapted.model), random_z(adapted.ranks)
    uses: list[Callable[[], contextlib.AbstractContextManager[None]]] = [
        lambda: adapted.use_z(z),
        lambda: adapted.use_z(z, folded=False),
        lambda: adapted.per_row([z] * 3),
        lambda: adapted.trained(z, dict(z)),
    ]
    for use in uses:
        with use():
            assert not torch.equal(logits_of(adapted.model), base)
        with pytest.raises(Boom), use():
            fail_after_a_forward(adapted)
        assert torch.equal(logits_of(adapted.model), base)
    adapted.detach()
    now = adapted.model.state_dict()
    assert now.keys() == weights.keys()
    assert all(torch.equal(now[name], weights[name]) for name in weights)
    modules = {name: type(module) for name, module in untouched.named_modules()}
    assert {name: type(module) for name, module in adapted.model.named_modules()} == modules
    assert adapted.model.config._experts_implementation == implementation
    assert torch.equal(logits_of(adapted.model), logits_of(untouched))


@ALL
def test_gradient_of_z(variant: str, make_exact: Adapt, random_z: MakeZ) -> None:
    adapted = make_exact(variant)
    expert = random_z(adapted.ranks)
    z = {name: vector.double().requires_grad_() for name, vector in expert.items()}
    prompt = torch.tensor(PROMPTS[0])

    def loss() -> torch.Tensor:
        logp = adapted.model(input_ids=prompt[None]).logits[0].log_softmax(-1)
        return logp[torch.arange(5), prompt[1:]].sum()

    def shifted(name: str, index: int, step: float) -> float:
        moved = z[name].detach().clone()
        moved[index] += step
        with torch.no_grad(), adapted.with_tensors({**z, name: moved}):
            return loss().item()

    with adapted.with_tensors(z):
        found = dict(zip(z, torch.autograd.grad(loss(), list(z.values()), materialize_grads=True), strict=True))
    step = 1e-5
    for name in list(z)[:: max(1, len(z) // 8)]:
        for index in (0, z[name].numel() - 1):
            difference = (shifted(name, index, step) - shifted(name, index, -step)) / (2 * step)
            assert difference == pytest.approx(found[name][index].item(), rel=1e-4, abs=1e-6), name
    with adapted.trained(expert, z):
        trained = torch.autograd.grad(loss(), list(z.values()), materialize_grads=True)
    ours, theirs = torch.cat(trained), torch.cat(list(found.values()))
    assert float(theirs.norm()) > 0
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5  # Q, kept in float32, is orthogonal to that


@ALL
def test_decomposed_from_disk_is_decomposed_from_the_model(
    variant: str, base_folder: Callable[[str], Path], load: Load
) -> None:
    base = load(variant)
    targets = checkpoint_targets(base_folder(variant))
    assert targets == find_targets(base.model)
    decompose(base.files, base.identity, DecomposeConfig(), quiet=True)
    bases = load_bases(base.identity, targets)
    for target in targets:
        wanted = basis_of(stored(base.model, target))
        assert bases[target.weight].side == wanted.side
        assert torch.equal(bases[target.weight].S, wanted.S)
        assert torch.equal(bases[target.weight].Q, wanted.Q)


def greedy(model: PreTrainedModel, prompt: list[int], count: int, eos: frozenset[int]) -> Iterator[int]:
    """Yield greedy tokens, reading everything again for each."""
    ids = list(prompt)
    for _ in range(count):
        token = int(logits_of(model, [ids]).argmax())
        yield token
        if token in eos:
            return
        ids.append(token)


@ALL
def test_generation_as_experts(variant: str, make_exact: Adapt, random_z: MakeZ) -> None:
    adapted = make_exact(variant)  # no ties
    rows = [random_z(adapted.ranks, seed) for seed in range(3)]
    sampling = SamplingConfig(max_new_tokens=14)  # beyond the windows
    wanted = []
    for prompt, z in zip(PROMPTS, rows, strict=True):
        with adapted.use_z(z):
            wanted.append(tuple(greedy(adapted.model, prompt, sampling.max_new_tokens, adapted.base.eos)))
            assert generate(adapted, [prompt], sampling)[0].ids == wanted[-1]
    with adapted.per_row(rows):
        assert [completion.ids for completion in generate(adapted, PROMPTS, sampling)] == wanted
