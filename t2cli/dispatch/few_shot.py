"""Pass 1 by examples: search the mix of experts that answers a few examples best, once per task.

Source: Transformer-Squared (arXiv 2501.06252), section 3.2, "few-shot adaptation"; math.md 4 and 6.

Deviations from the paper and its released code:
1. Half of the examples, at most 16, choose the mix and the others say how good it is; the released code takes its
   shots from the test set and reports the best score of the search itself. A search asks each of its examples a few
   hundred times, and those held out nine times: it is these that many examples are worth having for.
2. The base model is a member of the mix: z' = 1 + sum_k alpha_k (z_k - 1), and the alphas are free.
3. The mix has to beat the base, each expert alone and the uniform mix on the examples held out. Where it does not, the
   best of these is used instead, unless the caller insists. These were not searched, so that all examples say which
   of them is the best. The base is left, for the mix as for them, only where it is led by more than a standard error:
   of 64 examples a lead of a few is chance, and has cost 4 points on 1,000 questions.
4. A population answers in one batch (population.py); ties are broken by the mean log-likelihood of the right answers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from t2cli.config import CEMConfig
from t2cli.dispatch.examples import Shot, divided
from t2cli.dispatch.mixer import Mixer
from t2cli.dispatch.population import Exam, Judged
from t2cli.errors import T2Error
from t2cli.models.adapted import AdaptedModel
from t2cli.models.generate import Stop
from t2cli.svf.cem import Found, Score, search
from t2cli.svf.zvector import ZVectors

BASE, UNIFORM = "base", "uniform mix"

OnIteration = Callable[[int, Score], None]  # generations done, and the best score so far: accuracy, log-likelihood


@dataclass(frozen=True)
class Mix:
    """Numbers of a mix (D,) and how it answered the examples that were held out."""

    alphas: torch.Tensor
    held_out: Judged


@dataclass(frozen=True)
class Baseline(Mix):
    """A mix that nobody searched, and how it answered all the examples."""

    overall: Judged


@dataclass(frozen=True)
class FewShotResult:
    """What a search found: the mix, what it has to beat, and how it does without each expert, on held-out examples.

    `references` are the experts in the order of the alphas; `baselines` are BASE, UNIFORM and each expert alone, under
    its reference; `without` is by reference.
    """

    references: tuple[str, ...]
    mixer: Mixer
    found: Found
    mix: Mix
    baselines: Mapping[str, Baseline]
    without: Mapping[str, Judged]
    examples: tuple[int, int]  # searched with, held out
    seconds: float

    @property
    def best_baseline(self) -> str:
        """Return the name of the baseline that answered all examples best of those that clearly lead BASE, or BASE."""
        base = self.baselines[BASE].overall
        leading = [name for name, each in self.baselines.items() if clearly_leads(each.overall, base)]
        return max(leading, key=lambda name: self.baselines[name].overall.score, default=BASE)

    @property
    def rival(self) -> str:
        """Return the name of the baseline that answered the held-out examples best; of equal ones the first."""
        return max(self.baselines, key=lambda name: self.baselines[name].held_out.score)

    @property
    def is_ahead(self) -> bool:
        """Tell whether the mix answered the held-out examples better than every baseline, by however little."""
        return self.mix.held_out.score > self.baselines[self.rival].held_out.score

    @property
    def beats_baselines(self) -> bool:
        """Tell whether the mix answered the held-out examples better than every baseline, and clearly so than BASE."""
        return self.is_ahead and clearly_leads(self.mix.held_out, self.baselines[BASE].held_out)

    @property
    def never_right(self) -> bool:
        """Tell whether nothing answered any example right, neither in the search nor of those held out."""
        judged = [self.mix, *self.baselines.values()]
        return self.found.score[0] == 0 and not any(any(each.held_out.right) for each in judged)

    def chosen(self, *, force: bool = False) -> tuple[str, Mix]:
        """Return the mix, named "", if it beats the baselines or if forced; else the best baseline and its name.

        Raises T2Error where nothing was ever right: then any choice would be chance.
        """
        if force or (self.beats_baselines and not self.never_right):
            return "", self.mix
        if self.never_right:
            raise T2Error(
                f"none of {self.found.evaluations} mixes answered any of the {sum(self.examples)} examples right",
                hint="check the answers and how they are judged (--reward), or use experts for such questions",
            )
        return self.best_baseline, self.baselines[self.best_baseline]

    def weights(self, mix: Mix) -> dict[str, float]:
        """Return alpha by reference, the mean over the matrices where each has its own; experts with 0 are left out."""
        means = zip(self.references, self.mixer.per_expert(mix.alphas), strict=True)
        return {reference: alpha for reference, alpha in means if alpha}

    @property
    def spread(self) -> dict[str, float]:
        """Return the standard deviation of the search's last Gaussian by reference."""
        return dict(zip(self.references, self.mixer.per_expert(self.found.std), strict=True))


