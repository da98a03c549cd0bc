"""Pass 1 by classification: a dispatcher, an expert trained for it, says to which category a question belongs.

Source: Transformer-Squared (arXiv 2501.06252), section 3.2, "classification expert"; math.md 6.

Notation: N questions, C categories.

Deviations from the paper:
1. No text is generated: the category is read off the labels' log-probabilities, after one forward pass over the
   question under the dispatcher's z, folded. The instruction before it is constant, and read once (models/labels.py).
2. It is trained and measured on different questions (the released code trains it on test items), some of them general.
   What is less likely than the threshold that its manifest names is left to the base.
3. "other" leaves the base model untouched; the released code keeps the previous expert's weights.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from t2cli.config import DispatchConfig
from t2cli.dispatch.categories import categories_of
from t2cli.dispatch.choice import chosen
from t2cli.dispatch.decision import Category, Decision, Messages, Strategy
from t2cli.dispatch.prompt import prompt_strategy
from t2cli.errors import NotFoundError
from t2cli.models.adapted import AdaptedModel
from t2cli.models.generate import chunks
from t2cli.models.labels import LabelPrompt, LabelReader
from t2cli.registry.dispatcher_record import OTHER, DispatcherRecord, category_key
from t2cli.registry.vectors import read_z
from t2cli.svf.zvector import ZVectors

if TYPE_CHECKING:
    from t2cli.dispatch.two_pass import TwoPass
    from t2cli.registry.local import ExpertEntry
    from t2cli.registry.resolve import Resolver

DISPATCHER = "dispatcher"  # the kind of an expert that chooses among the others
TOKENS = 2048  # padded tokens in one pass
ROWS = 64  # questions in one pass: each has a copy of the instruction's cache


class ClassifierStrategy:
    """Asks the base under the z of a dispatcher, which is as `record` says."""

    name = "classifier"

    def __init__(
        self,
        adapted: AdaptedModel,
        z: ZVectors,
        record: DispatcherRecord,
        categories: Sequence[Category],
        config: DispatchConfig = DispatchConfig(),  # noqa: B008 (frozen)
    ) -> None:
        self.adapted = adapted
        self.z = z
        self.record = record
        self.config = config
        known = _spelt(record)
        found = {known.get(category_key(each.name)): each.reference for each in categories}
        self.experts = {name: reference for name, reference in found.items() if name is not None}
        self.prompt = LabelPrompt(adapted.base, record.instruction, record.labels)
        self._reader = LabelReader(adapted, self.prompt)

    def decide(self, messages: Messages) -> Decision:
        """Return the expert of the likeliest category; none for `other`, or below the threshold."""
        started = time.monotonic()
        with self.adapted.use_z(self.z):
            logp = self._reader.read(messages[-1]["content"])
        return self._decision(logp, time.monotonic() - started)

    def decide_each(self, conversations: Sequence[Messages]) -> list[Decision]:
        """Return what `decide` says of each, up to rounding; questions of like length are read side by side."""
        questions = [messages[-1]["content"] for messages in conversations]
        lengths = [len(self.prompt.encode(question)) for question in questions]
        order = sorted(range(len(questions)), key=lambda index: lengths[index])
        size = max(1, min(ROWS, TOKENS // max(lengths, default=1)))
        found: dict[int, Decision] = {}
        for part in chunks(order, size):
            started = time.monotonic()
            with self.adapted.use_z(self.z):
                logp = self._reader.read_each([questions[index] for index in part])  # (N, C)
            seconds = (time.monotonic() - started) / len(part)
            found.update((index, self._decision(row, seconds)) for index, row in zip(part, logp, strict=True))
        return [found[index] for index in range(len(questions))]

    def _decision(self, logp: torch.Tensor, seconds: float) -> Decision:
        """Return what the categories' log-probabilities (C,) say."""
        named = dict(zip(self.record.categories, logp.exp().tolist(), strict=True))
        return chosen(self.name, named, self.experts, self.config, seconds, advised=self.record.threshold)


def classifier_strategy(two_pass: TwoPass, config: DispatchConfig) -> Strategy:
    """Return the strategy of the newest dispatcher for the base; a warning names categories that it does not know.

    Raises NotFoundError where there is none, and CorruptArtifactError for a damaged one.
    """
    entry = required_dispatcher(two_pass.resolver)
    categories = categories_of(two_pass.resolver)
    strategy = _strategy(two_pass, entry, categories, config)
    if unknown := unknown_to(strategy.record, categories):
        two_pass.resolver.remark(
            f"{entry.reference} was not trained to tell {' and '.join(unknown)} from the others, and never chooses it: "
            "--adapt prompt does, or train a dispatcher on a task file that names its task too"
        )
    return strategy


def automatic_strategy(two_pass: TwoPass, config: DispatchConfig) -> Strategy:
    """Return `classifier` where a dispatcher for the base knows the categories of all its experts, else `prompt`.

    A dispatcher that is passed over is named in a warning.
    """
    entry, categories = newest_dispatcher(two_pass.resolver), categories_of(two_pass.resolver)
    record = None if entry is None else entry.manifest.dispatcher
    if entry is not None and record is not None and categories:
        if not (unknown := unknown_to(record, categories)):
            return _strategy(two_pass, entry, categories, config)
        two_pass.resolver.remark(
            f"{entry.reference} does not know {' and '.join(unknown)}, so that the base itself chooses among the "
            "experts: --adapt classifier keeps the dispatcher, which then never chooses what it does not know"
        )
    return prompt_strategy(two_pass, config)


def required_dispatcher(resolver: Resolver) -> ExpertEntry:
    """Return the newest dispatcher of this very base. Raises NotFoundError where there is none."""
    entry = newest_dispatcher(resolver)
    if entry is None:
        raise NotFoundError(
            f"there is no dispatcher for {resolver.base.label}",
            hint="train one with t2 train --task dispatch, or use --adapt prompt",
        )
    return entry


def newest_dispatcher(resolver: Resolver) -> ExpertEntry | None:
    """Return the newest dispatcher of this very base: one of a relative would read another model's mind."""
    found: dict[str, ExpertEntry] = {}
    for entry in resolver.own():
        found.setdefault(entry.reference, entry)  # what a reference means: the first on the search path
    dispatchers = [entry for entry in found.values() if entry.manifest.kind == DISPATCHER]
    return max(dispatchers, key=lambda entry: (entry.manifest.created, entry.manifest.version), default=None)


def unknown_to(record: DispatcherRecord, categories: Sequence[Category]) -> list[str]:
    """Return the categories that a dispatcher does not know."""
    known = _spelt(record)
    return [each.name for each in categories if known.get(category_key(each.name), OTHER) == OTHER]


def _spelt(record: DispatcherRecord) -> dict[str, str]:
    """Return how a dispatcher writes the categories that it knows, by what makes two of them one."""
    return {category_key(name): name for name in record.categories}


def _strategy(
    two_pass: TwoPass, entry: ExpertEntry, categories: Sequence[Category], config: DispatchConfig
) -> ClassifierStrategy:
    z = read_z(entry)
    two_pass.adapted.check(z)
    assert entry.manifest.dispatcher is not None  # the manifest of a dispatcher has it
    return ClassifierStrategy(two_pass.adapted, z, entry.manifest.dispatcher, categories, config)
