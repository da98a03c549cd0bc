"""The two invariants of an adapted model: z = 1 is the base and all ways agree; the base survives every use."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch.func import functional_call

from t2cli.errors import IncompatibleBaseError, T2Error, UsageError
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import BaseModel
from t2cli.models.reading import left_padded, positions_of
from t2cli.svf.zvector import ZVectors, identity

Adapt = Callable[..., AdaptedModel]
MakeZ = Callable[..., ZVectors]

ALL_VARIANTS = pytest.mark.parametrize("variant", ["llama", "llama-grouped", "qwen2", "qwen3", "mistral"])
PROMPTS = [[5, 9, 200, 31, 7, 8], [17, 3, 90], [250, 11, 12, 13]]


def logits_of(model: torch.nn.Module, prompts: list[list[int]] = PROMPTS) -> torch.Tensor:
    ids, mask = left_padded(prompts, torch.device("cpu"))
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask)).logits[:, -1]


def all_weights(adapted: AdaptedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}


def assert_pristine(adapted: AdaptedModel, weights: dict[str, torch.Tensor]) -> None:
    now = adapted.model.state_dict()
    assert now.keys() == weights.keys()
    assert all(torch.equal(now[name], weights[name]) for name in weights)
    assert all(layer.z is None and layer.folded is None for layer in adapted.layers.values())


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return float((ours - theirs).norm() / theirs.norm()) < 1e-5


@ALL_VARIANTS
def test_identity_is_the_base_bit_for_bit(variant: str, load: Callable[[str], BaseModel], adapt: Adapt) -> None:
    wanted = logits_of(load(variant).model)
    adapted = adapt(variant)
    assert torch.equal(logits_of(adapted.model), wanted)
    one = identity(adapted.ranks)
    for use in (
        adapted.use_z(one),
        adapted.use_z(one, folded=False),
        adapted.per_row([one] * len(PROMPTS)),
        adapted.with_tensors(dict(one)),
        adapted.reference(),
    ):
        with use:
            assert torch.equal(logits_of(adapted.model), wanted)


@ALL_VARIANTS
def test_three_ways_agree_with_the_papers_weights(variant: str, adapt: Adapt, random_z: MakeZ) -> None:
    adapted = adapt(variant, double=True)
    z = random_z(adapted.ranks)
    papers = {}
    for target in adapted.targets:
        U, S, Vh = torch.linalg.svd(adapted.layers[target.weight].weight, full_matrices=False)
        papers[f"{target.module}.linear.weight"] = (U * (S * z[target.weight].double())) @ Vh
    ids, mask = left_padded(PROMPTS, torch.device("cpu"))
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions_of(mask)}
    with torch.no_grad():
        wanted = functional_call(adapted.model, papers, (), inputs).logits[:, -1]
    assert not close(logits_of(adapted.model), wanted)  # the expert changes something
    found = {}
    for name, use in {
        "folded": adapted.use_z(z),
        "factored": adapted.use_z(z, folded=False),
        "rows": adapted.per_row([z] * len(PROMPTS)),
    }.items():
        with use:
            found[name] = logits_of(adapted.model)
        assert close(found[name], wanted), name  # the basis is kept in float32
    assert torch.allclose(found["folded"], found["factored"], rtol=1e-9, atol=1e-9)
    assert torch.allclose(found["rows"], found["factored"], rtol=1e-9, atol=1e-9)


@ALL_VARIANTS
def test_three_ways_agree_in_float32(variant: str, adapt: Adapt, random_z: MakeZ) -> None:
    adapted = adapt(variant)
    z = random_z(adapted.ranks, sigma=0.1)
    with adapted.use_z(z):
        folded = logits_of(adapted.model)
    for use in (adapted.use_z(z, folded=False), adapted.per_row([z] * len(PROMPTS))):
        with use:
            assert close(logits_of(adapted.model), folded)


def test_each_row_is_its_own_expert(adapt: Adapt, random_z: MakeZ) -> None:
    adapted = adapt("qwen2", double=True)
    experts = [random_z(adapted.ranks, seed) for seed in range(3)]
    partial = ZVectors({name: z for name, z in experts[1].items() if "mlp" in name})
    rows = [experts[0], partial, ZVectors({})]
    with adapted.per_row(rows):
        found = logits_of(adapted.model)
    for row, z in enumerate(rows):
        with adapted.use_z(z):
            assert torch.allclose(found[row], logits_of(adapted.model)[row], rtol=1e-9, atol=1e-9)


def test_rows_follow_the_batch(adapt: Adapt, random_z: MakeZ) -> None:
    adapted = adapt(double=True)
    with adapted.per_row([random_z(adapted.ranks, seed) for seed in range(3)]):
        assert adapted.rows_differ
        before = logits_of(adapted.model)
        order = [2, 0, 0, 1]
        adapted.select_rows(torch.tensor(order))
        after = logits_of(adapted.model, [PROMPTS[row] for row in order])
        assert torch.allclose(after, before[order], rtol=1e-9, atol=1e-9)
    assert not adapted.rows_differ


def test_selecting_rows_changes_nothing_where_all_rows_are_one_expert(adapt: Adapt, random_z: MakeZ) -> None:
    adapted = adapt()
    for folded in (True, False):
        with adapted.use_z(random_z(adapted.ranks), folded=folded):
            before = logits_of(adapted.model)
            adapted.select_rows(torch.tensor([0]))
            assert torch.equal(logits_of(adapted.model), before)


class Boom(Exception):
    pass


def fail_after_a_forward(adapted: AdaptedModel, error: type[BaseException]) -> None:
    logits_of(adapted.model)
    raise error


@pytest.mark.parametrize("way", ["folded", "factored", "rows", "tensors", "reference"])
def test_base_survives_every_use_and_every_error(way: str, adapt: Adapt, random_z: MakeZ) -> None:
    adapted = adapt("qwen2")
    weights, wanted = all_weights(adapted), logits_of(adapted.model)
    z = random_z(adapted.ranks)

    def use() -> contextlib.AbstractContextManager[None]:
        return {
            "folded": lambda: adapted.use_z(z),
            "factored": lambda: adapted.use_z(z, folded=False),
            "rows": lambda: adapted.per_row([z] * 3),
            "tensors": lambda: adapted.with_tensors(dict(z)),
            "reference": lambda: adapted.reference(),
        }[way]()

    with use():
        logits_of(adapted.model)
    assert_pristine(adapted, weights)
    for error in (Boom, KeyboardInterrupt):
        with pytest.raises(error), use():
            fail_after_a_forward(adapted, error)
        assert_pristine(adapted, weights)
    assert_pristine(adapted, weights)
    assert torch.equal(logits_of(adapted.model), wanted)


def test_optimising_z_leaves_the_base_alone(adapt: Adapt) -> None:
    adapted = adapt()
    weights = all_weights(adapted)
    vectors = {name: torch.ones(r, requires_grad=True) for name, r in adapted.ranks.items()}
    optimizer = torch.optim.SGD(vectors.values(), lr=0.1)
    for _ in range(2):
        with adapted.with_tensors(vectors):
            adapted.model(input_ids=torch.tensor(PROMPTS[:1])).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(not torch.equal(z, torch.ones_like(z)) for z in vectors.values())
    assert_pristine(adapted, weights)


def test_blocks_nest_and_each_end_restores_what_was_around_it(adapt: Adapt, random_z: MakeZ) -> None:
    adapted = adapt()
    weights, base = all_weights(adapted), logits_of(adapted.model)
    a, b = random_z(adapted.ranks, 1), random_z(adapted.ranks, 2)
    with adapted.use_z(a):
        as_a = logits_of(adapted.model)
        with adapted.reference():
            assert torch.equal(logits_of(adapted.model), base)
            with adapted.use_z(b, folded=False):
                as_b = logits_of(adapted.model)
            assert torch.equal(logits_of(adapted.model), base)
        with adapted.use_z(b):
            assert close(logits_of(adapted.model), as_b)
            with adapted.per_row([a, b, a]):
                adapted.select_rows(torch.tensor([1, 1, 0]))
                rows = logits_of(adapted.model)
                assert close(rows[0], as_b[0])
                assert close(rows[2], as_a[2])
            assert close(logits_of(adapted.model), as_b)
        with pytest.raises(Boom), adapted.use_z(b):
            raise Boom
        assert torch.equal(logits_of(adapted.model), as_a)
    with adapted.use_z(a):
        assert torch.equal(logits_of(adapted.model), as_a)
    assert_pristine(adapted, weights)


def test_expert_of_some_matrices_leaves_the_others_to_the_base(adapt: Adapt, random_z: MakeZ) -> None:
    adapted = adapt(double=True)
    z = random_z({name: r for name, r in adapted.ranks.items() if "layers.1.mlp" in name})
    filled = ZVectors({**identity(adapted.ranks), **z})
    with adapted.use_z(random_z(adapted.ranks, 7)), adapted.use_z(z):
        partial = logits_of(adapted.model)
    with adapted.use_z(filled):
        assert torch.equal(logits_of(adapted.model), partial)


def test_expert_of_another_base_is_refused_and_changes_nothing(adapt: Adapt, random_z: MakeZ) -> None:
    adapted = adapt()
    weights = all_weights(adapted)
    name = adapted.targets[0].weight
    strangers = {
        "does not have": ZVectors({"model.layers.9.mlp.up_proj.weight": torch.ones(4)}),
        "has 3 numbers": ZVectors({name: torch.ones(3)}),
    }
    for z in strangers.values():
        for use in (adapted.use_z(z), adapted.per_row([z]), adapted.with_tensors(z)):
            with pytest.raises(IncompatibleBaseError) as caught, use:
                pass
            assert caught.value.exit_code == 4
            assert caught.value.hint
    assert_pristine(adapted, weights)


def test_detach_gives_the_base_back(load: Callable[[str], BaseModel]) -> None:
    base = load("llama")
    modules = {name: type(module) for name, module in base.model.named_modules()}
    adapted = AdaptedModel(base)
    with pytest.raises(T2Error, match="adapted already"):
        AdaptedModel(base)
    adapted.detach()
    assert {name: type(module) for name, module in base.model.named_modules()} == modules


@pytest.mark.parametrize(("selection", "count"), [("all", 14), ("mlp", 6), ("attention", 8)])
def test_selections(selection: str, count: int, adapt: Adapt) -> None:
    adapted = adapt(selection=selection)
    assert len(adapted.targets) == len(adapted.layers) == len(adapted.ranks) == count


def test_unknown_selection_is_a_usage_error(adapt: Adapt) -> None:
    with pytest.raises(UsageError, match="heads"):
        adapt(selection="heads")


def test_folding_the_same_expert_again_reuses_the_weights(adapt: Adapt, random_z: MakeZ) -> None:
    adapted = adapt()
    z = random_z(adapted.ranks)
    layer = adapted.layers[adapted.targets[0].weight]
    with adapted.use_z(z):
        first = layer.folded
    with adapted.use_z(z):
        assert layer.folded is first
    adapted.release()
    with adapted.use_z(z):
        assert layer.folded is not first
        assert first is not None
        assert torch.equal(layer.folded, first)
