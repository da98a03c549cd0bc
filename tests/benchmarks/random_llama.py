"""Random models of the Llama class of any width and depth, to see how costs grow with them.

The MLP is 2.75 times as wide as the model and a quarter of the attention's heads have keys, as in Llama 3. The numbers
of a basis do not change how long it takes to use it, so Q is random too: no width has to be decomposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from t2cli.models.adapted import AdaptedModel
    from t2cli.models.base import BaseModel

VOCABULARY = 512
WIDTHS, LAYERS = (512, 1024, 2048, 4096), (2, 4, 8)
FIXED_WIDTH, FIXED_LAYERS = 1024, 2  # what stays while the other grows
WIDEST = 4096  # with one layer, and short sequences


class Size(NamedTuple):
    """How large a random model is."""

    width: int
    layers: int

    def __str__(self) -> str:
        return f"width {self.width} x {self.layers}"

    def shorter(self, length: int) -> int:
        """Return a number of tokens or rows, halved for the widest."""
        return max(1, length // 2) if self.width >= WIDEST else length


def sizes(widths: Sequence[int], layers: Sequence[int]) -> list[Size]:
    """Return each width with a few layers, and each number of layers at one width."""
    found = [Size(width, 1 if width >= WIDEST else FIXED_LAYERS) for width in widths]
    return list(dict.fromkeys([*found, *(Size(FIXED_WIDTH, count) for count in layers)]))


def random_base(size: Size, device: str = "cpu") -> BaseModel:
    """Return a random model; it has neither files nor a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from t2cli.models.base import BaseModel
    from t2cli.models.catalog import BaseFiles
    from t2cli.models.identity import BaseIdentity

    heads = size.width // 64
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.width,
        intermediate_size=size.width * 11 // 4,
        num_hidden_layers=size.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=size.width**-0.5,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval().to(device)
    identity = BaseIdentity(str(size), "random", "", "LlamaForCausalLM", "0" * 64)
    files = BaseFiles(str(size), Path(), "random", "")
    return BaseModel(model, no_tokenizer(), identity, files, frozenset(), config.max_position_embeddings)


def no_tokenizer() -> Any:
    """Return what stands where a tokenizer would."""
    return None


def random_adapted(size: Size, base: BaseModel) -> AdaptedModel:
    """Return a random model whose targets have random bases."""
    import torch

    from t2cli.models.adapted import AdaptedModel
    from t2cli.svf.basis import Basis, side_of

    adapted = AdaptedModel(base)
    device = base.device
    adapted.attach(
        {
            target.weight: Basis(
                torch.randn(target.rank, target.rank, device=device) * target.rank**-0.5,
                torch.ones(target.rank, dtype=torch.float64, device=device),
                side_of(*target.shape),
            )
            for target in adapted.targets
        }
    )
    return adapted
