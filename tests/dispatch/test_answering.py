"""Strategies in an evaluation answer as the experts they choose; what they learn from is not what is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import toys

from t2cli.dispatch.answering import FOLDED, MIX, a_strategy, best_expert, few_shot
from t2cli.dispatch.few_shot import BASE
from t2cli.dispatch.shots import Shots, TaskShot, draw_shots
from t2cli.dispatch.two_pass import STRATEGIES, TwoPass
from t2cli.errors import CorruptArtifactError, UsageError
from t2cli.evaluation.evaluate import Answers, an_expert, answers_in_use, the_base
from t2cli.models.adapted import AdaptedModel
from t2cli.models.base import load_base
from t2cli.registry.local import ExpertEntry, LocalRegistry
from t2cli.registry.vectors import read_z
from t2cli.svf.zvector import ZVectors, mix
from t2cli.tasks.base import Example, SpecTask, load_task

N = 20


@pytest.fixture
def counting(counting_folder: Path) -> AdaptedModel:
    return AdaptedModel(load_base(str(counting_folder), device="cpu", quiet=True))


@pytest.fixture
def experts(
    counting: AdaptedModel, publish: Callable[..., ExpertEntry], random_z: Callable[..., ZVectors], tmp_path: Path
) -> dict[str, ExpertEntry]:
    return {
        name: publish(tmp_path / "experts", counting.base.identity, name, random_z(counting.ranks, seed, sigma=0.6))
        for seed, name in enumerate(("math", "story"))
    }


@pytest.fixture
def two(counting: AdaptedModel, experts: dict[str, ExpertEntry], tmp_path: Path) -> TwoPass:
    return TwoPass(counting, LocalRegistry([tmp_path / "experts"]), quiet=True)


@pytest.fixture
def task(tmp_path: Path) -> SpecTask:
    return toys.task_in(tmp_path / "task")


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("always", "shared"):
        monkeypatch.setitem(STRATEGIES, name, f"toys:{name}")


def said(answers: Answers) -> tuple[object, ...]:
    return answers.texts, answers.right, answers.tokens, answers.cut


def alone(two: TwoPass, task: SpecTask, examples: list[Example], *references: str) -> list[Answers]:
    """Return what the base and then each of the experts named answers."""
    found = [the_base(two.adapted).answer(task, examples, None)]
    for reference in references:
        who = an_expert(two.adapted, read_z(two.resolver.find(reference)), reference)
        found.append(who.answer(task, examples, None))
    return found


@pytest.mark.parametrize("more", ["", "stop: '[e-s ]{2}'"])
def test_who_always_chooses_an_expert_answers_as_that_expert(
    adapted: AdaptedModel, put: Callable[..., ExpertEntry], two_pass: TwoPass, tmp_path: Path, more: str
) -> None:
    put("math", seed=3)
    task = toys.task_in(tmp_path / "task", kind="exact", more=more)
    examples = task.examples("test", N, 0)
    counts: list[int] = []
    answers = a_strategy(two_pass, "always").answer(task, examples, counts.append)
    base, math = alone(two_pass, task, examples, "math@1")
    assert said(answers) == said(math)
    assert answers.texts != base.texts
    assert sum(counts) == N
    if more:  # the task's end of a completion is heeded
        unstopped = a_strategy(two_pass, "always").answer(toys.task_in(tmp_path / "task", kind="exact"), examples, None)
        assert sum(answers.tokens) < sum(unstopped.tokens)
    assert answers.choices is not None
    assert (answers.choices.of_experts, answers.choices.left_to_base) == ({"math@1": N}, 0)
    assert answers.choices.of_categories == {"math": N, "other": 0, "story": 0}
    assert 0 <= answers.choices.share < 1


def test_each_question_is_answered_by_what_was_chosen_for_it(two: TwoPass, task: SpecTask) -> None:
    before = {name: tensor.clone() for name, tensor in two.adapted.model.state_dict().items()}
    examples = task.examples("test", 28, 0)
    answers = a_strategy(two, "shared").answer(task, examples, None)
    assert answers.choices is not None
    base, math, story = alone(two, task, examples, "math@1", "story@1")
    z = {name: read_z(two.resolver.find(name)) for name in ("math@1", "story@1")}
    mixed = an_expert(two.adapted, mix([(0.75, z["math@1"]), (0.5, z["story@1"])]), "mixed").answer(
        task, examples, None
    )
    by_weights = {(): base, ("story@1",): story, ("math@1", "story@1"): mixed, ("math@1",): math}
    sizes = dict.fromkeys(by_weights, 0)
    for place, weights in enumerate(answers.choices.weights):
        sizes[tuple(weights)] += 1
        wanted = by_weights[tuple(weights)]
        for field in ("texts", "right", "tokens", "cut"):
            assert getattr(answers, field)[place] == getattr(wanted, field)[place]
    assert min(sizes.values()) > 0
    assert sizes["math@1",] >= FOLDED > sizes["story@1",]  # both ways were taken
    assert len({base.texts, math.texts, story.texts, mixed.texts}) == 4
    assert answers.choices.left_to_base == sizes[()]
    assert answers.choices.of_experts["story@1"] == sizes["story@1",] + sizes["math@1", "story@1"]
    for name, tensor in two.adapted.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_pass_1_by_prompting_answers_as_its_decisions_say(two: TwoPass, task: SpecTask) -> None:
    examples = task.examples("test", 12, 0)
    answers = a_strategy(two, "prompt").answer(task, examples, None)
    assert answers.choices is not None
    assert answers.choices.known == ("math", "other", "story")
    by_reference = dict(
        zip(("base", "math@1", "story@1"), alone(two, task, examples, "math@1", "story@1"), strict=True)
    )
    for place, weights in enumerate(answers.choices.weights):
        assert answers.texts[place] == by_reference[next(iter(weights), "base")].texts[place]
    assert answers.choices.pass1_seconds > 0


def test_the_best_expert_is_that_of_the_examples_it_was_chosen_by(two: TwoPass, task: SpecTask) -> None:
    chosen_by = draw_shots(task, ("validation",), 12, 0, measured="test", strict=True)
    examples = task.examples("test", N, 0)
    answers = best_expert(two, {task.name: chosen_by}).answer(task, examples, None)
    assert answers.choices is not None
    learned = answers.choices.learned
    assert learned is not None
    scores = {}
    for reference in ("math@1", "story@1"):
        with two.adapted.use_z(read_z(two.resolver.find(reference))):
            scores[reference] = answers_in_use(two.adapted, task, chosen_by.examples).accuracy
    assert learned.scores == scores
    assert len(set(scores.values())) == 2  # else there was nothing to choose
    best = max(scores, key=lambda reference: scores[reference])
    assert (learned.chosen, learned.split, learned.shots) == (best, "validation", 12)
    assert said(answers) == said(alone(two, task, examples, best)[1])
    worst = min(scores, key=lambda reference: scores[reference])
    # the examples decide: those that the other expert has right, and only those
    with two.adapted.use_z(read_z(two.resolver.find(worst))):
        right = answers_in_use(two.adapted, task, examples).right
    turned = Shots("validation", tuple(e for e, ok in zip(examples, right, strict=True) if ok))
    again = best_expert(two, {task.name: turned}).answer(task, examples, None)
    assert again.choices is not None
    assert again.choices.learned is not None
    assert again.choices.learned.scores[worst] == 1.0


def test_few_shot_answers_with_what_the_search_chose(two: TwoPass, task: SpecTask) -> None:
    shots = draw_shots(task, ("train",), 8, 0, measured="test", strict=True)
    examples = task.examples("test", N, 0)
    notes: list[str] = []
    answers = few_shot(two, {task.name: shots}, 0, notes.append).answer(task, examples, None)
    assert answers.choices is not None
    learned = answers.choices.learned
    assert learned is not None
    assert notes
    assert (learned.split, learned.shots) == ("train", 8)
    assert set(learned.alphas) == set(learned.spread) == {"math@1", "story@1"}
    assert set(learned.scores) >= {BASE, MIX, "uniform mix"}
    assert learned.chosen in learned.scores
    weights = {reference: alpha for reference, alpha in learned.alphas.items() if alpha}
    assert [dict(each) for each in answers.choices.weights] == [weights] * N
    z = two.z_of(weights)
    wanted = the_base(two.adapted) if z is None else an_expert(two.adapted, z, "mix")
    assert said(answers) == said(wanted.answer(task, examples, None))
    again = few_shot(two, {task.name: shots}, 0).answer(task, examples, None)
    assert again.choices is not None
    assert again.choices.learned == learned


def test_where_nothing_was_ever_right_the_base_answers(two: TwoPass, tmp_path: Path) -> None:
    task = toys.task_in(tmp_path / "hopeless", kind="exact")
    shots = draw_shots(task, ("train",), 6, 0, measured="test", strict=True)
    wrong = Shots("train", tuple(Example(e.id, e.question, "no such thing") for e in shots.examples))
    examples = task.examples("test", 8, 0)
    answers = few_shot(two, {task.name: wrong}, 0).answer(task, examples, None)
    assert answers.choices is not None
    assert answers.choices.learned is not None
    assert (answers.choices.learned.chosen, answers.choices.left_to_base) == (BASE, 8)
    assert said(answers) == said(the_base(two.adapted).answer(task, examples, None))


def test_a_damaged_expert_is_the_users_to_read(two: TwoPass, task: SpecTask, experts: dict[str, ExpertEntry]) -> None:
    (experts["math"].path / "z.safetensors").write_bytes(b"nothing")
    with pytest.raises(CorruptArtifactError):
        a_strategy(two, "always").answer(task, task.examples("test", 4, 0), None)


def test_shots_are_of_the_first_split_that_has_any_and_never_measured(tmp_path: Path) -> None:
    task = toys.task_in(tmp_path / "task", questions=60)
    for splits in (("train", "validation"), ("validation", "train")):
        drawn = draw_shots(task, splits, 4, 7, measured="test", strict=True)
        assert drawn.split == splits[0]
        assert list(drawn.examples) == task.examples(splits[0], 4, 7)
        with pytest.raises(UsageError, match="is to be measured"):
            draw_shots(task, splits, 4, 7, measured=splits[0], strict=True)
    there = len(task.examples("validation", 1000, 0, fewer=True))
    assert len(draw_shots(task, ("validation",), 1000, 0, measured="test", strict=False).examples) == there
    with pytest.raises(UsageError, match=f"has {there} questions of the split validation, and 1000 are needed"):
        draw_shots(task, ("validation",), 1000, 0, measured="test", strict=True)


def test_an_evaluation_only_task_has_nothing_to_learn_from(tmp_path: Path) -> None:
    toys.task_in(tmp_path / "task", questions=40)
    path = tmp_path / "task" / "digits.yaml"
    path.write_text(path.read_text() + "  record: {split: \"{{ 'test' if question else '' }}\"}\n")
    task = load_task(str(path))
    assert len(task.examples("test", 40, 0)) == 40
    with pytest.raises(UsageError, match="for evaluation only"):
        draw_shots(task, ("train", "validation"), 4, 0, measured="test", strict=False)


def test_a_shot_is_asked_and_judged_as_the_task_does_and_once(tmp_path: Path) -> None:
    task = toys.task_in(tmp_path / "task")
    (example,) = task.examples("train", 1, 0)
    asked: list[str] = []

    class Counting(SpecTask):
        def reward(self, example: Example, completion: str) -> float:
            asked.append(completion)
            return super().reward(example, completion)

    shot = TaskShot(Counting(task.spec), example, 1)
    assert shot.messages == task.messages(example)
    assert shot.messages[0] == {"role": "system", "content": "Say a digit."}
    assert shot.answer == example.answer
    assert [shot.is_right(text) for text in (example.answer, "8", example.answer, "8")] == [True, False, True, False]
    assert asked == [example.answer, "8"]


def test_the_right_answer_to_a_programming_question_is_a_program(tmp_path: Path) -> None:
    task = toys.task_in(tmp_path / "task", kind="tests")
    for answer, written in (
        ('{"tests": "assert f(1) == 2", "reference": "def f(x):\\n    return 2"}', "def f(x):\n    return 2"),
        ("assert f(1) == 2", "assert f(1) == 2"),
    ):
        shot = TaskShot(task, Example("questions-0", "f?", answer), 1)
        assert shot.answer == f"```python\n{written}\n```"
