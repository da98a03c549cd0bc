"""Pass 1 by prompting: the base model itself says to which category a question belongs.

Source: Transformer-Squared (arXiv 2501.06252), section 3.2, "prompt engineering"; math.md 6.

Notation: C categories, T tokens of the question.

Deviations from the paper:
1. No text is generated. The category's name and a few of its questions are put before the question, and its
   log-probability under each category is compared: P(category | question) is proportional to P(question | category)
   ("noisy channel" prompting; Min et al. 2022, arXiv 2108.04106). Asked the other way round, for the name of the
   category after the question, the default base gave 60 % of the right answers at best, calibrated (Zhao et al. 2021,
   arXiv 2102.09690) and with the same examples; this way 87 %.
2. The categories' beginnings are constant: they are read once, and their cache serves every question. A model with
   sliding windows has no cache that can be cut back, so it reads them again each time.
3. "other" leaves the base model untouched; the released code keeps the previous expert's weights.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from t2cli.dispatch.decision import OTHER, Category, Decision, Messages
from t2cli.models.adapted import AdaptedModel
from t2cli.models.cache import attention_window, growing_cache
from t2cli.models.generate import left_padded, positions_of
from t2cli.svf.policy_gradient import token_logp

LONGEST_QUESTION = 256  # tokens; a longer question shows its beginning and its end

# What people ask that no expert is for. Wide rather than many: each costs time at start-up.
OTHER_QUESTIONS = (
    "What is the capital of Italy?",
    "Set an alarm for seven in the morning.",
    "Write a short poem about the sea.",
    "How much money is on my account?",
    "Can you tell me how to fix a flat tire?",
    "Explain why the sky is blue.",
    "Thanks, that was helpful.",
    "Translate good morning into French.",
)


class PromptStrategy:
    """Compares a question with each category's questions; needs the base model only."""

    name = "prompt"

    def __init__(self, adapted: AdaptedModel, categories: Sequence[Category]) -> None:
        self.adapted = adapted
        self.experts = {category.name: category.reference for category in categories}
        other = Category(OTHER, "a general question or request", OTHER_QUESTIONS, "")
        self.categories = [*categories, other]
        self._cache: Any = None
        self._mask: torch.Tensor | None = None
        self._first: torch.Tensor | None = None  # (C, V) logits of a question's first token

    def decide(self, messages: Messages) -> Decision:
        """Return the expert of the likeliest category; none for `other`, or where there are no experts."""
        started = time.monotonic()
        if not self.experts:
            return Decision(self.name, OTHER, {OTHER: 1.0}, {}, time.monotonic() - started)
        probabilities = torch.softmax(self.scores(messages[-1]["content"]), dim=0).tolist()
        named = dict(zip((category.name for category in self.categories), probabilities, strict=True))
        best = max(named, key=lambda name: named[name])
        weights = {} if best == OTHER else {self.experts[best]: 1.0}
        return Decision(self.name, best, named, weights, time.monotonic() - started)

    @torch.inference_mode()
    def scores(self, question: str) -> torch.Tensor:
        """Return log P(question | category) (C,) under the base model."""
        ids = self._tokens(" " + one_line(question), begins=False)
        if len(ids) > LONGEST_QUESTION:
            half = LONGEST_QUESTION // 2
            ids = ids[:half] + ids[-half:]
        with self.adapted.reference():
            if attention_window(self.adapted.model.config) is None:
                predictions = self._after_cache(ids)
            else:
                predictions = self._read_anew(ids)
        rows = torch.tensor([ids] * len(self.categories), device=predictions.device)  # (C, T)
        return token_logp(predictions, rows).sum(dim=1).cpu()

    def _after_cache(self, ids: list[int]) -> torch.Tensor:
        """Return the logits (C, T, V) that predict the question's tokens, from the cache of the beginnings."""
        cache, before, first = self._read_categories()
        rows = torch.tensor([ids] * len(self.categories), device=before.device)  # (C, T)
        mask = torch.cat([before, torch.ones_like(rows)], dim=1)
        positions = positions_of(mask)[:, before.shape[1] :]
        self._cache = None  # an interrupt in the next lines leaves it half longer: then it is made again
        logits = self.adapted.model(
            input_ids=rows, attention_mask=mask, position_ids=positions, past_key_values=cache
        ).logits  # (C, T, V)
        cache.crop(-len(ids))
        self._cache = cache
        return torch.cat([first.unsqueeze(1), logits[:, :-1]], dim=1)

    def _read_anew(self, ids: list[int]) -> torch.Tensor:
        """Return the same without a cache."""
        prompts = [[*self._tokens(beginning(category)), *ids] for category in self.categories]
        rows, mask = left_padded(prompts, self.adapted.base.device)
        logits: torch.Tensor = self.adapted.model(
            input_ids=rows,
            attention_mask=mask,
            position_ids=positions_of(mask),
            use_cache=False,
            logits_to_keep=len(ids) + 1,
        ).logits
        return logits[:, :-1]

    def _read_categories(self) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Return the cache, mask and last logits of the categories' beginnings, read on first use."""
        if self._cache is None or self._mask is None or self._first is None:
            prompts = [self._tokens(beginning(category)) for category in self.categories]
            ids, self._mask = left_padded(prompts, self.adapted.base.device)
            cache = growing_cache(self.adapted.model.config)
            output = self.adapted.model(
                input_ids=ids,
                attention_mask=self._mask,
                position_ids=positions_of(self._mask),
                past_key_values=cache,
                logits_to_keep=1,
            )
            self._cache, self._first = cache, output.logits[:, -1]
        return self._cache, self._mask, self._first

    def _tokens(self, text: str, *, begins: bool = True) -> list[int]:
        """Return the tokens of `text`; a beginning has the special tokens that the model's texts begin with."""
        return list(self.adapted.base.tokenizer(text, add_special_tokens=begins)["input_ids"])


def beginning(category: Category) -> str:
    """Return the text that a question of `category` would continue."""
    head = f"Category: {category.name}\nQuestion:"
    shown = category.examples or ((category.description,) if category.description else ())
    return "".join(f"{head} {one_line(example)}\n\n" for example in shown) + head


def one_line(text: str) -> str:
    """Return `text` with its white space folded, as the examples in a manifest are."""
    return " ".join(text.split())
