"""A number per layer and kind of matrix as shades, in the terminal or as a picture."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2cli.cli.output import shows_colour
from t2cli.cli.pictures import save_figure

if TYPE_CHECKING:
    from t2cli.registry.compare import Grid

SHADES = "·░▒▓█"  # nothing at all, then quarters of what lies between the smallest and the largest number
PLAIN = ".-+*#"  # where the encoding of stdout has no shades
COLOURS = ("", "38;5;24", "38;5;37", "38;5;178", "38;5;196")


def heat_map(grid: Grid) -> list[str]:
    """Return lines of shades, a row per kind of matrix and a column per layer, as wide as stdout's terminal."""
    from t2cli.registry.compare import short_names

    names = short_names(grid.modules)
    margin = max(map(len, [*names.values(), "layer"])) + 2
    room = max(shutil.get_terminal_size().columns - margin, 10)
    cell = 2 if 2 * len(grid.layers) <= room else 1
    marks, colour = _shades(), shows_colour(sys.stdout)
    lines = []
    for begin in range(0, len(grid.layers), room // cell):
        layers = grid.layers[begin : begin + room // cell]
        lines.append(f"{'layer':<{margin}}{_scale(layers, cell)}".rstrip())
        for module in grid.modules:
            cells = "".join(_cell(grid, module, layer, marks, colour) * cell for layer in layers)
            lines.append(f"{names[module]:<{margin}}{cells}".rstrip())
    low, high = grid.range
    levels = range(1, 5) if high > low else (4,)
    bounds = [f"{marks[level]} {low + (high - low) * (level - 1) / 4:.2g}" for level in levels]
    lines.append(f"{'':<{margin}}{marks[0]} none  {'  '.join(bounds)} to {high:.2g}")
    return lines


def _scale(layers: Sequence[int | None], cell: int) -> str:
    """Return the numbers of every fifth layer, each above its column."""
    text = ""
    for column, layer in enumerate(layers):
        if layer is not None and layer % 5 == 0 and len(text) <= cell * column:
            text = f"{text:<{cell * column}}{layer} "
    return text


def _cell(grid: Grid, module: str, layer: int | None, marks: str, colour: bool) -> str:
    value = grid.values.get((module, layer))
    if value is None:
        return " "
    level = level_of(value, *grid.range)
    return f"\x1b[{COLOURS[level]}m{marks[level]}\x1b[0m" if colour and level else marks[level]


def level_of(value: float, low: float, high: float) -> int:
    """Return 0 for nothing at all, else the quarter of [low, high] that a value is in: 1 to 4."""
    if value == 0:
        return 0
    return min(4, 1 + int(4 * (value - low) / (high - low))) if high > low else 4


def _shades() -> str:
    try:
        SHADES.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return PLAIN
    return SHADES


def save_picture(grid: Grid, path: Path, title: str) -> None:
    """Draw the map into a file, whole or not at all."""
    from matplotlib.figure import Figure  # not pyplot, which would look for a display

    from t2cli.registry.compare import short_names

    numbers = [[grid.values.get((module, layer), float("nan")) for layer in grid.layers] for module in grid.modules]
    names = short_names(grid.modules)
    figure = Figure(figsize=(3 + 0.25 * len(grid.layers), 1.5 + 0.3 * len(grid.modules)), layout="constrained")
    axes: Any = figure.subplots()
    image = axes.imshow(numbers, aspect="auto", vmin=0, cmap="viridis")
    axes.set_yticks(range(len(grid.modules)), [names[module] for module in grid.modules])
    step = max(1, len(grid.layers) // 15)
    axes.set_xticks(range(0, len(grid.layers), step), [str(layer) for layer in grid.layers[::step]])
    axes.set_xlabel("layer")
    axes.set_title(title)
    figure.colorbar(image, label="root mean square")
    save_figure(figure, path)
