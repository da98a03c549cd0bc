"""A LoRA in the training loop: the base at its start, its gradient by hand, and what it saves loads with PEFT."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from interruptions import Heard, InterruptedFolder
from odd_task import SMALL, OddTask, spec_of, start
from torch.func import functional_call

from t2cli.config import TrainConfig
from t2cli.errors import T2Error
from t2cli.evaluation.evaluate import answers_in_use
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import load_base
from t2cli.models.text_model import PlainModel
from t2cli.registry.local import LocalRegistry
from t2cli.training.checkpoint import new_run, run_to_resume
from t2cli.training.lora import ALPHA, LoRAPolicy
from t2cli.training.rollouts import Rollouts, collect
from t2cli.training.trainer import Trainer

peft = pytest.importorskip("peft")

Open = Callable[[], AdaptedModel]
LORA = replace(SMALL, adapter="lora", rank=4, learning_rate=0.01)
IDS = torch.tensor([[60, 61, 62, 63, 64]])


def moved(policy: LoRAPolicy, seed: int = 0) -> LoRAPolicy:
    """Move the factors away from B = 0."""
    with torch.no_grad():
        policy.flat.add_(0.05 * torch.randn(policy.flat.shape, generator=torch.Generator().manual_seed(seed)))
    return policy


def logits(adapted: AdaptedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = adapted.model(input_ids=IDS).logits
    return found


def rollouts_of(trainer: Trainer, step: int = 0) -> Rollouts:
    task, generator = OddTask(), torch.Generator().manual_seed(step)
    with trainer.policy.answering():
        examples = task.examples("train", trainer.config.prompts_per_step, step)
        return collect(trainer.policy.text_model, task, examples, trainer.config, generator)


def test_it_starts_as_the_base(counting: AdaptedModel) -> None:
    base = logits(counting)
    policy = LoRAPolicy(counting, LORA)
    assert torch.equal(logits(counting), base)
    for use in (policy.answering, policy.differentiable, policy.reference):
        with use():
            assert torch.equal(logits(counting), base)


def test_it_has_as_many_numbers_as_its_factors(counting: AdaptedModel) -> None:
    shapes = [target.shape for target in counting.targets]
    assert LoRAPolicy(counting, LORA).flat.numel() == sum(4 * (m + n) for m, n in shapes)


def test_the_ways_to_answer_agree_and_leave_the_base(counting: AdaptedModel) -> None:
    base = logits(counting)
    policy = moved(LoRAPolicy(counting, LORA))
    numbers = policy.flat.detach().clone()
    with policy.answering():
        merged = logits(counting)
    with policy.differentiable():
        factors = logits(counting)
        with policy.reference():
            assert torch.equal(logits(counting), base)
        assert torch.equal(logits(counting), factors)
    assert torch.allclose(merged, factors, atol=1e-4)
    assert not torch.allclose(merged, base, atol=1e-2)
    assert torch.equal(logits(counting), base)
    with policy.answering(torch.zeros_like(numbers)):
        assert torch.equal(logits(counting), base)
    assert torch.equal(policy.flat, numbers)
    with pytest.raises(KeyError), policy.answering():
        raise KeyError
    assert torch.equal(logits(counting), base)


def test_the_gradient_by_hand(counting: AdaptedModel, counting_folder: Path) -> None:
    """W' = W + alpha / k B A in plain autograd gives the gradient that reaches `flat`."""
    counting.model.double()
    config = replace(LORA, max_gradient_norm=1e9, kl_coefficient=0.7, micro_batch=3)
    trainer = Trainer(counting, config)
    policy = trainer.policy
    assert isinstance(policy, LoRAPolicy)
    moved(policy)
    rollouts = rollouts_of(trainer)
    model = load_base(str(counting_folder), device="cpu", quiet=True).model.double()
    flat, weights, start_at = policy.flat.detach().clone().requires_grad_(), {}, 0
    shapes = {target.module: target.shape for target in counting.targets}
    for name in (name for name, _ in model.named_modules() if name in shapes):
        m, n = shapes[name]
        A = flat[start_at : start_at + 4 * n].view(4, n)
        B = flat[start_at + 4 * n : start_at + 4 * (n + m)].view(m, 4)
        start_at += 4 * (m + n)
        weights[f"{name}.weight"] = model.get_parameter(f"{name}.weight").detach() + ALPHA / 4 * B @ A
    assert start_at == flat.numel()
    loss = torch.zeros((), dtype=torch.float64)
    for prompt, group, rewards in zip(rollouts.prompts, rollouts.groups, rollouts.rewards.tolist(), strict=True):
        if len(set(rewards)) == 1:
            continue
        for place, (completion, reward) in enumerate(zip(group, rewards, strict=True)):
            ids = torch.tensor([[*prompt, *completion.ids]])
            rows, tokens = torch.arange(len(prompt) - 1, ids.shape[1] - 1), torch.tensor(completion.ids)
            logp = functional_call(model, weights, kwargs={"input_ids": ids}).logits[0].log_softmax(-1)[rows, tokens]
            reference = model(input_ids=ids).logits[0].log_softmax(-1)[rows, tokens].detach()
            ratio = reference - logp
            others = rewards[:place] + rewards[place + 1 :]
            loss = loss - (reward - sum(others) / 3) * logp.sum() + 0.7 * (ratio**2 / 2).sum()
    (wanted,) = torch.autograd.grad(loss / rollouts.rewards.numel(), flat)
    trainer.step(rollouts)
    assert trainer.flat.grad is not None
    assert float((trainer.flat.grad - wanted).norm() / wanted.norm()) < 1e-5


