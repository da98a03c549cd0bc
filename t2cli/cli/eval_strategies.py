"""t2 eval --adapt: which strategies are measured, what they learn from, and what is said of their choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from t2cli.cli.output import interval, one_line, table
from t2cli.errors import NotFoundError, UsageError
from t2cli.lookup import near_matches

if TYPE_CHECKING:
    from t2cli.dispatch.shots import Shots
    from t2cli.dispatch.two_pass import TwoPass
    from t2cli.evaluation.choices import Choices, Learned
    from t2cli.evaluation.confusion import Confusion
    from t2cli.evaluation.evaluate import Answerer, Row
    from t2cli.registry.resolve import Resolver
    from t2cli.tasks.base import Task

FEW_SHOTS, BEST_SHOTS = 128, 50  # examples per task, unless --shots says otherwise

Adapts = Annotated[
    list[str] | None,
    typer.Option(
        "--adapt",
        metavar="STRATEGY",
        help="Also measure a strategy: prompt, few-shot (a mix searched per task), best (the best single expert,"
        " chosen per task), or another of t2 chat; may be given more than once.",
    ),
]
ShotsOption = Annotated[
    int | None,
    typer.Option(
        "--shots",
        metavar="K",
        min=4,
        help="Examples of each task that few-shot and best learn from; never test questions.",
        show_default=f"{FEW_SHOTS} training questions for few-shot, {BEST_SHOTS} validation questions for best",
    ),
]


@dataclass(frozen=True)
class Strategies:
    """The strategies to measure, in the order given, and by strategy and task what those that learn learn from."""

    names: tuple[str, ...] = ()
    shots: Mapping[str, Mapping[str, Shots]] = field(default_factory=dict)


def strategies_of(
    adapt: Sequence[str], shots: int | None, tasks: Sequence[Task], resolver: Resolver, split: str, seed: int
) -> Strategies:
    """Return what --adapt and --shots ask for.

    Raises UsageError and NotFoundError for what cannot be measured, before a model is loaded.
    """
    names = _names(adapt)
    if not names:
        if shots is not None:
            raise UsageError("--shots is for what learns from examples", hint="add --adapt few-shot or --adapt best")
        return Strategies()
    from t2cli.dispatch.answering import BEST
    from t2cli.dispatch.categories import categories_of
    from t2cli.dispatch.decision import FEW_SHOT
    from t2cli.dispatch.shots import draw_shots
    from t2cli.tasks.dispatch import label_set_of

    for task in tasks:
        if label_set_of(task) is not None:
            raise UsageError(
                f"the answers of {task.name} are the categories that pass 1 chooses from: no strategy answers those",
                hint="t2 show DISPATCHER has what it confuses; measure strategies on other tasks",
            )
    if not categories_of(resolver):
        raise NotFoundError(
            f"there is no expert for {resolver.base.label}: --adapt has nothing to choose from",
            hint="train one with t2 train, or measure the base alone without --adapt",
        )
    if "classifier" in names:
        from t2cli.dispatch.classifier import required_dispatcher

        required_dispatcher(resolver)
    ways = {FEW_SHOT: (("train", "validation"), FEW_SHOTS), BEST: (("validation", "train"), BEST_SHOTS)}
    learning = [name for name in names if name in ways]
    if shots is not None and not learning:
        raise UsageError("--shots is for what learns from examples", hint="add --adapt few-shot or --adapt best")
    drawn = {
        name: {
            task.name: draw_shots(
                task, ways[name][0], shots or ways[name][1], seed, measured=split, strict=shots is not None
            )
            for task in tasks
        }
        for name in learning
    }
    return Strategies(tuple(names), drawn)


def _names(adapt: Sequence[str]) -> list[str]:
    """Return the strategies named, which --adapt a,b does at once."""
    if not adapt:
        return []
    from t2cli.dispatch.answering import BEST
    from t2cli.dispatch.decision import FEW_SHOT
    from t2cli.dispatch.two_pass import NO_STRATEGY, STRATEGIES

    known = [*(name for name in STRATEGIES if name != NO_STRATEGY), FEW_SHOT, BEST]
    names = [name.strip() for given in adapt for name in given.split(",")]
    for name in names:
        if name == NO_STRATEGY:
            raise UsageError("the base alone is always measured", hint=f"leave out --adapt {NO_STRATEGY}")
        if name not in known:
            raise NotFoundError(f"there is no strategy named {name!r}", hint=near_matches(name, known))
        if names.count(name) > 1:
            raise UsageError(f"the strategy {name} is named twice", hint="name it once")
    return names


def answerers(asked: Strategies, two_pass: TwoPass, seed: int, note: Callable[[str], None]) -> list[Answerer]:
    """Return the strategies as who answers; a damaged expert that they may choose is found now."""
    if not asked.names:
        return []
    from t2cli.dispatch.answering import BEST, a_strategy, best_expert, few_shot
    from t2cli.dispatch.categories import categories_of
    from t2cli.dispatch.decision import FEW_SHOT

    for category in categories_of(two_pass.resolver):
        two_pass.z_of({category.reference: 1.0})
    found = []
    for name in asked.names:
        if name == FEW_SHOT:
            found.append(few_shot(two_pass, asked.shots[name], seed, note))
        elif name == BEST:
            found.append(best_expert(two_pass, asked.shots[name], note))
        else:
            found.append(a_strategy(two_pass, name))
    return found


def choice_lines(row: Row) -> Iterator[str]:
    """Yield what people read of a strategy's choices: who answered, what was learned, and where the time went."""
    choices = row.answers.choices
    if choices is None:
        return
    if choices.learned is not None:
        yield one_line(f"{row.who.name}: {_learned(choices.learned)}")
    else:
        yield one_line(f"{row.who.name}: {_who(choices)}")
    total = choices.pass1_seconds + choices.answer_seconds
    yield f"{row.who.name}: pass 1 took {choices.pass1_seconds:.1f} of {total:.1f} s ({100 * choices.share:.0f} %)"


def _who(choices: Choices) -> str:
    parts = [f"{reference} for {count}" for reference, count in choices.of_experts.items()]
    return ", ".join([*parts, f"the base alone for {choices.left_to_base}"])


def _learned(learned: Learned) -> str:
    """Return what was learned of a task in words."""
    scores = ", ".join(f"{name} {score:.2f}" for name, score in learned.scores.items())
    how = f"of {learned.shots} questions of the split {learned.split}"
    if not learned.alphas:
        return f"{learned.chosen}, by the accuracy on {how.removeprefix('of ')}: {scores}"
    alphas = ", ".join(
        f"{alpha:.2f} {reference} (spread {learned.spread[reference]:.2f})"
        for reference, alpha in learned.alphas.items()
    )
    return f"{alphas}; this is the {learned.chosen}; accuracy on those held out {how}: {scores}"


def confusion_lines(confusion: Confusion) -> Iterator[str]:
    """Yield a dispatcher's matrix and how often it was right."""
    header = (f"{confusion.strategy}: QUESTIONS OF", *(f"-> {name}" for name in confusion.columns))
    rows = [[row.label, *(str(row.counts.get(name, 0)) for name in confusion.columns)] for row in confusion.rows]
    yield table(header, rows, right=range(1, len(header)))
    if confusion.n:
        yield one_line(
            f"{confusion.strategy}: the task's own category for {confusion.right} of {confusion.n} questions, "
            f"{confusion.right / confusion.n:.3f} {interval(confusion.ci95, '{:.3f}')}"
        )
