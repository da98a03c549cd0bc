"""Pass 1 by prompting: the base model itself says to which category a question belongs.

Source: Transformer-Squared (arXiv 2501.06252), section 3.2, "prompt engineering"; math.md 6.

Notation: C categories, T tokens of the question.

Deviations from the paper:
1. No text is generated. The category's name and a few of its questions are put before the question, and its
   log-probability under each category is compared: P(category | question) is proportional to P(question | category)
   ("noisy channel" prompting; Min et al. 2022, arXiv 2108.04106). Asked the other way round, for the name of the
   category after the question in one forward pass, with the same examples in the cached beginning, the default base
   chose 35 % of 240 validation questions right, 69 % calibrated by contents without meaning (Zhao et al. 2021,
   arXiv 2102.09690), 80 % with the labels' mean taken off (or with any offsets); this way 99 %.
2. The categories' beginnings are constant: they are read once, and their cache serves every question. A model with
   sliding windows has no cache that can be cut back, so it reads them again each time.
3. "other" leaves the base model untouched; the released code keeps the previous expert's weights.
4. Calibrated: `other` is given OTHER_NATS, and the probabilities are the softmax of the sums, as they are. Tried on the
   same questions (60 each of three experts and general ones) and 60 that were typed by hand, in this order; in
   brackets how many general ones of 60 stay with the base, and the expected calibration error:
     as before, 8 polished general questions as `other`                     0.942 (46, 0.022)    0.967 by hand
     1.5 nats for `other`: all mistakes were general, with small margins    0.971 (53, 0.018)    0.967
     3.5 nats, the most likely on these questions alone                     0.983 (59, 0.009)    0.883
     offsets per token, or temperatures that grow with the length           0.967 to 0.983       0.833 to 0.917
     8 general questions as assistants get them (in either order)           0.967 (52, 0.027)    0.983
     these 8, and 2 nats                                                    0.988 (57, 0.016)    0.983
     the same, temperature 0.7 or 1.4                                       0.988 (0.011, 0.031) 0.983
     half of them without capitals and points, and 1.5 nats                 0.996 (59, 0.007)    0.967
     16 of both kinds and 2 nats; two rows of 8 added up and 0.5            0.979, 0.983         0.983, 0.967
   Offsets from the categories' own examples, each left out of its beginning, and other general questions: between
   4.9 and -5.1 nats any would do, so they do not see this bias. The temperature is 1 within what can be measured.
   On 500 test questions: 0.948 before, 0.986 after; general ones kept 100 and 119 of 125; calibration 0.031 and 0.016.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from t2cli.config import DispatchConfig
from t2cli.dispatch.categories import categories_of
from t2cli.dispatch.choice import chosen
from t2cli.dispatch.decision import OTHER, Category, Decision, Messages, Strategy
from t2cli.models.adapted import AdaptedModel
from t2cli.models.cache import attention_window, growing_cache
from t2cli.models.generate import chunks
from t2cli.models.reading import left_padded, positions_of
from t2cli.svf.policy_gradient import token_logp

if TYPE_CHECKING:
    from t2cli.dispatch.two_pass import TwoPass

LONGEST_QUESTION = 64  # tokens; a longer question shows its beginning and its end, and its first 16 say enough
LONGEST_TEXT = 1 << 14  # characters; what is between the ends of a longer text is not even made into tokens
ROWS = 32  # questions times categories in one pass: each row has a copy of its category's cache
TOKENS = 1024  # padded tokens in one pass: each has logits of the whole vocabulary

# What people ask that no expert is for. Wide rather than many: each costs time at start-up.
OTHER_QUESTIONS = (
    "Who painted the Mona Lisa?",
    "Remind me to call my mother tomorrow.",
    "Suggest a recipe with chicken and rice.",
    "What does this word mean?",
    "I lost my card, what should I do?",
    "Are there any good films on tonight?",
    "hello, how are you?",
    "Tell me about the history of Rome.",
)
OTHER_NATS = 2.0  # how much more likely, as a logarithm, a question must be under a category of an expert: 7 times


class PromptStrategy:
    """Compares a question with each category's questions; needs the base model only."""

    name = "prompt"

    def __init__(
        self,
        adapted: AdaptedModel,
        categories: Sequence[Category],
        config: DispatchConfig = DispatchConfig(),  # noqa: B008 (frozen)
    ) -> None:
        self.adapted = adapted
        self.config = config
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
        scores = self.scores(messages[-1]["content"])
        return self._decision(scores, time.monotonic() - started)

    def decide_each(self, conversations: Sequence[Messages]) -> list[Decision]:
        """Return what `decide` says of each, up to rounding; questions of like length are read side by side."""
        if not self.experts or attention_window(self.adapted.model.config) is not None:
            return [self.decide(messages) for messages in conversations]
        questions = [self._question(messages[-1]["content"]) for messages in conversations]
        order = sorted(range(len(questions)), key=lambda index: len(questions[index]))
        found: dict[int, Decision] = {}
        longest = max(map(len, questions), default=1)
        size = max(1, min(ROWS, TOKENS // longest) // len(self.categories))
        for part in chunks(order, size):
            started = time.monotonic()
            scores = self._side_by_side([questions[index] for index in part])  # (N, C)
            seconds = (time.monotonic() - started) / len(part)
            found.update((index, self._decision(row, seconds)) for index, row in zip(part, scores, strict=True))
        return [found[index] for index in range(len(questions))]

    def _decision(self, scores: torch.Tensor, seconds: float) -> Decision:
        """Return what log P(question | category) (C,) says."""
        prior = torch.tensor([OTHER_NATS if category.name == OTHER else 0.0 for category in self.categories])
        probabilities = torch.softmax(scores + prior, dim=0).tolist()
        named = dict(zip((category.name for category in self.categories), probabilities, strict=True))
        return chosen(self.name, named, self.experts, self.config, seconds)

    @torch.inference_mode()
    def scores(self, question: str) -> torch.Tensor:
        """Return log P(question | category) (C,) under the base model."""
        ids = self._question(question)
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

    @torch.inference_mode()
    def _side_by_side(self, questions: Sequence[list[int]]) -> torch.Tensor:
        """Return log P(question | category) (N, C) of N questions; padding is on the right, where nobody sees it."""
        with self.adapted.reference():
            kept, before, first = self._read_categories()
            number, categories, longest = len(questions), len(self.categories), max(map(len, questions))
            cache = growing_cache(self.adapted.model.config)
            for place, layer in enumerate(kept.layers):
                cache.update(layer.keys.repeat(number, 1, 1, 1), layer.values.repeat(number, 1, 1, 1), place)
            ids = torch.tensor([[*question, *[0] * (longest - len(question))] for question in questions])
            mask = torch.tensor([[1] * len(question) + [0] * (longest - len(question)) for question in questions])
            rows = ids.repeat_interleave(categories, dim=0).to(before.device)  # (N C, T)
            asked = mask.repeat_interleave(categories, dim=0).to(before.device)
            seen = torch.cat([before.repeat(number, 1), asked], dim=1)
            logits = self.adapted.model(
                input_ids=rows,
                attention_mask=seen,
                position_ids=positions_of(seen)[:, before.shape[1] :],
                past_key_values=cache,
            ).logits  # (N C, T, V)
        predictions = torch.cat([first.repeat(number, 1).unsqueeze(1), logits[:, :-1]], dim=1)
        return (token_logp(predictions, rows) * asked).sum(dim=1).view(number, categories).cpu()

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

    def _question(self, text: str) -> list[int]:
        """Return the tokens of a question as it stands after a category's beginning, at most LONGEST_QUESTION."""
        text, half = one_line(text), LONGEST_TEXT // 2
        text = self._unlabelled(text if len(text) <= LONGEST_TEXT else text[:half] + text[-half:])
        ids = self._tokens(" " + text, begins=False)
        half = LONGEST_QUESTION // 2
        return ids if len(ids) <= LONGEST_QUESTION else ids[:half] + ids[-half:]

    def _unlabelled(self, text: str) -> str:
        """Return a question without what only a beginning writes, else "Category: math Question:" chooses itself."""
        names = "|".join(re.escape(one_line(category.name)) for category in self.categories)
        label = rf"\bcategory\s*:\s*({names})(?!\w)(\s*question\s*:)?|^question\s*:"
        rest, before = text, ""
        while rest != before:  # what is left of nested ones may be one again
            rest, before = one_line(re.sub(label, " ", rest, flags=re.IGNORECASE)), rest
        return rest or text

    def _tokens(self, text: str, *, begins: bool = True) -> list[int]:
        """Return the tokens of `text`; a beginning has the special tokens that the model's texts begin with."""
        return list(self.adapted.base.tokenizer(text, add_special_tokens=begins)["input_ids"])


def prompt_strategy(two_pass: TwoPass, config: DispatchConfig) -> Strategy:
    """Return the strategy over the categories of the experts there are."""
    return PromptStrategy(two_pass.adapted, categories_of(two_pass.resolver), config)


def beginning(category: Category) -> str:
    """Return the text that a question of `category` would continue."""
    head = f"Category: {category.name}\nQuestion:"
    shown = category.examples or ((category.description,) if category.description else ())
    return "".join(f"{head} {one_line(example)}\n\n" for example in shown) + head


def one_line(text: str) -> str:
    """Return `text` with its white space folded, as the examples in a manifest are."""
    return " ".join(text.split())
