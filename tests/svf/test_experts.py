"""Expert layers: each slice is rescaled as a matrix of its own, tokens keep their row, others are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from t2cli.svf.basis import basis_of
from t2cli.svf.experts import SVFExperts, refusal

E, H, I, K = 4, 6, 5, 2  # noqa: E741 - experts, hidden, intermediate, experts per token


class Experts(nn.Module):
    """A module as transformers has them, summed densely over all experts: another way to the same numbers."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate_up_proj = nn.Parameter(torch.randn(E, 2 * I, H, dtype=dtype), requires_grad=False)
        self.down_proj = nn.Parameter(torch.randn(E, H, I, dtype=dtype), requires_grad=False)
        self.is_transposed = self.has_bias = False

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def forward(self, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        every = torch.einsum("eih,nh->nei", self.gate_up_proj, x)
        every = torch.einsum("ehi,nei->neh", self.down_proj, self._apply_gate(every))
        share = functional.one_hot(index, E + 1)[..., :E] * weights[..., None]  # (N, K, E); E marks an empty place
        return torch.einsum("nke,neh->nh", share.to(x.dtype), every)


def prepared() -> SVFExperts:
    layer = SVFExperts(Experts())
    for part in layer.slices.values():
        part.basis = basis_of(part.weight)
    return layer


def routed(tokens: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, H, generator=generator, dtype=torch.float64)
    index = torch.stack([torch.randperm(E, generator=generator)[:K] for _ in range(tokens)])
    return x, index, torch.rand(tokens, K, generator=generator, dtype=torch.float64)


def random_z(layer: SVFExperts, seed: int, rows: int | None = None) -> dict[tuple[str, int], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = () if rows is None else (rows,)
    return {
        key: 1 + 0.3 * torch.randn(*shape, min(part.weight.shape), generator=generator, dtype=torch.float64)
        for key, part in layer.slices.items()
    }


def set_z(layer: SVFExperts, z: dict[tuple[str, int], torch.Tensor], *, folded: bool = False) -> None:
    for key, part in layer.slices.items():
        part.z, part.folded = (None, part.fold(z[key])) if folded else (z[key], None)


def rescaled(layer: SVFExperts, z: dict[tuple[str, int], torch.Tensor]) -> Experts:
    """Return experts whose weights are the paper's W'."""
    experts = Experts()
    for (name, e), vector in z.items():
        U, S, Vh = torch.linalg.svd(getattr(experts, name)[e], full_matrices=False)
        getattr(experts, name)[e] = (U * (S * vector)) @ Vh
    return experts


def test_without_z_the_module_itself_answers() -> None:
    layer, inputs = prepared(), routed(10)
    assert torch.equal(layer(*inputs), layer.experts(*inputs))


def test_folded_and_factored_are_the_papers() -> None:
    layer, inputs = prepared(), routed(10)
    z = random_z(layer, 2)
    wanted = rescaled(layer, z)(*inputs)
    for folded in (True, False):
        set_z(layer, z, folded=folded)
        assert torch.allclose(layer(*inputs), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("per_row", [1, 5])
def test_each_row_is_its_own(per_row: int) -> None:
    layer, (x, index, weights) = prepared(), routed(3 * per_row)
    z = random_z(layer, 3, rows=3)
    set_z(layer, z)
    found = layer(x, index, weights)
    for row in range(3):
        tokens = slice(row * per_row, (row + 1) * per_row)
        set_z(layer, {key: vectors[row] for key, vectors in z.items()})
        assert torch.allclose(found[tokens], layer(x[tokens], index[tokens], weights[tokens]), rtol=1e-12, atol=1e-12)


def test_empty_places_and_experts_without_tokens() -> None:
    layer, (x, index, weights) = prepared(), routed(4)
    index[:, 0], index[0, 1], index[1:, 1] = E, 2, E  # one token in all meets an expert
    z = random_z(layer, 4)
    set_z(layer, z)
    found = layer(x, index, weights)
    assert torch.allclose(found, rescaled(layer, z)(x, index, weights), rtol=1e-5, atol=1e-5)
    assert not found[1:].any()


def test_experts_of_some_slices_leave_the_others_to_the_base() -> None:
    layer, inputs = prepared(), routed(10)
    z = {key: vector for key, vector in random_z(layer, 5).items() if key == ("down_proj", 1)}
    layer.slices["down_proj", 1].z = z["down_proj", 1]
    assert torch.allclose(layer(*inputs), rescaled(layer, z)(*inputs), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(layer(*inputs), layer.experts(*inputs), rtol=1e-3, atol=1e-3)


def test_gradient_of_z_equals_finite_differences() -> None:
    layer, (x, index, weights) = prepared(), routed(6)
    z = random_z(layer, 6)
    vectors = [vector.requires_grad_() for vector in z.values()]

    def output(*vectors: torch.Tensor) -> torch.Tensor:
        set_z(layer, dict(zip(z, vectors, strict=True)))
        return layer(x, index, weights)

    assert torch.autograd.gradcheck(output, vectors, eps=1e-6, atol=1e-6)


def test_tokens_that_are_no_batch() -> None:
    layer = prepared()
    set_z(layer, random_z(layer, 7, rows=3))
    with pytest.raises(ValueError, match="10 tokens are no batch of 3 rows"):
        layer(*routed(10))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"has_gate": False}, "no gate"),
        ({"has_post_expert_norm": True}, "norms"),
        ({"is_transposed": True}, "gates of another kind"),
        ({"down_proj": nn.Parameter(torch.ones(E, I, H))}, "gates of another kind"),
        ({"down_proj": nn.Parameter(torch.ones(H, I))}, "not in gate_up_proj and down_proj"),
        ({"down_proj": None}, "not in gate_up_proj and down_proj"),
    ],
)
def test_experts_of_another_kind_are_refused(change: dict[str, object], reason: str) -> None:
    experts = Experts()
    assert refusal(experts) is None
    for name, value in change.items():
        setattr(experts, name, value)
    with pytest.raises(ValueError, match=reason):
        SVFExperts(experts)


def test_what_is_not_declared_is_refused() -> None:
    experts = Experts()
    del experts.is_transposed
    assert "code of their own" in str(refusal(experts))
