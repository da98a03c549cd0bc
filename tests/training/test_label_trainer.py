"""Learning labels: the gradient is that of the cross-entropy by hand, and a run ends the same however interrupted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from interruptions import Heard
from odd_task import OddTask

from t2cli.config import TrainConfig, preset
from t2cli.errors import UsageError
from t2cli.evaluation.evaluate import answers_in_use
from t2cli.evaluation.labels import read_labels
from t2cli.models.adapted import AdaptedModel
from t2cli.models.labels import LabelPrompt
from t2cli.registry.local import LocalRegistry
from t2cli.registry.vectors import read_z, z_to_bytes
from t2cli.svf.zvector import unflatten
from t2cli.tasks.base import Task, load_task
from t2cli.tasks.dispatch import LabelSet, label_set_of
from t2cli.training.algorithms import algorithm_of
from t2cli.training.checkpoint import RunFolder, RunSpec, new_run, run_to_resume
from t2cli.training.dispatcher import confusion, threshold_of
from t2cli.training.labels import LabelTrainer, label_loss
from t2cli.training.loop import TrainingRun
from t2cli.training.metrics import Listener, Silent
from t2cli.training.publish import Trained

Adapt = Callable[..., AdaptedModel]

CONFIG = replace(
    preset("t2", trainer="labels"),
    steps=6,
    prompts_per_step=8,
    micro_batch=8,
    learning_rate=0.05,
    max_relative_step=0.0,  # a tiny model needs long steps
    warmup_steps=1,
    validate_every=2,
    validation_examples=30,
    evaluation_examples=45,
)
INNER = """\
name: %s
category: %s
description: %s
max_new_tokens: 8
answer: {kind: exact}
source: {kind: jsonl, file: %s.jsonl}
"""
TASK = """\
name: which
category: which
description: which is which
max_new_tokens: 1
answer: {kind: exact}
source: {kind: dispatch, tasks: [./sums.yaml, ./tales.yaml], other: {file: general.json}}
"""


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """Return a task with three categories whose questions look different."""
    for name, text in (("sums", "{0} + {0} = "), ("tales", "the two of us saw {0}")):
        (tmp_path / f"{name}.yaml").write_text(INNER % (name, name, name, name))
        lines = ({"question": text.format(number), "answer": "x"} for number in range(400))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "general.json").write_text(json.dumps([f"ZZZZ {number} zzzz" for number in range(400)]))
    (tmp_path / "which.yaml").write_text(TASK)
    return load_task(str(tmp_path / "which.yaml"))


def label_set(task: Task) -> LabelSet:
    found = label_set_of(task)
    assert found is not None
    return found


def start(
    adapted: AdaptedModel, task: Task, folder: RunFolder | None = None, listener: Listener | None = None
) -> TrainingRun:
    spec = RunSpec("which", "which", "tiny", adapted.base.identity.weights, CONFIG)
    folder = folder or new_run(adapted.base.identity.folder_name, spec)
    return TrainingRun(adapted, task, folder.spec(), folder, listener or Silent())


def loss_by_hand(adapted: AdaptedModel, task: Task, numbers: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of a step's questions under z, each read alone and factored."""
    told, total = label_set(task), torch.zeros(())
    prompt = LabelPrompt(adapted.base, told.instruction, told.labels)
    examples = task.examples("train", CONFIG.prompts_per_step, 3)
    with adapted.with_tensors(unflatten(numbers, adapted.ranks)):
        for example in examples:
            ids = prompt.encode(task.messages(example)[-1]["content"])
            logits = adapted.model(input_ids=torch.tensor([ids])).logits[0, -1, prompt.labels]
            total = total - logits.log_softmax(-1)[told.categories.index(example.answer)]
    return total / len(examples)


