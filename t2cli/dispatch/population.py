"""Many mixes answer the same questions in one batch, every row with the z of its mix.

Notation: C mixes, K experts, M adapted matrices, D = K or K M numbers of a mix, N questions, L length of the packed
questions, T tokens of the longest, P parameters.

    z' = 1 + sum_k alpha_k (z_k - 1)        one alpha per expert, or one per expert and matrix (math.md 4)

1. A mix reads all questions with their right answers in one packed row (training/packing.py): what all begin with once
   and no padding. That gives the log-likelihoods and the first token of every answer.
2. The keys and values of a packed row are dealt out to one row per question, and all C N rows are answered greedily
   together; rows leave the batch when they end. Layers with a sliding window have no packed row: there one question
   at a time is answered by all mixes together.
3. The few rows that never end took two thirds of a generation's time. Once right answers are known, no row goes on
   much longer than the longest of them: a mix that is right only at a length as none before it counts as wrong.
4. Where so much is read that forming W' costs less than it saves, each mix answers alone, folded: the questions held
   out are asked so, a hundred of them to a few mixes.
5. With 32 mixes and 8 questions 61 % of a later generation is the reading of packed rows and 39 % the answering, 82 %
   of all in matrix products at full speed. A third of the reading's products would go with W' formed for each mix
   from kept differences of the experts' weights; forming them would take most of that again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from t2cli.config import SamplingConfig
from t2cli.dispatch.examples import Shot
from t2cli.errors import DivergedError, UsageError
from t2cli.models.adapted import AdaptedModel
from t2cli.models.cache import attention_window, growing_cache
from t2cli.models.generate import Completion, Stop, chunks, continued, generate
from t2cli.models.memory import Room
from t2cli.models.reading import common_prefix, left_padded
from t2cli.svf.policy_gradient import token_logp
from t2cli.svf.zvector import ZVectors, unflatten
from t2cli.training.packing import pack

BATCH_BYTES = 3 << 30  # of keys, values and predictions at a time
SPARE = 8  # tokens that an answer may have beyond twice the longest right one before it
LOST = -1000.0  # nats a token: less than any that float32 can tell from impossible
PACKED = 16  # questions in one packed row: attention within it grows with the square
FOLDED_ROWS, FOLDED_TOKENS = 64, 4096  # the same where there is but one such row: more answer together


class Judged(NamedTuple):
    """How a mix answered: which questions it got right, and the mean log-likelihood of the right answers' tokens."""

    right: tuple[bool, ...]
    logp: float

    @property
    def accuracy(self) -> float:
        """Return the share of right answers."""
        return sum(self.right) / len(self.right)

    @property
    def score(self) -> tuple[float, float]:
        """Return what orders mixes: accuracy, ties broken by the log-likelihood (math.md 6)."""
        return self.accuracy, self.logp


