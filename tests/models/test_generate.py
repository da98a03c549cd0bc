"""Generation: the same tokens as transformers' own, however prompts are batched, shared, copied or adapted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from t2cli.config import SamplingConfig
from t2cli.errors import T2Error, UsageError
from t2cli.models import reading as module
from t2cli.models.adapted import AdaptedModel
from t2cli.models.generate import Completion, choose, draw, generate, greedy_in_batches
from t2cli.models.reading import common_prefix, left_padded
from t2cli.svf.zvector import ZVectors

Adapt = Callable[..., AdaptedModel]
MakeZ = Callable[..., ZVectors]

SYSTEM = list(range(20, 40))
PROMPTS = [[*SYSTEM, 5, 9, 200], [*SYSTEM, 17], [*SYSTEM, 250, 11, 12, 13, 14, 15], [*SYSTEM, 250, 11]]
UNLIKE = [[5, 9, 200, 31, 7, 8], [17], [250, 11, 12, 13]]
GREEDY = SamplingConfig(max_new_tokens=20)
ALL_VARIANTS = pytest.mark.parametrize("variant", ["llama", "llama-grouped", "qwen2", "qwen3", "mistral"])


def ids_of(completions: Sequence[Completion]) -> list[list[int]]:
    return [list(completion.ids) for completion in completions]


def transformers_own(adapted: AdaptedModel, prompt: list[int], count: int = 20) -> list[int]:
    output = adapted.model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=count, do_sample=False
    )
    return output[0, len(prompt) :].tolist()


def uniform(rows: int) -> torch.Tensor:
    return torch.rand(rows, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def with_eos(adapted: AdaptedModel, *tokens: int) -> None:
    adapted.base = replace(adapted.base, eos=frozenset(tokens))


@ALL_VARIANTS
@pytest.mark.parametrize("prompts", [PROMPTS, UNLIKE], ids=["shared", "unlike"])
def test_greedy_is_transformers_own(variant: str, prompts: list[list[int]], adapt: Adapt, random_z: MakeZ) -> None:
    adapted = adapt(variant, double=True)
    for z in (ZVectors({}), random_z(adapted.ranks)):
        with adapted.use_z(z):
            assert ids_of(generate(adapted, prompts, GREEDY)) == [transformers_own(adapted, p) for p in prompts]


@ALL_VARIANTS
def test_batch_is_one_by_one(variant: str, adapt: Adapt) -> None:
    adapted = adapt(variant, double=True)
    with_eos(adapted)
    together = generate(adapted, PROMPTS + UNLIKE, GREEDY)
    assert together == [generate(adapted, [prompt], GREEDY)[0] for prompt in PROMPTS + UNLIKE]
    assert all(len(completion.ids) == 20 and not completion.ended for completion in together)


def test_longer_than_the_room_of_the_cache(adapt: Adapt) -> None:
    adapted = adapt(double=True)
    with_eos(adapted)
    adapted.model.generation_config.eos_token_id = None
    found = generate(adapted, [UNLIKE[0]], SamplingConfig(max_new_tokens=150))
    assert ids_of(found) == [transformers_own(adapted, UNLIKE[0], 150)]


@ALL_VARIANTS
def test_sharing_the_prefix_changes_no_token(
    variant: str, adapt: Adapt, random_z: MakeZ, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = adapt(variant, double=True)
    with adapted.use_z(random_z(adapted.ranks)):
        shared = generate(adapted, PROMPTS, GREEDY, copies=2)
        monkeypatch.setattr(module, "WORTH_SHARING", 10**9)
        assert generate(adapted, PROMPTS, GREEDY, copies=2) == shared


def lengths_read(adapted: AdaptedModel, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    """Return the shapes of token ids that the model was given for one new token."""
    shapes: list[tuple[int, ...]] = []
    hook = adapted.model.get_input_embeddings().register_forward_pre_hook(
        lambda _, inputs: shapes.append(tuple(inputs[0].shape))
    )
    generate(adapted, prompts, SamplingConfig(max_new_tokens=1))
    hook.remove()
    return shapes


def test_common_beginning_is_read_once(adapt: Adapt) -> None:
    adapted = adapt()
    assert lengths_read(adapted, PROMPTS) == [(1, 20), (4, 6)]
    assert lengths_read(adapted, UNLIKE) == [(3, 6)]
    assert lengths_read(adapted, PROMPTS[:1]) == [(1, 23)]


@pytest.mark.parametrize(
    ("prompts", "length"),
    [([[1, 2, 3]], 2), ([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2]], 1), ([[1, 2], [1, 2, 3]], 1), ([[1], [2]], 0)],
)
def test_common_prefix_leaves_each_prompt_a_token(prompts: list[list[int]], length: int) -> None:
    assert common_prefix(prompts) == length


def test_copies_are_grouped_by_prompt(adapt: Adapt) -> None:
    adapted = adapt(double=True)
    single = generate(adapted, UNLIKE, GREEDY)
    copied = generate(adapted, UNLIKE, GREEDY, copies=3)
    assert copied == [completion for completion in single for _ in range(3)]


def test_rows_that_end_leave_the_batch_and_the_others_go_on(adapt: Adapt) -> None:
    adapted = adapt(double=True)
    with_eos(adapted)
    prompts = PROMPTS + UNLIKE
    free = ids_of(generate(adapted, prompts, GREEDY))
    end = {tokens[place] for tokens, place in zip(free, [2, 5, 5, 9, 3, 12, 1], strict=True)}
    with_eos(adapted, *end)
    wanted = []
    for tokens in free:
        stop = next((place for place, token in enumerate(tokens) if token in end), None)
        wanted.append(Completion(tuple(tokens if stop is None else tokens[: stop + 1]), stop is not None))
    assert len({len(completion.ids) for completion in wanted}) > 3
    assert generate(adapted, prompts, GREEDY) == wanted


def test_batch_shrinks(adapt: Adapt) -> None:
    adapted = adapt(double=True)
    with_eos(adapted)
    with_eos(adapted, generate(adapted, UNLIKE[:1], GREEDY)[0].ids[0])
    rows: list[int] = []
    hook = adapted.model.get_input_embeddings().register_forward_pre_hook(lambda _, ids: rows.append(len(ids[0])))
    generate(adapted, [UNLIKE[0]] * 3 + UNLIKE[1:], GREEDY)
    hook.remove()
    assert rows[0] == 5
    assert max(rows[1:]) <= 2


def test_each_row_answers_as_its_own_expert_also_when_copied_and_when_rows_leave(adapt: Adapt, random_z: MakeZ) -> None:
    adapted = adapt("qwen2", double=True)
    with_eos(adapted)
    experts = [random_z(adapted.ranks, 1), random_z(adapted.ranks, 2), ZVectors({}), random_z(adapted.ranks, 3)]
    alone = []
    for round_ in range(2):
        alone = []
        for prompt, z in zip(PROMPTS, experts, strict=True):
            with adapted.use_z(z):
                alone += generate(adapted, [prompt], GREEDY) * 2
        if round_ == 0:  # choose ends that make rows leave at different times, one at once
            with_eos(adapted, alone[0].ids[0], alone[2].ids[6], alone[6].ids[11])
    with adapted.per_row(experts):
        assert generate(adapted, PROMPTS, GREEDY, copies=2) == alone
        assert generate(adapted, PROMPTS, GREEDY, copies=2) == alone  # the block's rows are as before
    assert len({len(completion.ids) for completion in alone}) > 1


def test_tokens_are_told_as_they_come_without_the_end(adapt: Adapt) -> None:
    adapted = adapt(double=True)
    with_eos(adapted)
    with_eos(adapted, generate(adapted, UNLIKE[:1], GREEDY)[0].ids[4])
    told: list[list[int]] = [[], [], []]
    found = generate(adapted, UNLIKE, GREEDY, on_token=lambda row, token: told[row].append(token))
    assert told == [list(c.ids[:-1] if c.ended else c.ids) for c in found]
    assert any(completion.ended for completion in found)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_number_of_new_tokens_is_kept(count: int, adapt: Adapt) -> None:
    adapted = adapt()
    with_eos(adapted)
    found = generate(adapted, UNLIKE, SamplingConfig(max_new_tokens=count))
    assert [len(completion.ids) for completion in found] == [count] * 3


@pytest.mark.parametrize("variant", ["gpt2", "llama"])  # of which the first has no embedding beyond its context
def test_no_row_is_read_beyond_the_context(variant: str, adapt: Adapt) -> None:
    adapted = adapt(variant, double=True)
    with_eos(adapted)
    long = [7] * (adapted.base.context - 2)
    alone = ids_of(generate(adapted, [[5, 9]], GREEDY))
    found = ids_of(generate(adapted, [[5, 9]] * 4 + [long], GREEDY))  # four of five: the long one stays for a while
    assert found[:4] == alone * 4
    assert len(found[4]) == 2
    with pytest.raises(UsageError, match=f"reads at most {adapted.base.context}"):
        generate(adapted, [[5, 9], [*long, 1, 2]], GREEDY)


def test_prompt_without_tokens_is_refused(adapt: Adapt) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        generate(adapt(), [[1, 2], []], GREEDY)


def test_experts_of_other_rows_than_there_are_prompts_are_refused(adapt: Adapt, random_z: MakeZ) -> None:
    adapted = adapt()
    with adapted.per_row([random_z(adapted.ranks, seed) for seed in range(3)]):
        for prompts in (UNLIKE[:1], PROMPTS):
            with pytest.raises(ValueError, match="3 rows have experts"):
                generate(adapted, prompts, GREEDY)


def test_same_seed_same_tokens(adapt: Adapt) -> None:
    adapted = adapt()
    sampling = SamplingConfig(max_new_tokens=12, temperature=1.0)

    def sample(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return ids_of(generate(adapted, PROMPTS, sampling, copies=3, generator=generator))

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert len({tuple(tokens) for tokens in sample(1)}) > 6  # copies are different draws


def test_what_a_row_says_does_not_depend_on_the_rows_beside_it(adapt: Adapt) -> None:
    adapted = adapt(double=True)
    sampling = SamplingConfig(max_new_tokens=12, temperature=1.0)
    draws = draw(6, sampling, torch.Generator().manual_seed(3))
    together = generate(adapted, UNLIKE, sampling, copies=2, draws=draws)
    assert together == generate(adapted, UNLIKE, sampling, copies=2, generator=torch.Generator().manual_seed(3))
    rows = [prompt for prompt in UNLIKE for _ in range(2)]
    assert len({completion.ids for completion in together}) > 3
    for start, end in ((0, 1), (1, 4), (4, 6)):
        assert generate(adapted, rows[start:end], sampling, draws=draws[start:end]) == together[start:end]
    assert generate(adapted, rows[:2], sampling, draws=draws[[1, 0]]) == [together[1], together[0]]


def test_sampling_leaves_the_global_random_state_alone(adapt: Adapt) -> None:
    state = torch.random.get_rng_state()
    sampling = SamplingConfig(max_new_tokens=4, temperature=1.0)
    generate(adapt(), UNLIKE, sampling, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, -float("inf"), 1.5, -2.0])
    n = 20_000
    drawn = choose(logits.expand(n, 8), temperature, uniform(n))
    counts = torch.bincount(drawn, minlength=8).double()
    expected = n * torch.softmax(logits.double() / temperature, dim=0)
    assert counts[5] == 0
    possible = expected > 0
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert statistic < 22.46  # chi-square with 6 degrees of freedom, p = 0.001


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6])
def test_a_temperature_close_to_zero_is_greedy(temperature: float) -> None:
    logits = torch.tensor([[1.0, 30.0, -2e4], [5.0, 4.0, 3.0]])
    assert choose(logits, temperature, uniform(2)).tolist() == [1, 0]


def test_each_row_is_drawn_from_its_own_logits() -> None:
    certain = torch.full((3, 5), -1e9)
    certain[[0, 1, 2], [4, 0, 2]] = 0
    assert choose(certain, 1.0, uniform(3)).tolist() == [4, 0, 2]
    assert choose(certain, 0.0, None).tolist() == [4, 0, 2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_numbers_that_overflowed_are_no_predictions(wrong: float, temperature: float) -> None:
    logits = torch.zeros(2, 5)
    logits[1, 3] = wrong
    with pytest.raises(T2Error, match="finite") as caught:
        choose(logits, temperature, uniform(2))
    assert caught.value.hint


def test_padding_is_on_the_left() -> None:
    ids, mask = left_padded([[1, 2, 3], [4]], torch.device("cpu"))
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert module.positions_of(mask).tolist() == [[0, 1, 2], [0, 0, 0]]


def test_many_prompts_come_back_in_their_order(adapt: Adapt) -> None:
    adapted = adapt(double=True)
    prompts = PROMPTS + UNLIKE
    done: list[int] = []
    found = greedy_in_batches(adapted, prompts, 8, batch_size=3, on_done=done.append)
    short = SamplingConfig(max_new_tokens=8)
    assert found == [generate(adapted, [prompt], short)[0] for prompt in prompts]
    assert done == [3, 3, 1]
    assert greedy_in_batches(adapted, [], 8) == []
