"""A search on examples finds the expert that answers them, scores it on others, and says when nothing is gained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from t2cli.config import CEMConfig, SamplingConfig
from t2cli.dispatch.examples import FewShot, divided
from t2cli.dispatch.few_shot import BASE, UNIFORM, Baseline, FewShotResult, Mix, clearly_leads, search_mix
from t2cli.dispatch.mixer import Mixer
from t2cli.dispatch.population import Exam, Judged
from t2cli.dispatch.two_pass import TwoPass
from t2cli.errors import NotFoundError, T2Error
from t2cli.models.adapted import AdaptedModel
from t2cli.models.generate import generate
from t2cli.registry.local import ExpertEntry
from t2cli.registry.vectors import read_z
from t2cli.svf.cem import Found
from t2cli.svf.zvector import ZVectors, identity, mix

QUESTIONS = ["what is the sum", "who is it", "two numbers", "is it a sum", "what is it", "a number", "the two", "user"]
CONFIG = CEMConfig(iterations=3, population=8, max_new_tokens=6)


def answered_by(adapted: AdaptedModel, z: ZVectors) -> list[FewShot]:
    """Return questions whose right answer is what the expert `z` says; answers end soon."""
    object.__setattr__(adapted.base, "eos", adapted.base.eos | set(range(0, 300, 3)))
    examples = []
    with adapted.use_z(z):
        for line, question in enumerate(QUESTIONS, start=1):
            messages = [{"role": "user", "content": question}]
            done = generate(adapted, [adapted.base.encode(messages)], SamplingConfig(CONFIG.max_new_tokens))[0]
            said = adapted.base.decode(list(done.ids)).strip()
            if done.ended and said:
                examples.append(FewShot(messages, said, "exact", line))
    assert len(examples) >= 4
    return examples


@pytest.fixture
def experts(adapted: AdaptedModel, random_z: Callable[..., ZVectors]) -> dict[str, ZVectors]:
    return {f"e{seed}@1": random_z(adapted.ranks, seed=seed, sigma=0.6) for seed in (1, 2)}


def test_it_finds_the_expert_that_answers_the_examples(adapted: AdaptedModel, experts: dict[str, ZVectors]) -> None:
    examples = answered_by(adapted, experts["e2@1"])
    told: list[int] = []
    result = search_mix(adapted, experts, examples, CONFIG, on_iteration=lambda done, _score: told.append(done))
    assert result.found.score[0] == 1.0
    assert set(result.baselines) == {BASE, UNIFORM, "e1@1", "e2@1"}
    assert result.baselines["e2@1"].held_out.accuracy > result.baselines[BASE].held_out.accuracy
    assert result.best_baseline == "e2@1"
    assert told == list(range(1, result.found.iterations + 1))
    assert set(result.spread) == set(result.without) == set(experts)
    assert result.without["e2@1"].accuracy < 1
    again = search_mix(adapted, experts, examples, CONFIG)
    assert torch.equal(again.mix.alphas, result.mix.alphas)
    assert again.mix.held_out == result.mix.held_out


def test_the_score_is_of_examples_that_chose_nothing(adapted: AdaptedModel, experts: dict[str, ZVectors]) -> None:
    examples = answered_by(adapted, experts["e2@1"])
    searched, held_out = divided(examples, CONFIG.seed)
    result = search_mix(adapted, experts, examples, CONFIG)
    assert result.examples == (len(searched), len(held_out))
    spoiled = [replace(e, answer="nothing of the kind") if e in held_out else e for e in examples]
    other = search_mix(adapted, experts, spoiled, CONFIG)
    assert torch.equal(other.mix.alphas, result.mix.alphas)
    assert other.mix.held_out.accuracy == 0
    z = Mixer(adapted, list(experts.values())).z(result.mix.alphas.unsqueeze(0))
    assert Exam(adapted, held_out, CONFIG.max_new_tokens).judge(z)[0].right == result.mix.held_out.right


def test_per_layer_starts_with_the_same_mixes(adapted: AdaptedModel, experts: dict[str, ZVectors]) -> None:
    examples = answered_by(adapted, experts["e2@1"])
    result = search_mix(adapted, experts, examples, replace(CONFIG, per_layer=True, iterations=1))
    assert result.found.score[0] == 1.0
    assert result.mix.alphas.shape == (2 * len(adapted.ranks),)
    assert result.weights(result.baselines[UNIFORM]) == pytest.approx({"e1@1": 0.5, "e2@1": 0.5})


def test_one_expert_is_weighed_against_the_base(adapted: AdaptedModel, experts: dict[str, ZVectors]) -> None:
    examples = answered_by(adapted, experts["e1@1"])
    result = search_mix(adapted, {"e1@1": experts["e1@1"]}, examples, CONFIG)
    assert set(result.baselines) == {BASE, "e1@1"}
    assert result.without["e1@1"] == result.baselines[BASE].held_out


def result_of(adapted: AdaptedModel, mix: Judged, base: Judged, single: Judged, found: float = 0.5) -> FewShotResult:
    """Return a result with the given scores on held-out examples."""
    mixer = Mixer(adapted, [identity(adapted.ranks)] * 2)
    alphas = torch.tensor([0.3, 0.9])
    search = Found(alphas, (found, -1.0), alphas, alphas, iterations=2, evaluations=9)
    baselines = {BASE: Baseline(alphas * 0, base, base), "b@1": Baseline(torch.tensor([0.0, 1.0]), single, single)}
    return FewShotResult(("a@1", "b@1"), mixer, search, Mix(alphas, mix), baselines, {}, (2, 2), 1.0)


HALF, WHOLE, NONE = Judged((True, False), -1.0), Judged((True, True), -2.0), Judged((False, False), -0.5)


@pytest.mark.parametrize(
    ("scores", "name"),
    [
        ((WHOLE, NONE, HALF), ""),
        ((WHOLE, HALF, NONE), BASE),  # one more of two is chance
        ((HALF, NONE, WHOLE), "b@1"),
        ((HALF, WHOLE, NONE), BASE),
        ((HALF, HALF, HALF), BASE),  # no better is not better
        ((HALF, Judged((False, True), -1.5), NONE), BASE),  # nor is a log-likelihood alone
        ((WHOLE, NONE, Judged((True, True), -3.0)), ""),  # of equal ones, both clearly better than the base, it decides
    ],
)
def test_what_is_used(adapted: AdaptedModel, scores: Sequence[Judged], name: str) -> None:
    result = result_of(adapted, *scores)
    assert result.chosen()[0] == name
    assert result.beats_baselines == (name == "")
    assert result.chosen(force=True) == ("", result.mix)
    assert result.weights(result.mix) == pytest.approx({"a@1": 0.3, "b@1": 0.9})
    assert result.weights(result.baselines["b@1"]) == {"b@1": 1.0}


def test_what_needs_no_search_is_chosen_on_all_examples(adapted: AdaptedModel) -> None:
    result = result_of(adapted, HALF, WHOLE, HALF)
    base, single = result.baselines[BASE], result.baselines["b@1"]
    overall = {
        BASE: replace(base, overall=Judged((True, True, False, False, False), -1.0)),
        "b@1": replace(single, overall=Judged((True, True, True, True, False), -1.0)),
    }
    chosen = replace(result, baselines=overall)
    assert (chosen.rival, chosen.best_baseline, chosen.chosen()[0]) == (BASE, "b@1", "b@1")
    assert not chosen.beats_baselines


@pytest.mark.parametrize(
    ("gained", "lost", "leads"),
    [(2, 0, True), (1, 0, False), (0, 0, False), (0, 3, False), (6, 3, False), (7, 3, True), (12, 9, False)],
)
def test_a_lead_that_chance_gives_often_is_none(adapted: AdaptedModel, gained: int, lost: int, leads: bool) -> None:
    one = Judged((True,) * gained + (False,) * lost + (True, False), -0.1)
    other = Judged((False,) * gained + (True,) * lost + (True, False), -0.2)
    assert clearly_leads(one, other) is leads
    result = result_of(adapted, NONE, HALF, HALF)
    overall = zip(result.baselines.items(), (other, one), strict=True)
    decided = replace(result, baselines={name: replace(each, overall=judged) for (name, each), judged in overall})
    assert decided.best_baseline == ("b@1" if leads else BASE)


def test_baselines_have_the_scores_of_all_examples(adapted: AdaptedModel, experts: dict[str, ZVectors]) -> None:
    examples = answered_by(adapted, experts["e2@1"])
    result = search_mix(adapted, experts, examples, replace(CONFIG, iterations=1))
    searched, held_out = divided(examples, CONFIG.seed)
    exam = Exam(adapted, [*searched, *held_out], CONFIG.max_new_tokens)
    judged = exam.judge(result.mixer.z(_stacked(result)))
    for baseline, each in zip(result.baselines.values(), judged, strict=True):
        assert baseline.overall.right == each.right
        assert baseline.overall.logp == pytest.approx(each.logp, rel=1e-4)


def test_the_baselines_answer_first_and_no_mix_twice(
    adapted: AdaptedModel, experts: dict[str, ZVectors], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, tuple[tuple[float, ...], ...]]] = []
    judge = Exam.judge

    def noted(exam: Exam, z: torch.Tensor) -> list[Judged]:
        asked.append((exam.limit, tuple(map(tuple, z[:, :50].tolist()))))
        return judge(exam, z)

    monkeypatch.setattr(Exam, "judge", noted)
    examples = answered_by(adapted, experts["e2@1"])
    result = search_mix(adapted, experts, examples, replace(CONFIG, max_new_tokens=40))
    *generations, _ = asked  # the last are the examples held out
    assert generations[0] == (40, tuple(map(tuple, result.mixer.z(_stacked(result))[:, :50].tolist())))
    assert all(limit < 40 for limit, _ in generations[1:])
    mixes = [mix for _, rows in generations for mix in rows]
    assert len(mixes) == len(set(mixes)) == result.found.evaluations


def _stacked(result: FewShotResult) -> torch.Tensor:
    return torch.stack([baseline.alphas for baseline in result.baselines.values()])


def test_nothing_right_anywhere_is_an_error(adapted: AdaptedModel) -> None:
    with pytest.raises(T2Error, match="none of 9 mixes answered any of the 4 examples right") as caught:
        result_of(adapted, NONE, NONE, NONE, found=0.0).chosen()
    assert caught.value.hint
    assert result_of(adapted, NONE, NONE, NONE, found=0.5).chosen()[0] == BASE


def test_two_passes_use_the_mix(
    two_pass: TwoPass, adapted: AdaptedModel, put: Callable[..., ExpertEntry], tmp_path: Path
) -> None:
    put("story", seed=1)
    entry = put("math", seed=2)
    examples = answered_by(adapted, read_z(entry))
    strategy, result = two_pass.few_shot(examples, CONFIG)
    decision = strategy.decide(examples[0].messages)
    assert (decision.strategy, decision.category) == ("few-shot", None)
    assert dict(decision.weights) == result.weights(result.chosen()[1])
    sampling = SamplingConfig(CONFIG.max_new_tokens)
    answer = two_pass.answer(examples[0].messages, decision, sampling)
    members = [(alpha, read_z(two_pass.resolver.find(ref))) for ref, alpha in decision.weights.items()]
    with adapted.use_z(mix(members)):
        done = generate(adapted, [adapted.base.encode(examples[0].messages)], sampling)[0]
    assert answer.text == adapted.base.decode(list(done.ids[:-1] if done.ended else done.ids))


def test_two_passes_without_experts_say_so(two_pass: TwoPass) -> None:
    examples = [FewShot([{"role": "user", "content": q}], "x", "exact", 1) for q in QUESTIONS]
    with pytest.raises(NotFoundError, match="no expert"):
        two_pass.few_shot(examples, CONFIG)