class Exam:
    """A list of questions that many z answer at once."""

    def __init__(
        self,
        adapted: AdaptedModel,
        examples: Sequence[Shot],
        max_new_tokens: int,
        *,
        batch_bytes: int = BATCH_BYTES,
        stop: Stop | None = None,
    ) -> None:
        self.adapted = adapted
        self.examples = examples
        self.sampling = SamplingConfig(max_new_tokens)
        self.stop = stop
        self.longest_right = 0  # tokens, of all mixes judged so far
        self.prompts = [adapted.base.encode(example.messages) for example in examples]
        self.answers = [self._answer(example) for example in examples]
        parts = chunks(range(len(examples)), PACKED)
        longest = max(len(prompt) + len(answer) for prompt, answer in zip(self.prompts, self.answers, strict=True))
        self.folded_at_once = Room(max(1, min(FOLDED_ROWS, FOLDED_TOKENS // longest)), "questions")
        self.parts = [(part, Room(max(1, batch_bytes // self._bytes_per_mix(part)), "mixes")) for part in parts]
        for example, prompt, answer in zip(examples, self.prompts, self.answers, strict=True):
            if len(prompt) + max(len(answer), max_new_tokens) > adapted.base.context:
                raise UsageError(
                    f"line {example.line}: the question has {len(prompt)} tokens and leaves no room for an answer",
                    hint=f"{adapted.base.identity.name} reads at most {adapted.base.context} tokens",
                )

    def _answer(self, example: Shot) -> list[int]:
        """Return the right answer's tokens as the model would write them: after a space where there is no template."""
        tokenizer = self.adapted.base.tokenizer
        text = example.answer if tokenizer.chat_template is not None else f" {example.answer}"
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.inference_mode()
    def judge(self, z: torch.Tensor) -> list[Judged]:
        """Return how each z of (C, P) answers the questions; the first call gives every answer the full length.

        A z under which the model's numbers overflow has nothing right and LOST as its likelihood.
        """
        return self._judged(z, self.limit)

    def _judged(self, z: torch.Tensor, limit: int) -> list[Judged]:
        try:
            answers = [self._alone(row, limit) for row in z] if self._folding_pays(z) else self._together(z, limit)
        except DivergedError:
            if len(z) == 1:
                return [Judged((False,) * len(self.examples), LOST)]
            return [judged for row in z for judged in self._judged(row.unsqueeze(0), limit)]
        return [
            Judged(tuple(self._is_right(i, done) for i, done in enumerate(completions)), total / self.answer_tokens)
            for completions, total in answers
        ]

    def _folding_pays(self, z: torch.Tensor) -> bool:
        """Tell whether forming W' for every z of (C, P) costs less than it saves."""
        shared = common_prefix(self.prompts)
        read = shared + sum(len(prompt) - shared for prompt in self.prompts) + self.answer_tokens
        written = self.answer_tokens  # about as many as in the right answers
        changed = next((vectors for row in z if (vectors := self._vectors(row)) is not None), None)
        return changed is not None and self.adapted.folding_pays(changed, read + written)

    def _vectors(self, z: torch.Tensor) -> ZVectors | None:
        """Return what z (P,) changes, None where it is the base."""
        changed = {name: vector for name, vector in unflatten(z, self.adapted.ranks).items() if (vector != 1).any()}
        return ZVectors(changed) if changed else None

    def _alone(self, z: torch.Tensor, limit: int) -> tuple[list[Completion], float]:
        """Return the answers of one mix, folded, and the summed log-likelihood of the right answers."""
        with self.adapted.answering_as(self._vectors(z)):
            parts = self.folded_at_once.over(range(len(self.prompts)), lambda places: self._answers(1, places, limit))
        return [done for completions, _ in parts for done in completions], sum(float(logp) for _, logp in parts)

    def _together(self, z: torch.Tensor, limit: int) -> list[tuple[list[Completion], float]]:
        """Return the same for each z of (C, P), all rows in one batch."""
        said: list[list[Completion]] = [[] for _ in z]
        total = torch.zeros(len(z), dtype=torch.float64)
        for places, room in self.parts:

            def answered(mixes: Sequence[int], places: Sequence[int] = places) -> tuple[list[Completion], torch.Tensor]:
                part = z[mixes[0] : mixes[-1] + 1]
                with self.adapted.per_row(part):
                    return self._answers(len(part), places, limit)

            parts = room.over(range(len(z)), answered)
            total += torch.cat([likelihood for _, likelihood in parts])
            completions = [completion for completed, _ in parts for completion in completed]  # mix by mix
            for mine, row in zip(said, chunks(completions, len(places)), strict=True):
                mine += row
        return list(zip(said, total.tolist(), strict=True))

    @property
    def answer_tokens(self) -> int:
        """Return how many tokens the right answers have."""
        return sum(map(len, self.answers))

    @property
    def limit(self) -> int:
        """Return how many tokens an answer may have by what is known of right ones."""
        most = self.sampling.max_new_tokens
        return min(most, 2 * self.longest_right + SPARE) if self.longest_right else most

    def _is_right(self, place: int, completion: Completion) -> bool:
        """Judge an answer; as in training, one that did not end is wrong."""
        text = self.adapted.base.decode(completion.ids)
        right = completion.ended and self.examples[place].is_right(text)
        if right:
            self.longest_right = max(self.longest_right, len(completion.ids))
        return right

    def _bytes_per_mix(self, places: Sequence[int]) -> int:
        """Return about how much memory one mix takes with some of the questions."""
        model = self.adapted.model
        config: Any = model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        itemsize = model.get_input_embeddings().weight.element_size()
        per_token = 2 * config.num_hidden_layers * heads * width * itemsize
        tokens = sum(len(self.prompts[i]) + self.sampling.max_new_tokens for i in places)
        predicted = sum(len(self.answers[i]) for i in places) + len(places)
        z = 4 * sum(self.adapted.ranks.values()) * len(places)
        return int(2 * tokens * per_token + 2 * predicted * config.vocab_size * itemsize + z)

    def _answers(self, C: int, places: Sequence[int], limit: int) -> tuple[list[Completion], torch.Tensor]:
        """Return what C mixes in use say, mix by mix, and the summed log-likelihood (C,) of the right answers."""
        packs = attention_window(self.adapted.model.config) is None
        return self._packed(C, places, limit) if packs else self._one_by_one(C, places, limit)

    def _packed(self, C: int, places: Sequence[int], limit: int) -> tuple[list[Completion], torch.Tensor]:
        """Return the same, a mix reading all questions in one row."""
        adapted, N = self.adapted, len(places)
        prompts, answers = [self.prompts[i] for i in places], [self.answers[i] for i in places]
        packed = pack(prompts, [[answer] for answer in answers], adapted.base.device)
        dtype = adapted.model.get_input_embeddings().weight.dtype
        bias = torch.zeros_like(packed.attention, dtype=dtype).masked_fill(~packed.attention, torch.finfo(dtype).min)
        cache = growing_cache(adapted.model.config)
        logits = adapted.model(
            input_ids=packed.ids.expand(C, -1),
            attention_mask=bias.expand(C, -1, -1, -1),
            position_ids=packed.positions.expand(C, -1),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=packed.predicted,
        ).logits  # (C, K, V)
        total = torch.zeros(C, dtype=torch.float64)
        for source, tokens, answer in zip(packed.source[:, 0], packed.tokens[:, 0], answers, strict=True):
            n = len(answer)
            found = token_logp(logits[:, source[:n]], tokens[:n].expand(C, -1))  # (C, n)
            total += found.sum(dim=1).double().cpu()
        first = logits[:, packed.source[:, 0, 0]].flatten(0, 1)  # (C N, V)
        del logits
        where, mask = _places_in(prompts, answers, adapted.base.device)
        rows = _dealt(cache, where, adapted.model.config)
        adapted.select_rows(torch.arange(C).repeat_interleave(N))
        most = [limit] * (C * N)
        return continued(adapted, first, rows, mask.repeat(C, 1), self.sampling, most, stop=self.stop), total

    def _one_by_one(self, C: int, places: Sequence[int], limit: int) -> tuple[list[Completion], torch.Tensor]:
        """Return the same, one question at a time: all mixes read the same tokens, without padding."""
        adapted = self.adapted
        total, answered = torch.zeros(C, dtype=torch.float64), []
        for i in places:
            prompt, answer = self.prompts[i], self.answers[i]
            ids = torch.tensor([[*prompt, *answer]], device=adapted.base.device).expand(C, -1)
            logits = adapted.model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[:, :-1]
            total += token_logp(logits, ids[:, len(prompt) :]).sum(dim=1).double().cpu()
            answered.append(generate(adapted, [prompt] * C, self.sampling, limits=[limit] * C, stop=self.stop))
        return [completions[mix] for mix in range(C) for completions in answered], total


def _places_in(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where each prompt's tokens are in the packed row, and a mask (N, T), padded on the left."""
    shared = common_prefix(prompts)
    begin, places = shared, []
    for prompt, answer in zip(prompts, answers, strict=True):
        own = len(prompt) - shared
        places.append([*range(shared), *range(begin, begin + own)])
        begin += own + len(answer)
    return left_padded(places, device)


def _dealt(cache: Any, where: torch.Tensor, config: Any) -> Any:
    """Return a cache of C N rows of T tokens from one of C packed rows; `where` (N, T) in the packed row."""
    rows = growing_cache(config)
    N, T = where.shape
    for index, layer in enumerate(cache.layers):
        places = where.flatten().to(layer.keys.device)
        dealt = (
            states[:, :, places].unflatten(2, (N, T)).transpose(1, 2).flatten(0, 1)  # (C N, heads, T, d)
            for states in (layer.keys, layer.values)
        )
        rows.update(*dealt, index)
    return rows