def search_mix(
    adapted: AdaptedModel,
    experts: Mapping[str, ZVectors],
    examples: Sequence[Shot],
    config: CEMConfig,
    *,
    on_iteration: OnIteration | None = None,
    stop: Stop | None = None,
) -> FewShotResult:
    """Return the mix of `experts` (reference -> z) that answers a part of the examples best, judged on the others.

    `stop` tells of an answer's token ids whether it is complete, where that is not the end token alone.
    Raises UsageError for an example that is longer than the base can read.
    """
    started = time.monotonic()
    mixer = Mixer(adapted, list(experts.values()), per_layer=config.per_layer)
    searched, held_out = divided(examples, config.seed)
    exam = Exam(adapted, searched, config.max_new_tokens, stop=stop)
    final = Exam(adapted, held_out, config.max_new_tokens, stop=stop)
    adapted.prepare()
    starts = _starts(mixer, list(experts))
    score = _Scores(exam, mixer)
    score(torch.stack(list(starts.values())))  # at first: their right answers say how long those of the others may get
    *_, last = starts.values()  # one expert alone is what it is mixed of
    found = search(score, starts.get(UNIFORM, last), config, also=list(starts.values()), on_iteration=on_iteration)
    without = {reference: _left_out(mixer, found.best, k) for k, reference in enumerate(experts)}
    mix, *judged = final.judge(mixer.z(torch.stack([found.best, *starts.values(), *without.values()])))
    tokens = exam.answer_tokens, final.answer_tokens
    baselines = {
        name: Baseline(vector, later, _joint((score.judged(vector), later), tokens))
        for (name, vector), later in zip(starts.items(), judged, strict=False)
    }
    return FewShotResult(
        references=tuple(experts),
        mixer=mixer,
        found=found,
        mix=Mix(found.best, mix),
        baselines=baselines,
        without=dict(zip(without, judged[len(starts) :], strict=True)),
        examples=(len(searched), len(held_out)),
        seconds=time.monotonic() - started,
    )


def clearly_leads(one: Judged, other: Judged) -> bool:
    """Tell whether `one` has more right than `other` by more than a standard error of the paired difference."""
    pairs = list(zip(one.right, other.right, strict=True))
    gained, lost = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    return gained - lost > math.sqrt(gained + lost)


class _Scores:
    """How mixes (D,) answer the examples of the search; none is asked twice."""

    def __init__(self, exam: Exam, mixer: Mixer) -> None:
        self._exam = exam
        self._mixer = mixer
        self._judged: dict[tuple[float, ...], Judged] = {}

    def __call__(self, candidates: torch.Tensor) -> list[Score]:
        """Return the scores of mixes (C, D)."""
        keys = [tuple(candidate) for candidate in candidates.tolist()]
        new = [place for place, key in enumerate(keys) if key not in self._judged]
        if new:
            judged = self._exam.judge(self._mixer.z(candidates[new]))
            self._judged.update(zip([keys[place] for place in new], judged, strict=True))
        return [self._judged[key].score for key in keys]

    def judged(self, candidate: torch.Tensor) -> Judged:
        """Return how a mix (D,) that has a score answered."""
        return self._judged[tuple(candidate.tolist())]


def _starts(mixer: Mixer, references: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the mixes (D,) that a search begins with and has to beat: base, uniform, each expert alone.

    One expert alone is its uniform mix, and has its own name.
    """
    zero = torch.zeros(mixer.experts, mixer.matrices, dtype=torch.float64)
    starts = {BASE: zero.flatten()}
    if mixer.experts > 1:
        starts[UNIFORM] = (zero + 1 / mixer.experts).flatten()
    for k, reference in enumerate(references):
        alone = zero.clone()
        alone[k] = 1
        starts[reference] = alone.flatten()
    return starts


def _left_out(mixer: Mixer, alphas: torch.Tensor, k: int) -> torch.Tensor:
    """Return a mix (D,) without its expert `k`."""
    parts = alphas.clone().view(mixer.experts, mixer.matrices)
    parts[k] = 0
    return parts.flatten()


def _joint(parts: tuple[Judged, Judged], tokens: tuple[int, int]) -> Judged:
    """Return how both parts of the examples were answered, whose right answers have so many tokens."""
    logp = sum(part.logp * count for part, count in zip(parts, tokens, strict=True)) / sum(tokens)
    return Judged(parts[0].right + parts[1].right, logp)
