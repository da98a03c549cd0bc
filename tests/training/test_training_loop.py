"""A run ends the same whether it was interrupted or not, and publishes the best checkpoint with what it measured."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from interruptions import Heard, InterruptedFolder, KilledAtTheEnd
from odd_task import SMALL, OddTask, spec_of, start
from resumed_runs import Open, assert_same, resumed

from t2cli.config import TrainConfig
from t2cli.errors import NotFoundError, T2Error
from t2cli.evaluation.evaluate import Answers, compare
from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import LocalRegistry
from t2cli.registry.vectors import read_z, z_to_bytes
from t2cli.svf.evolution import seed_of_step
from t2cli.svf.zvector import ZVectors
from t2cli.training.checkpoint import RunState, new_run, run_to_resume
from t2cli.training.loop import TrainingRun
from t2cli.training.metrics import Silent, StepRecord
from t2cli.training.publish import SHOWN_FROM, Trained

WILD = replace(SMALL, steps=8, learning_rate=0.4, validate_every=1)  # enough to get worse again


@pytest.fixture
def whole(open_counting: Open, registry: LocalRegistry) -> tuple[Trained, TrainingRun]:
    """Return a run that nothing interrupted."""
    run = start(open_counting())
    return run.run(registry), run


@pytest.mark.parametrize("step", range(SMALL.steps + 1))
def test_a_run_killed_before_a_checkpoint_ends_the_same(
    step: int, whole: tuple[Trained, TrainingRun], open_counting: Open, registry: LocalRegistry
) -> None:
    adapted = open_counting()
    fresh = new_run(adapted.base.identity.folder_name, spec_of(adapted))
    first = start(adapted, folder=InterruptedFolder(fresh, step))
    assert_same(*resumed(first, open_counting, registry), *whole)


@pytest.mark.parametrize("step", range(1, SMALL.steps + 1))
def test_a_run_interrupted_after_a_step_ends_the_same(
    step: int, whole: tuple[Trained, TrainingRun], open_counting: Open, registry: LocalRegistry
) -> None:
    first = start(open_counting(), listener=Heard(after_step=step))
    assert_same(*resumed(first, open_counting, registry), *whole)
    saved = first.folder.load()
    assert saved is not None
    assert saved.step == SMALL.steps


def test_a_run_interrupted_during_its_first_step_ends_the_same(
    whole: tuple[Trained, TrainingRun], open_counting: Open, registry: LocalRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a checkpoint of step 0 then, and no metrics yet."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    first = start(open_counting())
    monkeypatch.setattr(first.trainer, "update", interrupted)
    assert_same(*resumed(first, open_counting, registry), *whole)


def test_a_run_interrupted_while_it_is_evaluated_ends_the_same(
    whole: tuple[Trained, TrainingRun], open_counting: Open, registry: LocalRegistry
) -> None:
    first = start(open_counting(), listener=Heard(in_stage="evaluate"))
    assert_same(*resumed(first, open_counting, registry), *whole)


def test_a_run_killed_after_publishing_does_not_publish_again(open_counting: Open, registry: LocalRegistry) -> None:
    adapted = open_counting()
    folder = KilledAtTheEnd(new_run(adapted.base.identity.folder_name, spec_of(adapted)).path)
    trained, run = resumed(start(adapted, folder=folder), open_counting, registry)
    assert [entry.reference for entry in registry.list()] == [trained.entry.reference]
    assert run.folder.finished
    assert trained.evaluation == trained.entry.manifest.evaluation[0]


def test_an_interrupt_leaves_the_base_as_it_was(open_counting: Open, registry: LocalRegistry) -> None:
    adapted = open_counting()
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        start(adapted, listener=Heard(after_step=2)).run(registry)
    for name, tensor in adapted.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert registry.list() == []


def test_another_seed_is_another_run(
    whole: tuple[Trained, TrainingRun], counting: AdaptedModel, registry: LocalRegistry
) -> None:
    other = start(counting, replace(SMALL, seed=1)).run(registry)
    assert other.entry.z_bytes() != whole[0].entry.z_bytes()
    assert other.evaluation.base_accuracy == whole[0].evaluation.base_accuracy  # the same questions for all runs


def test_any_seed_that_a_manifest_can_hold_will_do(counting: AdaptedModel) -> None:
    run = start(counting, replace(SMALL, seed=2**63 - 1, steps=1))
    assert run.train().step == 1
    assert seed_of_step(7, 3) == 7 * 1_000_003 + 3  # experts are trained again by their seeds: these must stay


def test_the_best_checkpoint_is_published(counting: AdaptedModel, registry: LocalRegistry) -> None:
    config = replace(WILD, schedule="constant")
    seen: list[tuple[float, bytes]] = []

    class Watching(Silent):
        def step(self, record: StepRecord) -> None:
            assert record.validation is not None
            seen.append((record.validation, z_to_bytes(run.trainer.policy.z())))

    run = start(counting, config, listener=Watching())
    trained = run.run(registry)
    best = max(range(len(seen)), key=lambda index: seen[index][0])  # the first of equal ones
    assert best < len(seen) - 1
    assert trained.entry.z_bytes() == seen[best][1]
    training = trained.entry.manifest.training
    assert training is not None
    assert training.config["best_step"] == best + 1


def test_the_last_checkpoint_is_published_where_rates_decay_and_it_is_not_measurably_worse(
    counting: AdaptedModel, registry: LocalRegistry
) -> None:
    run = start(counting, WILD)
    trained = run.run(registry)
    validations = [record.validation or 0.0 for record in run.folder.metrics.read()]
    assert max(validations[:-1]) >= validations[-1] > trained.evaluation.base_accuracy
    state = run.folder.load()
    assert state is not None
    assert (state.best_step, state.best_accuracy) == (8, validations[-1])
    assert trained.entry.z_bytes() == z_to_bytes(run.trainer.policy.z())


@pytest.mark.parametrize(
    ("right", "base", "settled"),
    [(20, 5, True), (15, 5, True), (8, 5, False), (15, 15, False), (15, 18, False)],
)
def test_the_last_checkpoint_has_to_be_better_than_the_base_and_about_as_good_as_the_best(
    right: int, base: int, settled: bool, counting: AdaptedModel
) -> None:
    def answers(count: int) -> Answers:
        return Answers(("",) * 24, (True,) * count + (False,) * (24 - count), (1,) * 24, (False,) * 24)

    state = RunState(SMALL.steps, 0.0, 2, 18 / 24, base / 24, {}, best_right=list(answers(18).right))
    assert start(counting)._settled(state, answers(right)) is settled
    state.step -= 1
    assert not start(counting)._settled(state, answers(right))
    state.step += 1
    assert not start(counting, replace(SMALL, schedule="constant"))._settled(state, answers(right))


def test_what_is_published_says_how_it_was_made(
    whole: tuple[Trained, TrainingRun], registry: LocalRegistry, open_counting: Open
) -> None:
    trained, run = whole
    adapted, task = open_counting(), OddTask()
    (entry,) = registry.list(base_digest=adapted.base.identity.weights)
    manifest = entry.manifest
    assert registry.verify(entry) == []
    assert (manifest.name, manifest.kind, manifest.category) == ("odd", "expert", "digits")
    assert (manifest.base.name, manifest.base.folder) == ("counting", adapted.base.identity.folder_name)
    assert set(manifest.base.fingerprint.spectrum) >= {"q_proj", "up_proj"}
    assert manifest.targets.parameters == sum(adapted.ranks.values())

    training = manifest.training
    assert training is not None
    config = {**training.config, "preset": training.preset, "seed": training.seed}
    best_step = config.pop("best_step")
    assert (config.pop("processes"), config.pop("basis")) == (1, "float32")
    assert TrainConfig(**config) == SMALL  # type: ignore[arg-type]
    state = run.folder.load()
    assert state is not None
    assert best_step == state.best_step > 0
    assert (training.task, training.steps, training.device) == ("odd", SMALL.steps, "cpu")
    assert {"torch", "transformers", "t2cli", "python"} <= set(training.versions)

    (evaluation,) = manifest.evaluation
    assert (evaluation.split, evaluation.n, evaluation.task) == ("test", SMALL.evaluation_examples, "odd")
    assert evaluation == trained.evaluation == compare(adapted, task, read_z(entry), n=evaluation.n, seed=0)
    assert torch.equal(read_z(entry).flat(), state.tensors["best"])

    trained_on = {example.question for example in task.examples("train", SHOWN_FROM, SMALL.seed)}
    assert manifest.examples
    assert set(manifest.examples) <= trained_on


def test_nothing_is_published_unless_something_is_better(counting: AdaptedModel, registry: LocalRegistry) -> None:
    run = start(counting, replace(SMALL, learning_rate=0.0))
    with pytest.raises(T2Error, match="no checkpoint was better than the base on 24 validation") as caught:
        run.run(registry)
    assert caught.value.exit_code == 1
    assert "--steps" in caught.value.hint
    assert registry.list() == []
    with pytest.raises(NotFoundError, match="no unfinished run"):
        run_to_resume(counting.base.identity.folder_name, "odd")


def test_a_gradient_that_is_not_finite_leaves_the_last_checkpoint(
    counting: AdaptedModel, registry: LocalRegistry
) -> None:
    run = start(counting, replace(SMALL, kl_coefficient=math.inf))
    with pytest.raises(T2Error, match="no checkpoint was better"):
        run.run(registry)
    state = run.folder.load()
    assert state is not None
    assert state.step == state.collapses == run.config.retries + 1
    assert torch.equal(state.tensors["z"], torch.ones_like(state.tensors["z"]))
    assert [record.collapse for record in run.folder.metrics.read()] == [
        f"the gradient of step {step} is not finite" for step in (1, 2, 3)
    ]
    assert registry.list() == []


def test_a_finished_run_is_not_resumed(whole: tuple[Trained, TrainingRun], counting: AdaptedModel) -> None:
    trained, run = whole
    assert (run.folder.path / "expert.txt").read_text() == f"{trained.entry.reference}\n"
    with pytest.raises(NotFoundError):
        run_to_resume(counting.base.identity.folder_name, "odd")


def test_listeners_hear_every_step_and_stage(counting: AdaptedModel, registry: LocalRegistry) -> None:
    heard = Heard()
    run = start(counting, listener=heard)
    run.run(registry)
    assert heard.records == run.folder.metrics.read()
    assert [record.step for record in heard.records] == [1, 2, 3, 4]
    assert [record.validation is not None for record in heard.records] == [False, True, False, True]
    assert heard.records[-1].eta == 0
    assert ("train", SMALL.steps) in heard.stages
    evaluated = 2 * SMALL.evaluation_examples
    assert (f"evaluate on {SMALL.evaluation_examples} test examples", evaluated) in heard.stages
    assert heard.stages[0] == ("validate the base", SMALL.validation_examples)
    assert heard.advanced == SMALL.validation_examples + evaluated
    assert heard.stages[-1] == ("", 0)


def test_memory_of_the_expert_is_released_at_the_end(counting: AdaptedModel, registry: LocalRegistry) -> None:
    import gc

    counting.prepare()
    shape = counting.layers["model.layers.0.mlp.up_proj.weight"].weight.shape

    def live() -> int:
        gc.collect()
        return sum(type(thing) is torch.Tensor and thing.shape == shape for thing in gc.get_objects())

    before = live()
    start(counting).run(registry)
    assert live() == before


def test_metrics_are_json_lines_with_every_field(whole: tuple[Trained, TrainingRun]) -> None:
    lines = whole[1].folder.metrics.path.read_text().splitlines()
    assert len(lines) == SMALL.steps
    for number, line in enumerate(lines, start=1):
        record = json.loads(line)
        assert record["step"] == number
        assert record["steps"] == SMALL.steps
        assert -1 <= record["reward"] <= 1
        assert record["tokens"] > 0
        assert record["tokens_per_second"] > 0


def test_z_on_disk_is_the_vector_that_was_trained(whole: tuple[Trained, TrainingRun]) -> None:
    z = read_z(whole[0].entry)
    assert isinstance(z, ZVectors)
    assert float((z.flat() - 1).abs().max()) > 0.01


def test_a_checkpoint_of_an_earlier_version_goes_on(open_counting: Open, registry: LocalRegistry) -> None:
    """What had no patience and no sizes yet is read as if it had the defaults."""
    first = start(open_counting(), listener=Heard(after_step=2))
    with pytest.raises(KeyboardInterrupt):
        first.run(registry)
    state = first.folder.load()
    assert state is not None
    assert replace(state, stale=0, at_once=[], best_right=[]) == RunState(
        state.step, state.seconds, state.best_step, state.best_accuracy, state.base_accuracy, state.tensors
    )
    run_file = first.folder.path / "run.json"
    record = json.loads(run_file.read_text())
    del record["config"]["patience"]
    run_file.write_text(json.dumps(record))
    assert first.folder.spec().config == SMALL
