"""Strategies as who answers in an evaluation: pass 1 for all questions, then pass 2 in groups of one expert or mix.

Source: Transformer-Squared (arXiv 2501.06252), section 4 and its tables; math.md 6.

Deviations from the paper and its released code:
1. A question is asked as the evaluation of an expert asks it (evaluation/evaluate.py): the task's own messages, where a
   completion ends, the longest answer. So a strategy that always chooses one expert answers what that expert does.
2. Few-shot examples are training questions, and the best single expert is chosen on validation questions; the released
   code takes its shots from the test set, and a table's best column is read off the test scores.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from t2cli.config import CEMConfig, DispatchConfig, SamplingConfig
from t2cli.dispatch.batch import Question, decide_all
from t2cli.dispatch.categories import categories_of
from t2cli.dispatch.decision import FEW_SHOT, Decision
from t2cli.dispatch.few_shot import BASE, FewShotResult
from t2cli.dispatch.shots import Shots, TaskShot
from t2cli.dispatch.two_pass import TwoPass
from t2cli.errors import DivergedError
from t2cli.evaluation.choices import Choices, Learned
from t2cli.evaluation.evaluate import Advance, Answerer, Answers, answers_in_use, judged, limit_of
from t2cli.models.generate import Completion, generate, greedy_in_batches
from t2cli.registry.vectors import read_z
from t2cli.tasks.base import Example, Task, stop_of

BEST = "best"  # the best single expert, chosen once per task
FOLDED = 8  # rows of one expert or mix from which on folding it is worth its time; fewer go among others, each its own
MIX = "mix"  # what a search has chosen if none of the baselines

Note = Callable[[str], None]
Choose = Callable[[Task], tuple[Mapping[str, float], Learned]]


def a_strategy(two_pass: TwoPass, name: str, config: DispatchConfig = DispatchConfig()) -> Answerer:  # noqa: B008 (frozen)
    """Return a row of STRATEGIES as who answers: it looks at every question."""
    strategy = two_pass.strategy(name, config)

    def answer(task: Task, examples: Sequence[Example], on_done: Advance | None) -> Answers:
        questions = [Question(task.messages(example), strategy) for example in examples]
        started = time.monotonic()
        decisions = decide_all(questions)
        return _answered(two_pass, task, examples, decisions, time.monotonic() - started, on_done)

    return Answerer(name, answer)


def few_shot(two_pass: TwoPass, shots: Mapping[str, Shots], seed: int, note: Note = lambda _: None) -> Answerer:
    """Return the mix of experts that is searched on a task's `shots`, by its name, as who answers.

    Where nothing answered any of them right the base answers. `note` is told how the search gets on.
    """

    def choose(task: Task) -> tuple[Mapping[str, float], Learned]:
        learnt = shots[task.name]
        examples = [TaskShot(task, example, place) for place, example in enumerate(learnt.examples, start=1)]
        longest = min(limit_of(task), max(CEMConfig.max_new_tokens, task.max_new_tokens))
        result = two_pass.search(
            examples,
            CEMConfig(seed=seed, max_new_tokens=longest),
            on_iteration=lambda done, score: note(f"{task.name}: generation {done}, {score[0]:.0%} right"),
            stop=stop_of(task, two_pass.adapted.base.decode),
        )
        return _found(result, learnt)

    return _once_per_task(two_pass, FEW_SHOT, choose)


def best_expert(two_pass: TwoPass, shots: Mapping[str, Shots], note: Note = lambda _: None) -> Answerer:
    """Return the single expert that answers a task's `shots`, by its name, best; of equal ones the first."""
    references = [category.reference for category in categories_of(two_pass.resolver)]

    def choose(task: Task) -> tuple[Mapping[str, float], Learned]:
        learnt, scores = shots[task.name], dict[str, float]()
        for reference in references:
            note(f"{task.name}: {reference}")
            scores[reference] = 0.0  # stays where its numbers overflow
            z = read_z(two_pass.resolver.find(reference))
            with contextlib.suppress(DivergedError), two_pass.adapted.use_z(z):
                scores[reference] = answers_in_use(two_pass.adapted, task, learnt.examples).accuracy
        best = max(references, key=lambda reference: scores[reference])
        return {best: 1.0}, Learned(learnt.split, len(learnt.examples), best, scores)

    return _once_per_task(two_pass, BEST, choose)


