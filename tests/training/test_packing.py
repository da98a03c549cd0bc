"""A packed tree gives the log-probabilities, and the gradients, of separate rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from odd_task import SMALL, OddTask

from t2cli.errors import T2Error, UsageError
from t2cli.models.adapted import AdaptedModel
from t2cli.models.generate import Completion
from t2cli.svf.zvector import ZVectors
from t2cli.training.packing import pack, rollout_logp
from t2cli.training.questions import questions_of
from t2cli.training.rollouts import Rollouts
from t2cli.training.trainer import Trainer

Adapt = Callable[..., AdaptedModel]
MakeZ = Callable[..., ZVectors]

CPU = torch.device("cpu")
SYSTEM = [40, 41, 42, 43, 44]
ROLLOUTS = [[[5, 6, 7], [8], [5, 6, 7, 9, 10]], [[11, 12], [13, 14, 15, 16], [11]], [[1], [2], [1, 1, 1]]]
CASES = {
    "common beginning": ([[*SYSTEM, 50], [*SYSTEM, 51, 52, 53], [*SYSTEM, 54]], ROLLOUTS),
    "nothing in common": ([[60, 61, 62], [63], [64, 65]], ROLLOUTS),
    "one prompt": ([[60, 61, 62]], ROLLOUTS[:1]),
    "one prompt of one token": ([[60]], ROLLOUTS[:1]),
    "equal prompts": ([[60, 61], [60, 61], [60, 61]], ROLLOUTS),
    "one begins the other": ([[60, 61], [60, 61, 62, 63]], ROLLOUTS[:2]),
    "one rollout of one token": ([[60, 61], [62]], [[[5]], [[6]]]),
}
each_case = pytest.mark.parametrize("case", CASES)


def separate(adapted: AdaptedModel, prompts: list[list[int]], groups: list[list[list[int]]]) -> torch.Tensor:
    """Return the log-probabilities (P, G, T) from one row per rollout."""
    span = max(len(rollout) for group in groups for rollout in group)
    rows = []
    for prompt, group in zip(prompts, groups, strict=True):
        for rollout in group:
            logits = adapted.model(input_ids=torch.tensor([prompt + rollout])).logits[0].log_softmax(-1)
            predicted = logits[len(prompt) - 1 : -1]
            logp = predicted[torch.arange(len(rollout)), torch.tensor(rollout)]
            rows.append(torch.nn.functional.pad(logp, (0, span - len(rollout))))
    return torch.stack(rows).view(len(prompts), len(groups[0]), span)


@each_case
@pytest.mark.parametrize("variant", ["llama-grouped", "qwen2", "qwen3"])
def test_logp_is_that_of_separate_rows(case: str, variant: str, adapt: Adapt, random_z: MakeZ) -> None:
    adapted = adapt(variant)
    prompts, groups = CASES[case]
    packed = pack(prompts, groups, CPU)
    for z in (ZVectors({}), random_z(adapted.ranks)):
        with torch.no_grad(), adapted.use_z(z):
            found, wanted = rollout_logp(adapted.model, packed), separate(adapted, prompts, groups)
        assert found.shape == wanted.shape
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
        assert torch.equal(found != 0, packed.mask.bool())


@pytest.mark.parametrize(
    "variant",
    ["mistral", "gemma2", "gemma3", "phi3", "gpt2", "gpt-neox", "olmo2", "falcon", "mixtral", "qwen3-moe", "gpt-oss"],
)
def test_every_architecture_reads_the_tree(variant: str, adapt: Adapt, random_z: MakeZ) -> None:
    adapted = adapt(variant)
    prompts, groups = CASES["common beginning"]
    with torch.no_grad(), adapted.use_z(random_z(adapted.ranks)):
        found = rollout_logp(adapted.model, pack(prompts, groups, CPU))
        assert torch.allclose(found, separate(adapted, prompts, groups), rtol=1e-4, atol=1e-4)


@each_case
def test_gradient_is_that_of_separate_rows(case: str, adapt: Adapt, random_z: MakeZ) -> None:
    adapted = adapt("llama-grouped", double=True)
    prompts, groups = CASES[case]
    packed = pack(prompts, groups, CPU)
    weights = torch.randn(packed.mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = {name: vector.double().requires_grad_() for name, vector in random_z(adapted.ranks).items()}
    with adapted.with_tensors(z):
        ours = torch.autograd.grad((weights * rollout_logp(adapted.model, packed)).sum(), list(z.values()))
        theirs = torch.autograd.grad((weights * separate(adapted, prompts, groups)).sum(), list(z.values()))
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_shared_tokens_are_in_the_row_once() -> None:
    prompts, groups = CASES["common beginning"]
    packed = pack(prompts, groups, CPU)
    answers = [token for group in groups for rollout in group for token in rollout]
    assert packed.ids.shape == (1, len(SYSTEM) + (1 + 3 + 1) + len(answers))
    assert packed.ids[0, : len(SYSTEM)].tolist() == SYSTEM


def test_row_by_hand() -> None:
    packed = pack([[1, 2], [1, 3]], [[[7, 8], [9]], [[4], [5]]], CPU)
    assert packed.ids.tolist() == [[1, 2, 7, 8, 9, 3, 4, 5]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2, 1, 2, 2]]
    assert packed.predicted.tolist() == [1, 2, 5]
    assert packed.source.tolist() == [[[0, 1], [0, 0]], [[2, 0], [2, 0]]]
    assert packed.tokens.tolist() == [[[7, 8], [9, 0]], [[4, 0], [5, 0]]]
    assert packed.mask.tolist() == [[[1, 1], [1, 0]], [[1, 0], [1, 0]]]
    seen = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 5], [0, 5, 6], [0, 5, 7]]
    assert [row.nonzero().flatten().tolist() for row in packed.attention[0, 0]] == seen


def test_rollouts_do_not_see_each_other(adapt: Adapt) -> None:
    adapted = adapt()
    prompts = [[60, 61, 62]]
    with torch.no_grad():
        one = rollout_logp(adapted.model, pack(prompts, [[[5, 6, 7], [8, 9, 10]]], CPU))
        other = rollout_logp(adapted.model, pack(prompts, [[[5, 6, 7], [200, 201, 202]]], CPU))
    assert torch.equal(one[0, 0], other[0, 0])
    assert not torch.allclose(one[0, 1], other[0, 1])


def test_what_goes_beyond_a_sliding_window_teaches_nothing_and_ends_no_run(adapt: Adapt) -> None:
    adapted = adapt("mistral")  # a window of 12 tokens
    trainer = Trainer(adapted, replace(SMALL, max_gradient_norm=1e9))
    prompts, answers = [[60, 61, 62], [60, 61, 62, 63, 64, 65, 66, 67, 68, 69]], ([5, 6], [7], [8, 9, 10], [11])
    groups = [[Completion(tuple(ids), True) for ids in answers] for _ in prompts]
    rewards = torch.tensor([[1.0, -1, -1, -1], [1.0, 1, -1, -1]])
    result = trainer.step(Rollouts(prompts, groups, rewards))
    assert result.informative == 0.5
    assert trainer.flat.grad is not None
    found = trainer.flat.grad.clone()
    assert float(found.norm()) > 0
    rewards[1] = -1.0  # as if it had no advantage
    trainer = Trainer(adapted, trainer.config)
    trainer.step(Rollouts(prompts, groups, rewards))
    assert torch.equal(trainer.flat.grad, found)


def test_questions_that_fill_a_sliding_window_are_refused_before_training(adapt: Adapt) -> None:
    questions, base = questions_of(OddTask(), SMALL), adapt("mistral").base
    with pytest.raises(UsageError, match=r"the question .* layers that look back 12") as error:
        questions.check_length(base, SMALL)
    assert "--trainer evolution" in error.value.hint
    questions.check_length(base, replace(SMALL, trainer="evolution"))
    questions.check_length(adapt().base, SMALL)


def test_sliding_window_within_and_beyond_its_reach(adapt: Adapt) -> None:
    adapted = adapt("mistral")  # a window of 12 tokens
    prompts, groups = CASES["common beginning"]
    with torch.no_grad():
        found = rollout_logp(adapted.model, pack(prompts, groups, CPU))
        assert torch.allclose(found, separate(adapted, prompts, groups), rtol=1e-4, atol=1e-4)
        with pytest.raises(T2Error, match="window"):
            rollout_logp(adapted.model, pack([SYSTEM * 3], ROLLOUTS[:1], CPU))
