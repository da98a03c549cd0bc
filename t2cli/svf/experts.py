"""The experts of a mixture-of-experts layer, each weight of which is rescaled by a z of its own.

Source: Transformer-Squared (arXiv 2501.06252), section 3.1, applied to each slice of a 3-D weight; math.md 3.

Notation: N tokens, K experts per token, E experts, H hidden, I intermediate; x (N, H), gate_up_proj (E, 2I, H) and
down_proj (E, H, I), or each slice transposed and with a bias, as GPT-OSS has them. "Expert" means a part of the base
model here, as its authors call it, and no z.

    y_t = sum over the K experts e of token t:  weight_te * down_e(gate(gate_up_e(x_t)))

gate() is the module's own, which knows whether gate and up are halves or interleaved.

Deviations from transformers:
1. The loop over experts is transformers' eager one, operation by operation, so that z = 1 gives its bits. Its grouped
   products add up in another order: who adapts a model runs the base eagerly too (models/adapted.py).
2. The router is left alone: rescaling it would change which experts a token meets.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from t2cli.svf.linear import AdaptedWeight

PARAMETERS = ("gate_up_proj", "down_proj")

# What transformers' use_experts_implementation declares about a class, and what the loop here takes for granted.
# Classes so declared may be run by transformers' own functions in place of their forward, hence also by this loop.
DECLARED = {
    "has_gate": (True, "have no gate"),
    "has_post_expert_norm": (False, "have norms"),
}


def refusal(module: nn.Module) -> str | None:
    """Return why SVFExperts cannot stand in for a module with 3-D weights; None if it can."""
    if not hasattr(module, "is_transposed") or not hasattr(module, "_apply_gate"):
        return f"the experts of {type(module).__name__} run code of their own"
    for name, (wanted, otherwise) in DECLARED.items():
        if getattr(module, name, wanted) != wanted:
            return f"the experts of {type(module).__name__} {otherwise}"
    if not all(getattr(getattr(module, name, None), "ndim", 0) == 3 for name in PARAMETERS):
        return f"the experts of {type(module).__name__} are not in {' and '.join(PARAMETERS)}"
    (E, double, H), (E_down, H_down, I) = (slices_of(module, name) for name in PARAMETERS)  # noqa: E741 - as above
    if (E, H, double) != (E_down, H_down, 2 * I):
        return f"the experts of {type(module).__name__} have gates of another kind"
    return None


def slices_of(experts: nn.Module, parameter: str) -> tuple[int, int, int]:
    """Return how many slices a 3-D parameter has, and the shape (m, n) of each as y = W x."""
    count, m, n = getattr(experts, parameter).shape
    return (count, n, m) if experts.is_transposed else (count, m, n)


class ExpertSlice(AdaptedWeight):
    """One expert's part (m, n) of a 3-D parameter (E, m, n), or (E, n, m) in modules that transpose them."""

    def __init__(self, experts: nn.Module, parameter: str, index: int) -> None:
        super().__init__()
        self._experts, self._parameter, self._index = experts, parameter, index
        self.transposed = bool(experts.is_transposed)

    @property
    def weight(self) -> torch.Tensor:
        """Return the pristine base weight (m, n), a view."""
        weight: torch.Tensor = getattr(self._experts, self._parameter)[self._index]
        return weight.T if self.transposed else weight

    @property
    def bias(self) -> torch.Tensor | None:
        """Return the bias (m,), which no expert changes."""
        biases: torch.Tensor | None = getattr(self._experts, f"{self._parameter}_bias", None)
        return None if biases is None else biases[self._index]

    def forward(self, x: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """Apply the slice to x (N', n) of some tokens, `rows` (N',) being their rows of the batch; returns (N', m)."""
        return self.applied(x, lambda x: self._product(x, self.weight), self._product, self.bias, rows)

    def _product(self, x: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
        """Return W x + b by the operations of transformers' eager loops."""
        if not self.transposed:
            return functional.linear(x, W, self.bias)
        y = x @ W.T
        return y if self.bias is None else y + self.bias


class SVFExperts(nn.Module):
    """Stands in for a transformers module of 3-D expert weights; `slices` by parameter name and expert number.

    Raises ValueError for a module that `refusal` refuses.
    """

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        if reason := refusal(experts):
            raise ValueError(reason)
        self.experts = experts
        self.count: int = getattr(experts, PARAMETERS[0]).shape[0]
        self.slices = {(name, e): ExpertSlice(experts, name, e) for name in PARAMETERS for e in range(self.count)}

    def forward(self, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return (N, H) of x (N, H), the experts `index` (N, K) of each token, and their `weights` (N, K)."""
        if all(part.z is None and part.folded is None for part in self.slices.values()):
            base: torch.Tensor = self.experts(x, index, weights)
            return base
        y, rows = torch.zeros_like(x), self._rows_of(x)
        for e, place, token in _assigned(index, self.count):
            gate_up = self.slices["gate_up_proj", e].forward(x[token], None if rows is None else rows[token])
            inner = self.experts._apply_gate(gate_up)  # type: ignore[operator]  # (N', I)
            out = self.slices["down_proj", e].forward(inner, None if rows is None else rows[token])
            out = out * weights[token, place, None]
            y.index_add_(0, token, out.to(y.dtype))
        return y

    def _rows_of(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return the row (N,) of the batch that each token is of; None unless rows have their own z."""
        batch = next((len(part.z) for part in self.slices.values() if part.z is not None and part.z.ndim == 2), None)
        if batch is None:
            return None
        if len(x) % batch:
            raise ValueError(f"{len(x)} tokens are no batch of {batch} rows")
        return torch.arange(len(x), device=x.device) // (len(x) // batch)


def _assigned(index: torch.Tensor, count: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield each expert that has tokens, ascending: its number, and of each the place (N',) in K and the token (N',).

    Numbers of `count` and above mark places without an expert.
    """
    for e in torch.bincount(index.flatten()).nonzero().flatten().tolist():
        if e < count:
            place, token = torch.where(index.T == e)  # noqa: SIM300 - one is a tensor
            yield e, place, token
