"""A step is made from enough prompts that teach something: where a lesson has too few, more lessons are taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
import torch
from interruptions import Heard
from odd_task import SMALL, OddTask, start
from resumed_runs import Open, assert_same, resumed

from t2cli.config import TrainConfig, preset
from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import LocalRegistry
from t2cli.tasks.base import Example
from t2cli.training.checkpoint import RunState
from t2cli.training.rollouts import Rollouts, collect
from t2cli.training.trainer import Trainer

PICKY = replace(SMALL, steps=6, validate_every=3, enough=1.0)
GROUP = SMALL.group


@dataclass(frozen=True)
class OneOfAGroup(OddTask):
    """The first rollout of a prompt is right, if it is one that teaches: a question that begins with "teach"."""

    asked: Counter[str] = field(default_factory=Counter)

    def reward(self, example: Example, completion: str) -> float:
        self.asked[example.id] += 1
        return 1.0 if example.question.startswith("teach") and self.asked[example.id] == 1 else -1.0


def lessons_with(teaching: list[int]) -> Iterator[list[Example]]:
    """Yield lessons of eight prompts, of which so many teach something."""
    for lesson, n in enumerate(teaching):
        yield [Example(f"{lesson}-{i}", f"{'teach' if i < n else 'do not'} {lesson} {i}?", "1") for i in range(8)]


@pytest.mark.parametrize(
    ("teaching", "settings", "taken"),
    [
        ([3, 8, 8, 8], {}, 1),
        ([2, 8, 8, 8], {}, 2),
        ([1, 2, 8, 8], {}, 2),
        ([0, 2, 0, 8], {}, 3),
        ([0, 0, 0, 8], {}, 3),  # no more than `rounds`, whatever they teach
        ([0, 0, 0, 0, 8], {"rounds": 4}, 4),
        ([0, 8, 8, 8], {"rounds": 1}, 1),
        ([4, 3, 8, 8], {"enough": 0.8}, 2),
        ([0, 8, 8, 8], {"enough": 0.0}, 1),
    ],
)
def test_more_is_asked_until_a_third_of_a_lesson_teaches(
    teaching: list[int], settings: dict[str, float], taken: int, counting: AdaptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(counting, replace(SMALL, **settings))  # type: ignore[arg-type]
    lessons = lessons_with(teaching)
    monkeypatch.setattr("t2cli.training.rollouts.judged", every_rollout_judged)
    result = trainer.update(OneOfAGroup(), lessons, torch.Generator().manual_seed(0))
    assert len(list(lessons)) == len(teaching) - taken
    assert result.rollouts == taken * 8 * GROUP
    assert result.informative == pytest.approx(sum(teaching[:taken]) / (taken * 8))
    assert result.reward == pytest.approx(2 * sum(teaching[:taken]) / (taken * 8 * GROUP) - 1)


def every_rollout_judged(_model: object, task: OneOfAGroup, examples: list[Example], _: object) -> torch.Tensor:
    """Judge rollouts whether they ended or not: a random model's seldom do."""
    return torch.tensor([task.reward(example, "") for example in examples])


def test_the_update_is_that_of_all_rollouts_together(open_counting: Open) -> None:
    adapted, task = open_counting(), OddTask()
    trainer = Trainer(adapted, replace(SMALL, enough=2.0, rounds=2))
    lessons = (task.examples("train", 8, seed) for seed in (0, 1))
    result = trainer.update(task, lessons, torch.Generator().manual_seed(5))
    assert result.rollouts == 2 * 8 * GROUP

    other = Trainer(open_counting(), replace(SMALL, rounds=1))
    generator = torch.Generator().manual_seed(5)  # the second lesson's draws follow the first one's
    with other.policy.answering():
        parts = [collect(other.adapted, task, task.examples("train", 8, seed), SMALL, generator) for seed in (0, 1)]
    together = parts[0] + parts[1]
    assert isinstance(together, Rollouts)
    assert together.rewards.shape == (16, GROUP)
    other.step(together)
    assert torch.equal(trainer.flat, other.flat)
    assert not torch.equal(trainer.flat, torch.ones_like(trainer.flat))


def test_a_run_takes_as_many_lessons_as_it_needs_and_never_one_twice(counting: AdaptedModel) -> None:
    run = start(counting, PICKY)
    state = run.train()
    rollouts = [record.rollouts for record in run.folder.metrics.read()]
    assert set(rollouts) <= {8 * GROUP * n for n in (1, 2, 3)}
    assert len(set(rollouts)) > 1, rollouts  # or this would show nothing
    assert state.lessons == sum(rollouts) / (8 * GROUP) == run.lessons.taken


@pytest.mark.parametrize("step", [1, 3, 5])
def test_an_interrupted_run_goes_on_with_the_lessons_that_follow(
    step: int, open_counting: Open, registry: LocalRegistry
) -> None:
    whole = start(open_counting(), PICKY)
    wanted = whole.run(registry)
    first = start(open_counting(), PICKY, listener=Heard(after_step=step))
    assert_same(*resumed(first, open_counting, registry), wanted, whole)


def test_a_checkpoint_that_does_not_know_its_lessons_took_one_for_each_step() -> None:
    assert RunState(7, 0.0, 0, 0.0, 0.0, {}).lessons == 7
    assert RunState(7, 0.0, 0, 0.0, 0.0, {}, lessons=9).lessons == 9


def test_settings() -> None:
    with pytest.raises(ValueError, match="rounds must be at least 1, not 0"):
        TrainConfig(rounds=0)
    assert preset("t2").rounds == preset("t2", adapter="lora").rounds == 3
    assert preset("paper").rounds == preset("reference").rounds == 1  # every rollout has an advantage there