@pytest.mark.parametrize("micro_batch", [8, 3])
def test_the_gradient_is_that_of_the_mean_cross_entropy(micro_batch: int, adapt: Adapt, task: Task) -> None:
    adapted = adapt("llama", double=True)
    trainer = LabelTrainer(adapted, replace(CONFIG, micro_batch=micro_batch, max_gradient_norm=math.inf))
    assert isinstance(trainer, LabelTrainer)
    start_at = 1 + 0.1 * torch.randn(trainer.flat.numel(), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        trainer.flat.copy_(start_at)
    trainer.policy.changed()
    numbers = start_at.double().requires_grad_()
    loss = loss_by_hand(adapted, task, numbers)
    (wanted,) = torch.autograd.grad(loss, [numbers])
    result = trainer.update(task, iter([task.examples("train", CONFIG.prompts_per_step, 3)]), torch.Generator())
    assert trainer.flat.grad is not None
    assert torch.allclose(trainer.flat.grad.double(), wanted, rtol=1e-3, atol=1e-6)
    assert result.gradient_norm == pytest.approx(float(wanted.norm()), rel=1e-3)
    assert result.kl is None
    assert -1 <= result.reward <= 1


def test_the_loss_is_the_cross_entropy_among_the_labels() -> None:
    logp = torch.tensor([[-1.0, -3.0, -2.0], [-9.0, -9.0, -9.0]])
    wanted = [-math.log(math.exp(-3) / (math.exp(-1) + math.exp(-3) + math.exp(-2))), math.log(3)]
    assert label_loss(logp, torch.tensor([1, 0])).tolist() == pytest.approx(wanted)


def test_a_run_learns_to_tell_apart_and_publishes_a_dispatcher(
    adapt: Adapt, task: Task, registry: LocalRegistry
) -> None:
    adapted = adapt("llama")
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    trained = start(adapted, task).run(registry)
    entry, told = trained.entry, label_set(task)
    assert entry is not None
    record = entry.manifest.dispatcher
    assert (entry.manifest.kind, entry.manifest.training and entry.manifest.training.config["trainer"]) == (
        "dispatcher",
        "labels",
    )
    assert record is not None
    assert (record.instruction, record.categories, record.labels) == (told.instruction, told.categories, told.labels)
    assert record.n == trained.evaluation.n == 45
    assert record.accuracy == pytest.approx(trained.evaluation.expert_accuracy)
    assert trained.evaluation.gain > 0.2
    test = task.examples("test", 45, 0)
    with adapted.use_z(read_z(entry)):
        said = read_labels(adapted, task, told, test).argmax(dim=1)
        right = answers_in_use(adapted, task, test).right
    assert [told.categories[place] == each.answer for place, each in zip(said.tolist(), test, strict=True)] == list(
        right
    )
    assert sum(right) / 45 == pytest.approx(record.accuracy)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.model.state_dict().items())


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_interrupted_after_a_step_ends_the_same(
    step: int, adapt: Adapt, task: Task, registry: LocalRegistry, tmp_path: Path
) -> None:
    whole = start(adapt("llama"), task).run(LocalRegistry([tmp_path / "others"]))
    with pytest.raises(KeyboardInterrupt):
        start(adapt("llama"), task, listener=Heard(after_step=step)).run(registry)
    adapted = adapt("llama")
    again = start(adapted, task, run_to_resume(adapted.base.identity.folder_name, "which")).run(registry)
    assert bits(again) == bits(whole)


def bits(trained: Trained) -> tuple[bytes, object]:
    assert trained.entry is not None
    return z_to_bytes(read_z(trained.entry)), trained.entry.manifest.dispatcher


def test_a_task_without_categories_is_refused(adapt: Adapt) -> None:
    adapted = adapt("llama")
    trainer = algorithm_of(adapted, CONFIG)
    assert isinstance(trainer, LabelTrainer)
    with pytest.raises(UsageError, match="are no categories"):
        trainer.update(OddTask(), iter([OddTask().examples("train", 2, 0)]), torch.Generator())


def test_labels_are_learned_with_settings_of_their_own() -> None:
    config = preset("t2", trainer="labels")
    assert (config.kl_coefficient, config.group) == (0.0, TrainConfig().group)
    assert preset("t2", trainer="labels", prompts_per_step=5).prompts_per_step == 5


# places: 0 and 1 are experts' categories, 2 is the general one
SURE, UNSURE, GENERAL = [0.95, 0.03, 0.02], [0.60, 0.20, 0.20], [0.1, 0.1, 0.8]


def test_the_threshold_keeps_general_questions_and_loses_none_of_the_others() -> None:
    probabilities = torch.tensor([SURE] * 10 + [GENERAL] * 18 + [UNSURE] * 2)
    right = torch.tensor([0] * 10 + [2] * 20)
    assert 0.6 < threshold_of(probabilities, right, 2) <= 0.95
    assert threshold_of(probabilities, right, 2) == pytest.approx(0.78)  # the middle of 0.61 to 0.95


def test_where_nothing_keeps_enough_the_threshold_keeps_the_most() -> None:
    probabilities = torch.tensor([SURE] * 10 + [[1.0, 0.0, 0.0]] * 10 + [GENERAL] * 10)
    right = torch.tensor([0] * 10 + [2] * 20)
    assert threshold_of(probabilities, right, 2) <= 0.95  # nothing is gained by losing what is right


def test_a_threshold_is_found_without_general_questions() -> None:
    assert threshold_of(torch.tensor([SURE, SURE]), torch.tensor([0, 0]), 2) == pytest.approx(0.73)  # 0.50 to 0.95


def test_a_category_has_to_be_likelier_than_not() -> None:
    assert threshold_of(torch.tensor([[0.4, 0.3, 0.3]] * 5 + [GENERAL] * 5), torch.tensor([0] * 5 + [2] * 5), 2) >= 0.5


def test_a_confusion_counts_by_right_category() -> None:
    said, right = torch.tensor([0, 1, 1, 2, 0]), torch.tensor([0, 0, 1, 2, 2])
    assert confusion(said, right, 3) == ((1, 1, 0), (0, 1, 0), (1, 0, 1))