def test_rewards_rise(counting: AdaptedModel) -> None:
    trainer, task = Trainer(counting, replace(LORA, steps=15)), OddTask()
    held_out = task.examples("validation", 32, 0)
    with trainer.policy.reference():
        before = sum(answers_in_use(trainer.policy.text_model, task, held_out).right)
    for step in range(15):
        trainer.step(rollouts_of(trainer, step))
    with trainer.policy.answering():
        assert sum(answers_in_use(trainer.policy.text_model, task, held_out).right) > before + 6


def test_equal_rollouts_with_svf(open_counting: Open) -> None:
    """At their start both are the base: the same seed samples the same answers, which get the same rewards."""
    svf, lora = (rollouts_of(Trainer(open_counting(), config)) for config in (SMALL, LORA))
    assert svf.groups == lora.groups
    assert torch.equal(svf.rewards, lora.rewards)


def test_what_a_run_saves_is_what_peft_loads(
    counting: AdaptedModel, counting_folder: Path, registry: LocalRegistry
) -> None:
    run = start(counting, LORA)
    trained = run.run(registry)
    assert trained.entry is None
    assert trained.adapter == run.folder.path / "adapter"
    assert registry.list() == []
    assert run.folder.finished
    config = json.loads((trained.adapter / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (4, str(counting_folder))
    state = run.folder.load()
    assert state is not None
    base = load_base(str(counting_folder), device="cpu", quiet=True)
    loaded = peft.PeftModel.from_pretrained(base.model, trained.adapter)
    with run.policy.answering(state.tensors["best"]), torch.no_grad():
        assert torch.allclose(loaded(input_ids=IDS).logits, counting.model(input_ids=IDS).logits, atol=1e-4)
    task = OddTask()
    again = answers_in_use(PlainModel(base), task, task.examples("test", LORA.evaluation_examples, 0))
    assert again.accuracy == trained.evaluation.expert_accuracy
    stored = json.loads((run.folder.path / "evaluation.json").read_text())
    assert stored["expert_accuracy"] == trained.evaluation.expert_accuracy
    assert sorted(path.name for path in run.folder.path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("where", ["a step", "its checkpoint", "the evaluation"])
def test_an_interrupted_run_ends_the_same(where: str, open_counting: Open, registry: LocalRegistry) -> None:
    whole = start(open_counting(), LORA)
    wanted = whole.run(registry)
    adapted = open_counting()
    fresh = new_run(adapted.base.identity.folder_name, spec_of(adapted, LORA))
    folder = InterruptedFolder(fresh, 3) if where == "its checkpoint" else fresh
    heard = {"a step": Heard(after_step=2), "the evaluation": Heard(in_stage="evaluate")}.get(where)
    with pytest.raises(KeyboardInterrupt):
        start(adapted, LORA, folder=folder, listener=heard).run(registry)
    again = open_counting()
    run = start(again, folder=run_to_resume(again.base.identity.folder_name, "odd"))
    trained = run.run(registry)
    assert trained.evaluation == wanted.evaluation
    assert trained.adapter is not None
    assert wanted.adapter is not None
    name = "adapter_model.safetensors"
    assert (trained.adapter / name).read_bytes() == (wanted.adapter / name).read_bytes()


def test_a_start_comes_from_the_seed_and_leaves_the_global_one(open_counting: Open) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)

    def begin(config: TrainConfig) -> torch.Tensor:
        torch.manual_seed(5)
        return LoRAPolicy(open_counting(), config).flat.detach()

    one = begin(LORA)
    assert torch.equal(torch.rand(3), wanted)
    assert torch.equal(begin(LORA), one)
    assert not torch.equal(begin(replace(LORA, seed=1)), one)


@pytest.mark.parametrize("variant", ["gpt2", "falcon", "phi3", "qwen2"])
def test_other_architectures(variant: str, adapt: Callable[..., AdaptedModel]) -> None:
    adapted = adapt(variant)
    base = logits(adapted)
    policy = moved(LoRAPolicy(adapted, LORA))
    with policy.answering():
        merged = logits(adapted)
    with policy.differentiable():
        assert torch.allclose(logits(adapted), merged, atol=1e-3)
    assert not torch.allclose(merged, base, atol=1e-2)
    assert torch.equal(logits(adapted), base)


def test_experts_in_three_dimensions_are_refused(adapt: Callable[..., AdaptedModel]) -> None:
    with pytest.raises(T2Error, match="3-D weights") as caught:
        LoRAPolicy(adapt("mixtral"), LORA)
    assert "--targets attention" in caught.value.hint


def test_without_peft_it_says_which_extra(counting: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(T2Error, match="needs peft") as caught:
        LoRAPolicy(counting, LORA)
    assert "[lora]" in caught.value.hint