def _found(result: FewShotResult, shots: Shots) -> tuple[Mapping[str, float], Learned]:
    """Return the weights to answer with, and what the search found."""
    name, mix = (BASE, result.baselines[BASE]) if result.never_right else result.chosen()
    weights = result.weights(mix)
    scores = {baseline: each.held_out.accuracy for baseline, each in result.baselines.items()}
    scores[MIX] = result.mix.held_out.accuracy
    alphas = dict.fromkeys(result.references, 0.0) | weights
    return weights, Learned(shots.split, len(shots.examples), name or MIX, scores, alphas, result.spread)


def _once_per_task(two_pass: TwoPass, name: str, choose: Choose) -> Answerer:
    """Return who answers all questions of a task with the same experts, chosen before the first."""

    def answer(task: Task, examples: Sequence[Example], on_done: Advance | None) -> Answers:
        started = time.monotonic()
        weights, learned = choose(task)
        decisions = [Decision(name, weights=weights)] * len(examples)
        answers = _answered(two_pass, task, examples, decisions, time.monotonic() - started, on_done)
        assert answers.choices is not None
        return replace(answers, choices=replace(answers.choices, learned=learned))

    return Answerer(name, answer)


def _answered(
    two_pass: TwoPass,
    task: Task,
    examples: Sequence[Example],
    decisions: Sequence[Decision],
    pass1_seconds: float,
    on_done: Advance | None,
) -> Answers:
    """Return the answers to the examples, each by the experts of its decision, and what was decided."""
    started = time.monotonic()
    try:
        completions = _completed(two_pass, task, examples, decisions, on_done)
    finally:
        two_pass.adapted.release()
    seconds = time.monotonic() - started  # without judging, which may run programs
    choices = Choices(
        categories=tuple(decision.category for decision in decisions),
        known=tuple(sorted({name for decision in decisions for name in decision.probabilities})),
        weights=tuple(decision.weights for decision in decisions),
        pass1_seconds=pass1_seconds,
        answer_seconds=seconds,
    )
    return replace(judged(two_pass.adapted, task, examples, completions), choices=choices)


def _completed(
    two_pass: TwoPass,
    task: Task,
    examples: Sequence[Example],
    decisions: Sequence[Decision],
    on_done: Advance | None,
) -> list[Completion]:
    """Return the greedy completion of each example: large groups folded, what is left with a z per row."""
    adapted, limit = two_pass.adapted, limit_of(task)
    prompts = [adapted.base.encode(task.messages(example)) for example in examples]
    stop = stop_of(task, adapted.base.decode)
    groups: dict[tuple[tuple[str, float], ...], list[int]] = {}
    for place, decision in enumerate(decisions):
        groups.setdefault(tuple(decision.weights.items()), []).append(place)
    found: dict[int, Completion] = {}
    left: list[int] = []
    for weights, places in groups.items():
        if len(places) < FOLDED and len(groups) > 1:
            left += places
            continue
        z = two_pass.z_of(dict(weights))
        with adapted.answering_as(z):
            asked = [prompts[place] for place in places]
            completions = greedy_in_batches(adapted, asked, limit, on_done=on_done, stop=stop)
        found.update(zip(places, completions, strict=True))

    def side_by_side(part: Sequence[int]) -> None:
        with two_pass.per_row([decisions[place].weights for place in part]):
            asked = [prompts[place] for place in part]
            found.update(zip(part, generate(adapted, asked, SamplingConfig(limit), stop=stop), strict=True))
        if on_done is not None:
            on_done(len(part))

    adapted.answers_at_once.over(sorted(left, key=lambda place: len(prompts[place])), side_by_side)
    return [found[place] for place in range(len(examples))]
