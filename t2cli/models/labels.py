"""Which of a few labels a model would answer with: one forward pass over the question, and no generated text.

Notation: N questions, C labels, T tokens.

A question is asked as an ordinary chat, with an instruction as its system text; a template without a system role, or
a base without a template, gets the instruction before the question. What all such chats begin with is read once: its
cache serves every question. A model with sliding windows has no cache that can be cut back, so it reads all each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from t2cli.errors import UsageError
from t2cli.models.base import BaseModel
from t2cli.models.cache import attention_window, growing_cache
from t2cli.models.reading import common_prefix, left_padded, positions_of
from t2cli.models.text_model import TextModel

LONGEST_QUESTION = 256  # tokens; a longer question shows its beginning and its end
LONGEST_TOKEN = 16  # characters of a token, at most on average: more of a question is not even tokenised
CUT = " ... "
PROBES = ("1", "?")  # two questions that share no token: what their chats share is what all do


class LabelPrompt:
    """How a base is asked for a label: the tokens of the chat, and of each label."""

    def __init__(self, base: BaseModel, instruction: str, labels: Sequence[str]) -> None:
        self.base = base
        self.instruction = instruction
        self.labels = _first_tokens(base, labels)
        first, second = (self.encode(probe) for probe in PROBES)
        self.beginning = first[: common_prefix([first, second])]

    def encode(self, question: str) -> list[int]:
        """Return the tokens up to where the answer begins; of a long question its beginning and its end."""
        text = self._shortened(question.strip())
        if self.base.has_system_role:
            system = {"role": "system", "content": self.instruction}
            return self.base.encode([system, {"role": "user", "content": text}])
        if self.base.tokenizer.chat_template is None:
            text = f"{text}\nAnswer:"
        return self.base.encode([{"role": "user", "content": f"{self.instruction}\n\nQuestion: {text}"}])

    def _shortened(self, question: str) -> str:
        half, most = LONGEST_QUESTION // 2, LONGEST_QUESTION * LONGEST_TOKEN
        if len(question) > 2 * most:  # a megabyte takes a second to tokenise
            question = question[:most] + question[-most:]
        ids = list(self.base.tokenizer(question, add_special_tokens=False)["input_ids"])
        if len(ids) <= LONGEST_QUESTION:
            return question
        return self.base.decode(ids[:half]) + CUT + self.base.decode(ids[-half:])


class LabelReader:
    """Reads the labels' log-probabilities under what is in use in the model, which must be the same at every call."""

    def __init__(self, model: TextModel, prompt: LabelPrompt) -> None:
        self.model = model
        self.prompt = prompt
        self._labels = torch.tensor(prompt.labels)
        self._cuts_back = attention_window(model.model.config) is None
        self._cache: Any = None

    def read(self, question: str) -> torch.Tensor:
        """Return the log-probability (C,) of each label, among the labels."""
        ids, shared = self.prompt.encode(question), len(self.prompt.beginning)
        if not self._cuts_back or ids[:shared] != self.prompt.beginning:
            return self._anew([ids])[0]
        with torch.inference_mode():
            cache = self._read_beginning()
            self._cache = None  # an interrupt in the next lines leaves it longer: then it is made again
            rest = torch.tensor([ids[shared:]], device=self.model.base.device)
            output = self.model.model(input_ids=rest, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.crop(-rest.shape[1])
            self._cache = cache
            return self._among(output.logits[:, -1])[0]

    def read_each(self, questions: Sequence[str]) -> torch.Tensor:
        """Return what `read` says of each question (N, C), up to rounding, in one forward pass."""
        prompts, beginning = [self.prompt.encode(question) for question in questions], self.prompt.beginning
        shared = len(beginning)
        if not self._cuts_back or any(ids[:shared] != beginning for ids in prompts):
            return self._anew(prompts)
        with torch.inference_mode():
            kept, cache = self._read_beginning(), growing_cache(self.model.model.config)
            for place, layer in enumerate(kept.layers):
                repeated = (states.repeat(len(prompts), 1, 1, 1) for states in (layer.keys, layer.values))
                cache.update(*repeated, place)
            ids, mask = left_padded([ids[shared:] for ids in prompts], self.model.base.device)  # (N, T)
            seen = torch.cat([mask.new_ones(len(prompts), shared), mask], dim=1)
            output = self.model.model(
                input_ids=ids,
                attention_mask=seen,
                position_ids=positions_of(seen)[:, shared:],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            return self._among(output.logits[:, -1])

    def _read_beginning(self) -> Any:
        """Return the cache of what all chats begin with, read on first use."""
        if self._cache is None:
            cache = growing_cache(self.model.model.config)
            ids = torch.tensor([self.prompt.beginning], device=self.model.base.device)
            self.model.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            self._cache = cache
        return self._cache

    def _anew(self, prompts: Sequence[list[int]]) -> torch.Tensor:
        """Return the same (N, C) without a cache."""
        with torch.inference_mode():
            ids, mask = left_padded(prompts, self.model.base.device)
            output = self.model.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions_of(mask),
                use_cache=False,
                logits_to_keep=1,
            )
            return self._among(output.logits[:, -1])

    def _among(self, logits: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities (N, C) of the labels from logits (N, V)."""
        return torch.log_softmax(logits.float().cpu()[:, self._labels], dim=-1)


def _first_tokens(base: BaseModel, labels: Sequence[str]) -> list[int]:
    """Return the first token of each label, after what all begin with: some tokenizers put a space before any text.

    Raises UsageError where two labels begin alike.
    """
    found = [list(base.tokenizer(label, add_special_tokens=False)["input_ids"]) for label in labels]
    first = [ids[common_prefix(found)] for ids in found] if all(found) else []
    if not first or len(set(first)) < len(first):
        raise UsageError(
            f"{base.identity.name} does not tell the labels {', '.join(labels)} apart by their first token",
            hint="use labels that begin with different letters",
        )
    return first
