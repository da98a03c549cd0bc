"""A base model that can answer as any expert and is the base again afterwards, bit for bit.

Two invariants hold and are tested (architecture.md): factored, per-row and folded application agree and z = 1 is the
base; and after any use of an expert, an error inside it included, the base weights are what they were.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from t2cli.errors import IncompatibleBaseError, T2Error
from t2cli.models.base import BaseModel
from t2cli.models.basis_cache import decompose, load_bases
from t2cli.models.fold_cache import FOLD_CACHE_BYTES, FoldCache, size_of
from t2cli.models.memory import Room
from t2cli.models.targets import Target, find_targets
from t2cli.models.team import Team
from t2cli.svf.basis import Basis
from t2cli.svf.experts import SVFExperts
from t2cli.svf.gradient import small_components
from t2cli.svf.linear import AdaptedWeight, SVFLinear, Use
from t2cli.svf.lowrank import thinned
from t2cli.svf.zvector import ZVectors, unflatten

SPECTRAL_BYTES = 2 << 30  # per-row products keep a second form of the weights up to this size

Rows = Sequence[ZVectors | None] | torch.Tensor


class AdaptedModel:
    """A base whose targets are in SVFLinear and SVFExperts. Without an expert in use it computes what the base does.

    The base weights are only ever read. Bases are attached when first needed (`prepare`). Until `detach`, mixtures of
    experts run in transformers' eager way, whatever the base was set to.
    """

    def __init__(
        self,
        base: BaseModel,
        selection: str = "all",
        *,
        fold_cache_bytes: int = FOLD_CACHE_BYTES,
        spectral_bytes: int = SPECTRAL_BYTES,
    ) -> None:
        self.base = base
        self.model = base.model
        if any(isinstance(module, SVFLinear | SVFExperts) for module in base.model.modules()):
            raise T2Error(f"{base.identity.name} is adapted already", hint="detach the other AdaptedModel first")
        self.targets: list[Target] = find_targets(base.model, selection)
        self._folds = FoldCache(fold_cache_bytes)
        self.spectral_bytes = spectral_bytes
        self.team = Team()  # the processes that share the answering of many prompts
        self.answers_at_once = Room(32, "answers")
        self._originals: dict[str, nn.Module] = {}
        self._implementations: list[tuple[Any, str | None]] = []  # configs of the base, and how they ran its experts
        self._layers: dict[str, AdaptedWeight] = {target.weight: self._adapt(target) for target in self.targets}

    def _adapt(self, target: Target) -> AdaptedWeight:
        """Put a stand-in where the target's module is, unless another of its targets did, and return the target's."""
        module = self.model.get_submodule(target.module)
        if target.module not in self._originals:
            self._originals[target.module] = module
            if target.index is not None:
                self._run_eagerly(module)
            stand_in = SVFLinear(module, transposed=target.transposed) if target.index is None else SVFExperts(module)
            _put(self.model, target.module, stand_in)
            module = stand_in
        if target.index is None:
            assert isinstance(module, SVFLinear)
            return module
        assert isinstance(module, SVFExperts)
        return module.slices[target.parameter, target.index]

    def _run_eagerly(self, experts: nn.Module) -> None:
        """Let the base run its experts one by one: grouped products would round otherwise than an expert's do."""
        config: Any = experts.config
        if config._experts_implementation != "eager":
            self._implementations.append((config, config._experts_implementation))
            config._experts_implementation = "eager"

    @property
    def ranks(self) -> dict[str, int]:
        """Return r of each target by weight name."""
        return {target.weight: target.rank for target in self.targets}

    @property
    def layers(self) -> Mapping[str, AdaptedWeight]:
        """Return the adapted weights by name."""
        return self._layers

    def detach(self) -> None:
        """Put the base's own layers back."""
        for name, module in self._originals.items():
            _put(self.model, name, module)
        for config, implementation in self._implementations:
            config._experts_implementation = implementation

    def prepare(self, *, quiet: bool = False) -> None:
        """Attach the bases from the cache, making those that are missing first."""
        if all(layer.basis is not None for layer in self._layers.values()):
            return
        from t2cli.config import DecomposeConfig

        config = DecomposeConfig(device=str(self.base.device))
        done = decompose(self.base.files, self.base.identity, config, self.targets, quiet=quiet)
        self.attach(load_bases(self.base.identity, self.targets, done.dtype))

    def attach(self, bases: Mapping[str, Basis]) -> None:
        """Give each target its basis, on the device of its weight."""
        for weight, layer in self._layers.items():
            basis = bases[weight]
            layer.basis = basis._replace(Q=basis.Q.to(layer.weight.device))

    def check(self, vectors: Mapping[str, torch.Tensor]) -> None:
        """Raise IncompatibleBaseError unless every z belongs to a target and has its rank."""
        ranks = self.ranks
        for name, z in vectors.items():
            if name not in ranks:
                raise IncompatibleBaseError(
                    f"the expert adapts {name}, which {self.base.identity.name} does not have",
                    hint="use an expert that `t2 list` shows as compatible with this base",
                )
            if z.shape[-1] != ranks[name]:
                raise IncompatibleBaseError(
                    f"the expert has {z.shape[-1]} numbers for {name}, the base has {ranks[name]}",
                    hint="use an expert that `t2 list` shows as compatible with this base",
                )

    @contextlib.contextmanager
    def use_z(self, z: ZVectors, *, folded: bool = True, tolerance: float = 0.0) -> Iterator[None]:
        """Answer as the expert `z`: folded (native speed, W' is formed) or factored (no W').

        With a `tolerance` factored products leave out the components of z - 1 that change each W' - W by less than
        that, relative to its Frobenius norm (svf/lowrank.py).
        """
        self.check(z)
        self.prepare()
        with self._restored():
            self._clear()
            if folded:
                for name, W in self._fold(z).items():
                    self._layers[name].folded = W
            else:
                self._set(z, tolerance)
            yield

    @contextlib.contextmanager
    def per_row(self, rows: Rows, *, tolerance: float = 0.0) -> Iterator[None]:
        """Answer each row of a batch as its own expert; `rows` has one entry per row, or is z itself (B, parameters).

        None is the base. Where no row differs from the base it answers bit for bit; `tolerance` is as in `use_z`.
        Raises ValueError for a tensor of another width.
        """
        stacked = self._stacked(rows)
        self.check(stacked)
        self.prepare()
        with self._restored():
            self._clear()
            self._set({name: z for name, z in stacked.items() if bool((z != 1).any())}, tolerance)
            self._make_spectral()
            yield

    def _stacked(self, rows: Rows) -> dict[str, torch.Tensor]:
        """Return z (B, r) by name."""
        if isinstance(rows, torch.Tensor):
            if rows.ndim != 2 or rows.shape[1] != sum(self.ranks.values()):
                raise ValueError(f"expected z of shape (rows, {sum(self.ranks.values())}), got {tuple(rows.shape)}")
            return unflatten(rows, self.ranks)
        given = [row for row in rows if row is not None]
        for z in given:
            self.check(z)
        names = sorted({name for z in given for name in z})
        ones = {name: torch.ones(self.ranks[name]) for name in names}
        return {
            name: torch.stack([ones[name] if row is None or name not in row else row[name] for row in rows])
            for name in names
        }

    def _make_spectral(self) -> None:
        """Keep W Q beside W where it fits: per-row products are a third cheaper so.

        Only in float32: there the error, that of Q's own rounding relative to W, is no more than the product's. The
        other form errs relative to W' - W, which lower precisions of W or Q need and float64 is there to see.
        """
        layers = self._layers.values()
        if sum(size_of(layer.weight) for layer in layers) > self.spectral_bytes:
            return
        for layer in layers:
            float32 = {layer.weight.dtype, layer.require_basis().Q.dtype} == {torch.float32}
            if float32 and layer.spectral is None and layer.z is not None and layer.columns is None:
                layer.spectral = layer.spectral_form()

    def folding_pays(self, z: ZVectors, tokens: int) -> bool:
        """Tell whether to read so many tokens as `z` folded rather than per row.

        Forming W' takes r^2 (m + n) multiplications, a token per row r^2 more than folded.
        """
        squares = {target.weight: target.rank**2 for target in self.targets if target.weight in z}
        forming = sum(squares[t.weight] * sum(t.shape) for t in self.targets if t.weight in z)
        return bool(squares) and self._folds.pays(z, tokens, forming // sum(squares.values()))

    @contextlib.contextmanager
    def with_tensors(self, vectors: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Answer factored with the given tensors themselves, so that gradients reach them."""
        self.check(vectors)
        self.prepare()
        with self._restored():
            self._clear()
            self._set(vectors)
            yield

    @contextlib.contextmanager
    def trained(self, z: ZVectors, vectors: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Answer folded as `z` with gradients that reach `vectors`, tensors of the same values (svf/gradient.py).

        Faster than `with_tensors` and exact where W' is kept in float32; lower precisions round W' and lose digits.
        """
        with self.use_z(z):
            self._set(vectors)
            for name, vector in z.items():
                layer = self._layers[name]
                layer.small = small_components(vector).to(layer.weight.device)
            yield

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Answer as the base model, whatever expert is in use around this block."""
        with self._restored():
            self._clear()
            yield

    def answering_as(self, z: ZVectors | None) -> contextlib.AbstractContextManager[None]:
        """Answer folded as the expert `z`, None being the base."""
        return self.reference() if z is None else self.use_z(z)

    @property
    def rows(self) -> int | None:
        """Return how many rows the batch of a `per_row` block has; None where all rows are one expert."""
        vectors = (layer.z for layer in self._layers.values())
        return next((len(z) for z in vectors if z is not None and z.ndim == 2), None)

    @property
    def rows_differ(self) -> bool:
        """Tell whether a `per_row` block is active."""
        return self.rows is not None

    def rows_kept(self) -> contextlib.AbstractContextManager[None]:
        """Undo at the end of the block what `select_rows` does inside it."""
        return self._restored()

    def select_rows(self, rows: torch.Tensor) -> None:
        """Keep, repeat or reorder the rows of a `per_row` batch as the batch itself changes; else do nothing."""
        for layer in self._layers.values():
            if layer.z is not None and layer.z.ndim == 2:
                layer.z = layer.z[rows]

    def _set(self, vectors: Mapping[str, torch.Tensor], tolerance: float = 0.0) -> None:
        for name, z in vectors.items():
            layer = self._layers[name]
            layer.z = z.to(layer.weight.device)
            if tolerance:
                layer.z, layer.columns = thinned(layer.z, layer.require_basis().S, tolerance)

    def _clear(self) -> None:
        for layer in self._layers.values():
            layer.use = Use()

    @contextlib.contextmanager
    def _restored(self) -> Iterator[None]:
        before = {name: layer.use for name, layer in self._layers.items()}
        try:
            yield
        finally:
            for name, use in before.items():
                self._layers[name].use = use

    def _fold(self, z: ZVectors) -> dict[str, torch.Tensor]:
        """Return W' by name; an expert that was in use recently costs nothing."""
        return self._folds.get(z, lambda: {name: self._layers[name].fold(vector) for name, vector in z.items()})

    def release(self) -> None:
        """Free what is kept for speed: folded weights of recently used experts, and W Q."""
        self._folds.clear()
        for layer in self._layers.values():
            layer.spectral = None


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Make `module` the submodule of that dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
