"""Many mixes in one batch answer, and are scored, as each of them does alone with folded weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from t2cli.config import SamplingConfig
from t2cli.dispatch.examples import FewShot
from t2cli.dispatch.population import Exam, Judged, Mixer
from t2cli.models.adapted import AdaptedModel
from t2cli.models.generate import generate
from t2cli.svf.zvector import ZVectors

TOKENS = 8
QUESTIONS = ["what is the sum of two numbers", "who?", "numbers", "is the sum of the two numbers a number " * 3, "1 2"]


def asked(question: str, answer: str, reward: str = "exact") -> FewShot:
    return FewShot([{"role": "user", "content": question}], answer, reward, 1)


def alone(adapted: AdaptedModel, z: ZVectors, examples: Sequence[FewShot]) -> Judged:
    """Return how one folded mix answers: one question after the other, without batch, cache or packing."""
    right, logp, tokens = [], 0.0, 0
    with adapted.use_z(z):
        for example in examples:
            prompt = adapted.base.encode(example.messages)
            answer = list(adapted.base.tokenizer(example.answer, add_special_tokens=False)["input_ids"])
            done = generate(adapted, [prompt], SamplingConfig(TOKENS))[0]
            right.append(done.ended and example.is_right(adapted.base.decode(list(done.ids))))
            with torch.no_grad():
                logits = adapted.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
            logp += sum(float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(answer))
            tokens += len(answer)
    return Judged(tuple(right), logp / tokens)


def right_for(adapted: AdaptedModel, z: ZVectors) -> list[FewShot]:
    """Return questions of which about half are right under `z`: it was asked itself. Any end counts as one."""
    examples = []
    with adapted.use_z(z):
        for number, question in enumerate(QUESTIONS):
            prompt = adapted.base.encode([{"role": "user", "content": question}])
            said = adapted.base.decode(list(generate(adapted, [prompt], SamplingConfig(TOKENS))[0].ids)).strip()
            examples.append(asked(question, "something else" if number % 2 or not said else said))
    return examples


@pytest.mark.parametrize("variant", ["llama", "qwen3", "mistral", "gemma2", "gpt2", "gpt-neox", "falcon", "mixtral"])
def test_a_population_scores_as_each_mix_alone(
    variant: str, adapt: Callable[..., AdaptedModel], random_z: Callable[..., ZVectors]
) -> None:
    adapted = adapt(variant, double=True)
    object.__setattr__(adapted.base, "eos", adapted.base.eos | set(range(0, 300, 3)))  # answers end soon, all of them
    experts = [random_z(adapted.ranks, seed=seed) for seed in (1, 2)]
    examples = right_for(adapted, experts[0])
    mixer = Mixer(adapted, experts)
    alphas = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.5], [-0.3, 1.2], [0.0, 1.0]], dtype=torch.float64)
    found = Exam(adapted, examples, TOKENS).judge(mixer.z(alphas))
    wanted = [alone(adapted, mixer.vectors(row), examples) for row in alphas]
    assert [judged.right for judged in found] == [judged.right for judged in wanted]
    assert [judged.logp for judged in found] == pytest.approx([judged.logp for judged in wanted], rel=1e-6)
    assert any(found[1].right)
    assert not all(found[1].right)
    assert adapted.rows is None  # the base again
