"""Two-pass inference: pass 1 chooses z, pass 2 answers with it.

Source: Transformer-Squared (arXiv 2501.06252), section 3.2, figure 2; math.md 6.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from t2cli.config import CEMConfig, DispatchConfig, SamplingConfig
from t2cli.dispatch.categories import categories_of
from t2cli.dispatch.decision import FEW_SHOT, Decision, Messages, Strategy
from t2cli.dispatch.fixed import FixedStrategy
from t2cli.dispatch.mixing import find_members, mixed
from t2cli.errors import NotFoundError
from t2cli.lookup import load
from t2cli.models.adapted import AdaptedModel
from t2cli.models.generate import Stop, generate, left_for
from t2cli.registry.local import LocalRegistry
from t2cli.registry.resolve import ForBase, Resolver
from t2cli.registry.vectors import read_z
from t2cli.svf.zvector import ZVectors

if TYPE_CHECKING:
    from t2cli.dispatch.examples import FewShot, Shot
    from t2cli.dispatch.few_shot import FewShotResult, OnIteration

NO_STRATEGY = "none"
AUTOMATIC = "auto"  # the best there is for the base's experts; its decisions name the one that was taken
KEPT_MIXES = 64  # the z of so many experts and mixes stay in memory; of a stream of questions each may name its own
# name -> what makes the Strategy, from (TwoPass, DispatchConfig)
STRATEGIES = {
    AUTOMATIC: "t2cli.dispatch.classifier:automatic_strategy",
    "classifier": "t2cli.dispatch.classifier:classifier_strategy",
    "prompt": "t2cli.dispatch.prompt:prompt_strategy",
    NO_STRATEGY: "t2cli.dispatch.fixed:no_strategy",
}

OnText = Callable[[str], None]


@dataclass(frozen=True)
class Answer:
    """An answer and where its time went (seconds; `first_token_seconds` counts from the question)."""

    text: str
    decision: Decision
    first_token_seconds: float
    answer_seconds: float
    prompt_tokens: int
    answer_tokens: int


class TwoPass:
    """Answers questions, each with the experts that pass 1 (or the user) chose for it."""

    def __init__(
        self, adapted: AdaptedModel, registry: LocalRegistry, *, quiet: bool = False, allow_foreign: bool = False
    ) -> None:
        identity = adapted.base.identity
        used = ForBase(identity.folder_name, identity.weights, lambda: identity.probes, lambda: adapted.ranks)
        self.adapted = adapted
        self.registry = registry
        self.resolver = Resolver(registry, used, allow_foreign=allow_foreign)
        self.quiet = quiet
        self._mixes: dict[tuple[tuple[str, float], ...], ZVectors] = {}

    def strategy(self, name: str, config: DispatchConfig = DispatchConfig()) -> Strategy:  # noqa: B008 (frozen)
        """Return the strategy `name`, over the categories of the experts there are. NotFoundError if unknown."""
        make = cast("Callable[[TwoPass, DispatchConfig], Strategy]", load(name, STRATEGIES, "strategy"))
        return make(self, config)

    def by_hand(self, weights: Mapping[str, float]) -> Strategy:
        """Return the strategy to use exactly these experts; raises as Resolver.find for unusable ones."""
        members = find_members(self.resolver, weights)
        return FixedStrategy(Decision("fixed", weights={self.resolver.using(entry): alpha for entry, alpha in members}))

    def few_shot(
        self, examples: Sequence[FewShot], config: CEMConfig, *, on_iteration: OnIteration | None = None
    ) -> tuple[Strategy, FewShotResult]:
        """Return the strategy to use the mix that answers the examples best, and how it was found.

        Where the mix does not beat the base, each expert and their uniform mix on the examples held out, the best of
        these answers. Raises as `search`, and T2Error where no mix answered any example right.
        """
        result = self.search(examples, config, on_iteration=on_iteration)
        weights = result.weights(result.chosen()[1])
        return FixedStrategy(Decision(FEW_SHOT, weights=weights)), result

    def search(
        self,
        examples: Sequence[Shot],
        config: CEMConfig,
        *,
        on_iteration: OnIteration | None = None,
        stop: Stop | None = None,
    ) -> FewShotResult:
        """Return what a search of the mix that answers the examples best found, of all experts pass 1 may choose.

        Raises NotFoundError where there is no expert.
        """
        from t2cli.dispatch.few_shot import search_mix

        references = [category.reference for category in categories_of(self.resolver)]
        if not references:
            raise NotFoundError(
                f"there is no expert for {self.resolver.base.label}: nothing can be mixed",
                hint="train one with t2 train, or use --adapt none",
            )
        self.adapted.prepare(quiet=self.quiet)
        members = find_members(self.resolver, dict.fromkeys(references, 1.0))
        experts = {r: read_z(entry) for r, (entry, _) in zip(references, members, strict=True)}
        return search_mix(self.adapted, experts, examples, config, on_iteration=on_iteration, stop=stop)

    def answer(
        self, messages: Messages, decision: Decision, sampling: SamplingConfig, *, on_text: OnText | None = None
    ) -> Answer:
        """Answer the chat with the experts of `decision`; `on_text` gets the text piece by piece as it comes.

        Raises UsageError for a chat that leaves no room for an answer in the model's context.
        """
        import torch

        started = time.monotonic()
        base = self.adapted.base
        ids = base.encode(messages)
        room = left_for(base, ids)
        first: list[float] = []
        stream = _Stream(base.decode, on_text)

        def on_token(_row: int, token: int) -> None:
            first.append(time.monotonic())
            stream.add(token)

        limits = SamplingConfig(min(sampling.max_new_tokens, room), sampling.temperature, sampling.seed)
        generator = torch.Generator().manual_seed(sampling.seed)
        z = self.z_of(decision.weights)
        if z is not None:
            self.adapted.prepare(quiet=self.quiet)
        with self.adapted.answering_as(z):
            completion = generate(self.adapted, [ids], limits, generator=generator, on_token=on_token)[0]
        text = stream.finish()
        ended = time.monotonic()
        to_first = (first[0] if first else ended) - started
        return Answer(text, decision, decision.seconds + to_first, ended - started, len(ids), len(completion.ids))

    def per_row(self, rows: Sequence[Mapping[str, float] | str | None]) -> AbstractContextManager[None]:
        """Answer each row of a batch as what it names: an expert, a mix of weights by expert, or None for the base.

        Raises as Resolver.find for experts that cannot be used.
        """
        weights = [{row: 1.0} if isinstance(row, str) else row or {} for row in rows]
        return self.adapted.per_row([self.z_of(row) for row in weights])

    def z_of(self, weights: Mapping[str, float]) -> ZVectors | None:
        """Return the z of a mix of experts; the same one for the same mix, so that it is folded once. None: the base.

        Raises as Resolver.find for experts that cannot be used.
        """
        if not weights:
            return None
        key = tuple(weights.items())
        if key not in self._mixes:
            z = mixed(find_members(self.resolver, weights))
            self.adapted.check(z)
            while len(self._mixes) >= KEPT_MIXES:
                del self._mixes[next(iter(self._mixes))]
            self._mixes[key] = z
        return self._mixes[key]


class _Stream:
    """Text of a growing list of tokens, handed on in pieces that never change afterwards."""

    def __init__(self, decode: Callable[[Sequence[int]], str], on_text: OnText | None) -> None:
        self._decode, self._on_text = decode, on_text
        self._ids: list[int] = []
        self._shown = ""

    def add(self, token: int) -> None:
        self._ids.append(token)
        if self._on_text is not None:
            text = self._decode(self._ids)
            if not text.endswith("\ufffd"):  # a character whose other bytes are still to come
                self._show(text)

    def finish(self) -> str:
        text = self._decode(self._ids)
        self._show(text)
        return text

    def _show(self, text: str) -> None:
        if self._on_text is not None and len(text) > len(self._shown):
            self._on_text(text[len(self._shown) :])
            self._shown = text
