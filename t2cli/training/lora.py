"""A LoRA as a policy, so that SVF is compared with it on equal rollouts, losses and evaluations.

Source: Hu et al. 2021 (arXiv 2106.09685), through PEFT: y = W x + scale * B A x, with B = 0 at the start.

Notation: W (m, n) weight, A (k, n) and B (m, k) factors of rank k.

1. All factors are views of one flat vector: the trainers, the checkpoint and the clipping see no difference from z.
2. Rollouts and validation are answered with W + scale * B A in place of W, at the base's own speed. W itself is set
   aside and put back, where PEFT would subtract what it has added and leave rounding.
3. lora_alpha is 32 whatever the rank, so that one learning rate serves all ranks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from t2cli.config import TrainConfig
from t2cli.errors import T2Error
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import BaseModel
from t2cli.models.targets import Target
from t2cli.models.text_model import PlainModel

ALPHA = 32
NAME = "default"  # PEFT's name of the only adapter


class LoRAPolicy:
    """LoRA factors of all targets. The AdaptedModel is detached for good: PEFT wraps the base's own modules."""

    def __init__(self, adapted: AdaptedModel, config: TrainConfig) -> None:
        _refuse_slices(adapted.targets)
        adapted.detach()
        self.origin = 0.0
        self.text_model = PlainModel(adapted.base, adapted.team, adapted.answers_at_once)
        self._wrapped, self._layers = _wrap(adapted.base, adapted.targets, config)
        factors = [getattr(layer, part)[NAME].weight for layer in self._layers for part in ("lora_A", "lora_B")]
        self._factors: list[nn.Parameter] = factors
        self.flat = nn.Parameter(torch.cat([factor.detach().flatten() for factor in factors]))
        for factor, part in zip(factors, self._parts(self.flat.detach()), strict=True):
            factor.data = part
        self._enable(False)

    @contextmanager
    def answering(self, numbers: torch.Tensor | None = None) -> Iterator[None]:
        """Answer with the factors multiplied into copies of the weights."""
        current = self.flat.detach().clone()
        pristine = [layer.get_base_layer().weight for layer in self._layers]
        try:
            with torch.no_grad():
                if numbers is not None:
                    self.flat.copy_(numbers)
                for layer, W in zip(self._layers, pristine, strict=True):
                    merged = W + layer.get_delta_weight(NAME).to(W.dtype)
                    layer.get_base_layer().weight = nn.Parameter(merged, requires_grad=False)
                self.flat.copy_(current)
            yield
        finally:
            for layer, W in zip(self._layers, pristine, strict=True):
                layer.get_base_layer().weight = W
            with torch.no_grad():
                self.flat.copy_(current)

    def sampling(self) -> AbstractContextManager[None]:
        """Answer with the factors multiplied in, or through them where the weights' precision would round that."""
        dtypes = {layer.get_base_layer().weight.dtype for layer in self._layers}
        return self.answering() if dtypes <= {torch.float32, torch.float64} else self.differentiable()

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """Answer through the factors."""
        self._enable(True)
        try:
            yield
        finally:
            self._enable(False)

    def gradient_of(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the gradient (parameters,) of all factors."""
        return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, self._factors)])

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Answer as the base."""
        enabled = not self._layers[0].disable_adapters
        self._enable(False)
        try:
            yield
        finally:
            self._enable(enabled)

    def changed(self) -> None:
        """Do nothing: the factors are views of `flat`."""

    def release(self) -> None:
        """Do nothing: nothing is kept."""

    def save(self, folder: Path, numbers: torch.Tensor) -> None:
        """Write the adapter of these numbers (parameters,) as PEFT does."""
        current = self.flat.detach().clone()
        with torch.no_grad():
            self.flat.copy_(numbers)
            self._wrapped.save_pretrained(folder, save_embedding_layers=False)
            self.flat.copy_(current)

    def _parts(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Return views of `flat` (parameters,), one in the shape of each factor."""
        shapes = [factor.shape for factor in self._factors]
        pieces = torch.split(flat, [math.prod(shape) for shape in shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def _enable(self, on: bool) -> None:
        for layer in self._layers:
            layer.enable_adapters(on)


def _refuse_slices(targets: Sequence[Target]) -> None:
    if any(target.index is not None for target in targets):
        raise T2Error(
            "a LoRA has no factors for the 3-D weights of this mixture of experts",
            hint="use --targets attention, or --adapter svf",
        )


def require_peft() -> None:
    """Raise T2Error unless PEFT is installed."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise T2Error(
            "--adapter lora needs peft, which is not installed",
            hint='install the extra `lora`: pip install -c constraints.txt ".[lora]"',
        ) from error


def _wrap(base: BaseModel, targets: Sequence[Target], config: TrainConfig) -> tuple[Any, list[Any]]:
    """Put LoRA layers in the model; return PEFT's model and the layers. A is drawn from the run's seed, B is 0."""
    require_peft()
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    hub = base.files.source.startswith("hub:")
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=ALPHA,
        target_modules=[target.module for target in targets],
        fan_in_fan_out=any(target.transposed for target in targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base.files.source.removeprefix("hub:") if hub else str(base.files.folder),
        revision=base.files.revision or None if hub else None,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about a property that PEFT still asks for
        torch.manual_seed(config.seed)
        wrapped = get_peft_model(base.model, settings)
    return wrapped, [module for module in wrapped.modules() if isinstance(module, LoraLayer)]
