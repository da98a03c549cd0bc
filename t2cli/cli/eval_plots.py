"""The pictures of t2 eval --plot: accuracies with their intervals, where dispatchers sent questions, alphas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from t2cli.cli.pictures import check_picture
from t2cli.errors import UsageError
from t2cli.files import check_writable, disk_error, writing
from t2cli.paths import expanded

if TYPE_CHECKING:
    from t2cli.evaluation.confusion import Confusion
    from t2cli.evaluation.evaluate import Evaluation

WIDTH = 0.8  # of the bars of one task together; tasks are 1 apart

PlotFolder = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="FOLDER",
        help="Also draw accuracies, and of strategies the confusion and alphas, into this folder as PNG.",
    ),
]


class Bar(NamedTuple):
    """A number with an interval: of whom (an expert, a strategy), and on which task."""

    task: str
    who: str
    value: float
    low: float
    high: float


def check_folder(folder: Path | None) -> None:
    """Raise UsageError where pictures cannot go there, and T2Error where matplotlib is missing."""
    if folder is None:
        return
    if expanded(folder).exists() and not expanded(folder).is_dir():
        raise UsageError(f"{folder} is no folder", hint="name a folder for the pictures, as in --plot pictures")
    check_picture(expanded(folder) / "accuracy.png")


def make_folder(folder: Path | None) -> None:
    """Make the folder for pictures. Raises T2Error where it cannot be made, or nothing can be written there."""
    if folder is None:
        return
    try:
        expanded(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(folder, error) from error
    check_writable(expanded(folder) / "accuracy.png")


def save_pictures(evaluations: Sequence[Evaluation], folder: Path | None) -> list[Path]:
    """Draw all there is to see of some evaluations and return the files that were written; none without a folder."""
    if folder is None:
        return []
    from t2cli.evaluation.confusion import confusions

    accuracies = [
        Bar(evaluation.task.name, row.who.name, row.answers.accuracy, *row.ci95)
        for evaluation in evaluations
        for row in evaluation.rows
    ]
    learned = [
        (evaluation.task.name, row.answers.choices.learned)
        for evaluation in evaluations
        for row in evaluation.rows
        if row.answers.choices is not None and row.answers.choices.learned is not None
    ]
    alphas = [
        Bar(task, reference, alpha, alpha - each.spread[reference], alpha + each.spread[reference])
        for task, each in learned
        for reference, alpha in each.alphas.items()
    ]
    return draw(expanded(folder), accuracies, list(confusions(evaluations)), alphas)


def draw(folder: Path, accuracies: Sequence[Bar], found: Sequence[Confusion], alphas: Sequence[Bar]) -> list[Path]:
    """Draw the pictures, each whole or not at all, and return their files."""
    make_folder(folder)
    paths = [folder / "accuracy.png"]
    _bars(accuracies, paths[0], "share of right answers, with 95 % intervals", top=1.0)
    for confusion in found:
        paths.append(folder / f"confusion-{confusion.strategy}.png")
        _confusion(confusion, paths[-1])
    if alphas:
        paths.append(folder / "alphas.png")
        _bars(alphas, paths[-1], "alphas that few-shot answers with, and the spread of the search's last generation")
    return paths


def _bars(bars: Sequence[Bar], path: Path, title: str, *, top: float | None = None) -> None:
    """Draw groups of bars, one per task, in which each `who` has a colour."""
    tasks, names = list(dict.fromkeys(bar.task for bar in bars)), list(dict.fromkeys(bar.who for bar in bars))
    figure, axes = _figure(max(6.0, 1.5 + len(tasks) * (0.6 + 0.25 * len(names))), 4.5)
    width = WIDTH / len(names)
    for place, name in enumerate(names):
        mine = [bar for bar in bars if bar.who == name]
        axes.bar(
            [tasks.index(bar.task) + (place + 0.5) * width - WIDTH / 2 for bar in mine],
            [bar.value for bar in mine],
            width=0.9 * width,
            yerr=[[bar.value - bar.low for bar in mine], [bar.high - bar.value for bar in mine]],
            capsize=2,
            color=f"C{place}",
            label=name,
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_ylim(top=top)
    axes.set_title(title, fontsize="medium")
    figure.legend(loc="outside lower center", ncols=min(len(names), 6))
    _save(figure, path)


def _confusion(confusion: Confusion, path: Path) -> None:
    """Draw the share of each task's questions per category as a shade, with the number in it."""
    rows, columns = confusion.rows, confusion.columns
    counts = [[row.counts.get(name, 0) for name in columns] for row in rows]
    figure, axes = _figure(3.5 + 0.9 * len(columns), 1.8 + 0.5 * len(rows))
    shares = [[count / max(1, sum(line)) for count in line] for line in counts]
    axes.imshow(shares, aspect="auto", vmin=0, vmax=1, cmap="Blues")
    for y, line in enumerate(counts):
        for x, count in enumerate(line):
            right = rows[y].category == columns[x]
            axes.text(
                x, y, str(count),
                ha="center", va="center",
                color="white" if shares[y][x] > 0.6 else "black",
                fontweight="bold" if right else "normal",
            )  # fmt: skip
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_xlabel("category chosen (bold: the task's own)")
    axes.set_ylabel("questions of")
    axes.set_title(f"where {confusion.strategy} sends questions", fontsize="medium")
    _save(figure, path)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # not pyplot, which would look for a display

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Any, path: Path) -> None:
    with writing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
