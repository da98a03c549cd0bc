"""What is trained, as a trainer and the loop see it: a flat parameter, and a model that answers as it.

svf     z of every target (svf/parametrisation.py), published as an expert
lora    LoRA factors of every target (training/lora.py), saved as PEFT saves them, to compare SVF with
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import nn

from t2cli.config import TrainConfig
from t2cli.lookup import load
from t2cli.svf.parametrisation import PARAMETRISATIONS, effective, initial
from t2cli.svf.zvector import ZVectors, unflatten

if TYPE_CHECKING:
    from pathlib import Path

    from t2cli.models.adapted import AdaptedModel
    from t2cli.models.text_model import TextModel


class Policy(Protocol):
    """A model with numbers to train. Outside the blocks below it is the base model, bit for bit."""

    flat: nn.Parameter  # (parameters,) float32, what the optimiser moves
    origin: float  # numbers that are all this are the base model, or pull towards it

    @property
    def text_model(self) -> TextModel:
        """Return the model for generation."""

    def answering(self, numbers: torch.Tensor | None = None) -> AbstractContextManager[None]:
        """Answer as the policy, or as it would be with other `numbers` (parameters,): at full speed, no gradients."""

    def sampling(self) -> AbstractContextManager[None]:
        """Answer as the very policy that `differentiable` has the gradient of, at full speed where that is the same."""

    def differentiable(self) -> AbstractContextManager[None]:
        """Answer as the policy, with gradients that reach `flat`."""

    def gradient_of(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the gradient (parameters,) of a loss computed inside `differentiable`, and keep nothing of it."""

    def reference(self) -> AbstractContextManager[None]:
        """Answer as the base model."""

    def changed(self) -> None:
        """Take notice that `flat` has changed."""

    def release(self) -> None:
        """Free what is kept for speed."""


@runtime_checkable
class Saves(Protocol):
    """A policy that is no expert of a registry, and saves itself into a folder."""

    def save(self, folder: Path, numbers: torch.Tensor) -> None:
        """Write the policy of these numbers (parameters,) into a new folder."""


ADAPTERS = {"svf": "t2cli.training.policy:SVFPolicy", "lora": "t2cli.training.lora:LoRAPolicy"}


def policy_of(adapted: AdaptedModel, config: TrainConfig) -> Policy:
    """Return what `config` trains, at its start."""
    policy: Policy = load(config.adapter, ADAPTERS, "adapter")(adapted, config)  # type: ignore[operator]
    return policy


class SVFPolicy:
    """z of every target as one flat parameter p (parameters,)."""

    def __init__(self, adapted: AdaptedModel, config: TrainConfig) -> None:
        self.adapted = adapted
        self.ranks = adapted.ranks
        self.form = PARAMETRISATIONS[config.parametrisation]
        self.origin = self.form.origin
        self._spectra: dict[str, torch.Tensor] = {}
        if self.form.uses_spectrum:
            adapted.prepare()
            self._spectra = {name: layer.require_basis().S for name, layer in adapted.layers.items()}
        start = initial(sum(self.ranks.values()), config.initial_mean, config.initial_deviation, config.seed)
        self.flat = nn.Parameter(start.to(adapted.base.device))
        self._z: ZVectors | None = None

    @property
    def text_model(self) -> AdaptedModel:
        """Return the adapted model."""
        return self.adapted

    def z(self) -> ZVectors:
        """Return a copy of the current z; the same object until the next update, so that it is folded once."""
        if self._z is None:
            self._z = self.z_of(self.flat.detach())
        return self._z

    def z_of(self, numbers: torch.Tensor) -> ZVectors:
        """Return the z of numbers p (parameters,)."""
        return ZVectors(unflatten(self.rows(numbers).cpu(), self.ranks))

    def rows(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return z (..., parameters) of numbers p (..., parameters); rows of them are what per_row takes."""
        vectors = self._effective(numbers)
        return torch.cat([vectors[name] for name in sorted(vectors)], dim=-1)

    @cached_property
    def spectrum(self) -> torch.Tensor:
        """Return the singular values (parameters,) that the numbers rescale, in float64, which MPS does not have."""
        self.adapted.prepare()
        layers = self.adapted.layers
        values = torch.cat([layers[name].require_basis().S for name in sorted(self.ranks)])
        return values if self.flat.device.type == "mps" else values.to(self.flat.device)

    @property
    def _exact(self) -> bool:
        """Tell whether W' is kept in float32 or more: forming it loses nothing then of what a step changes."""
        return all(layer.weight.dtype in (torch.float32, torch.float64) for layer in self.adapted.layers.values())

    def answering(self, numbers: torch.Tensor | None = None) -> AbstractContextManager[None]:
        """Answer folded."""
        return self.adapted.use_z(self.z() if numbers is None else self.z_of(numbers))

    def sampling(self) -> AbstractContextManager[None]:
        """Answer folded, or factored where W' would be rounded: of a short first step half would be lost by that."""
        return self.adapted.use_z(self.z(), folded=self._exact)

    def differentiable(self) -> AbstractContextManager[None]:
        """Answer with gradients: folded and in closed form, or factored where W' would be rounded (svf/gradient.py)."""
        vectors = self._effective(self.flat)
        return self.adapted.trained(self.z(), vectors) if self._exact else self.adapted.with_tensors(vectors)

    def gradient_of(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the gradient (parameters,) of p."""
        (gradient,) = torch.autograd.grad(loss, [self.flat])
        return gradient

    def reference(self) -> AbstractContextManager[None]:
        """Answer as the base."""
        return self.adapted.reference()

    def changed(self) -> None:
        """Forget the z before, and its W'."""
        self._z = None
        self.release()

    def release(self) -> None:
        """Free the folded weights."""
        self.adapted.release()

    def _effective(self, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        return effective(self.form, numbers, self.ranks, self._spectra)
