"""How the reward of a run rose, as dots in the terminal or as a picture, with the validations marked."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2cli.cli.pictures import save_figure

if TYPE_CHECKING:
    from t2cli.training.metrics import StepRecord

HEIGHT = 8  # lines
WIDEST = 100  # columns of dots
BRAILLE = 0x2800  # a character without dots; its eight dots are its lowest bits
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by line and column of a character
SMOOTHED = 5  # steps; beside the rewards themselves, which jump, a picture shows the mean of so many


def accuracy_of(reward: float) -> float:
    """Return the share of right answers at which the mean of rewards -1 and +1 is `reward`."""
    return (1 + reward) / 2


def reward_curve(records: Sequence[StepRecord]) -> list[str]:
    """Return lines with a dot per step, joined, as wide as stdout's terminal at most; none without a step.

    Left is the mean reward of the sampled answers, right the share of right ones that is the same height: validations
    (greedy answers) stand where their accuracy is.
    """
    if not records:
        return []
    fine, mark = _marks()
    heights = [record.reward for record in records]
    marked = {index: 2 * r.validation - 1 for index, r in enumerate(records) if r.validation is not None}
    low, high = _bounds([*heights, *marked.values()])
    across = 2 if fine else 1
    columns = max(2, min(WIDEST, shutil.get_terminal_size().columns - 18, len(records)))
    down = 4 * HEIGHT if fine else HEIGHT
    grid = _drawn(heights, low, high, columns * across, down)
    lines = [_line(grid, row, fine) for row in range(HEIGHT)]
    for index, value in marked.items():
        column = round(index * (columns - 1) / max(1, len(records) - 1))
        row = round((high - value) / (high - low) * (HEIGHT - 1))
        lines[row] = lines[row][:column] + mark + lines[row][column + 1 :]
    shown = []
    for row, line in enumerate(lines):
        level = high - (high - low) * row / (HEIGHT - 1)
        labelled = row % 7 == 0 or row == HEIGHT // 2
        left, right = (f"{level:+.2f}", f"{accuracy_of(level):.2f}") if labelled else ("", "")
        shown.append(f"{left:>6} {line}  {right}".rstrip())
    first, last = records[0].step, records[-1].step
    ends = str(first) if first == last else f"{first}{last:>{max(columns - len(str(first)), len(str(last)) + 1)}}"
    shown.append(f"{'step':>6} {ends}")
    dot = "line" if fine else "*"
    shown.append(f"{'':6} {dot}: mean reward (left)   {mark}: accuracy in validation (right)")
    return shown


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = max(0.05, 0.05 * (high - low))
    return low - room, high + room


def _drawn(values: Sequence[float], low: float, high: float, columns: int, rows: int) -> set[tuple[int, int]]:
    """Return the (row, column) dots of a line through the values, each column at the mean of what falls there."""
    points = []
    for column in range(columns):
        begin = column * len(values) // columns
        part = values[begin : max(begin + 1, (column + 1) * len(values) // columns)]
        points.append(round((high - sum(part) / len(part)) / (high - low) * (rows - 1)))
    dots = set()
    for column, row in enumerate(points):
        before = points[max(0, column - 1)]
        step = 1 if row >= before else -1
        dots |= {(between, column) for between in range(before + step if row != before else row, row + step, step)}
    return dots


def _line(dots: set[tuple[int, int]], row: int, fine: bool) -> str:
    columns = 1 + max(column for _, column in dots)
    if not fine:
        return "".join("*" if (row, column) in dots else " " for column in range(columns))
    cells = []
    for cell in range(0, columns, 2):
        bits = sum(DOTS[line][side] for line in range(4) for side in range(2) if (4 * row + line, cell + side) in dots)
        cells.append(chr(BRAILLE + bits) if bits else " ")
    return "".join(cells)


def _marks() -> tuple[bool, str]:
    """Tell whether stdout's encoding has braille, and what marks a validation."""
    try:
        "⣿◆".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False, "o"
    return True, "◆"


def save_curve(records: Sequence[StepRecord], path: Path, title: str) -> None:
    """Draw the curve into a file, whole or not at all."""
    from matplotlib.figure import Figure  # not pyplot, which would look for a display

    steps, rewards = [record.step for record in records], [record.reward for record in records]
    means = [sum(part := rewards[max(0, end - SMOOTHED) : end]) / len(part) for end in range(1, len(rewards) + 1)]
    validated = [(record.step, record.validation) for record in records if record.validation is not None]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes: Any = figure.subplots()
    axes.plot(steps, rewards, color="tab:blue", alpha=0.35, marker=".", label="mean reward of a step")
    axes.plot(steps, means, color="tab:blue", label=f"mean of {SMOOTHED} steps")
    other = axes.secondary_yaxis("right", functions=(accuracy_of, lambda share: 2 * share - 1))
    if validated:
        axes.plot(
            [step for step, _ in validated],
            [2 * share - 1 for _, share in validated],
            color="tab:red",
            marker="D",
            linestyle="none",
            label="accuracy in validation",
        )
    axes.set_xlabel("step")
    axes.set_ylabel("reward")
    other.set_ylabel("share of right answers")
    axes.set_title(title)
    axes.legend()
    save_figure(figure, path)
