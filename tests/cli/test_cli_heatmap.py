"""The map of numbers per layer and kind of matrix, as text."""

from __future__ import annotations

import io
import sys

import numpy
import pytest

from t2cli.cli.heatmap import PLAIN, SHADES, heat_map, level_of
from t2cli.registry.compare import grid

KINDS = ("self_attn.q_proj", "mlp.up_proj")


def vectors(layers: int) -> dict[str, numpy.ndarray]:
    """Return shifts that grow with the layer; the first layer has none, the last no up_proj."""
    names = [f"model.layers.{layer}.{kind}.weight" for layer in range(layers) for kind in KINDS]
    return {name: numpy.full(3, float(name.split(".")[2])) for name in names[:-1]}


def test_rows_are_modules_and_columns_layers() -> None:
    assert heat_map(grid(vectors(6))) == [
        "layer    0         5",
        "up_proj  ··░░▒▒▓▓██",
        "q_proj   ··░░▒▒▓▓████",
        "         · none  ░ 1  ▒ 2  ▓ 3  █ 4 to 5",
    ]


@pytest.mark.parametrize(("columns", "rows"), [(60, 1), (39, 1), (38, 2), (24, 2), (19, 3)])
def test_what_is_wider_than_the_terminal_goes_on_below(
    columns: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = heat_map(grid(vectors(30)))
    assert sum(line.startswith("layer") for line in lines) == rows
    assert max(map(len, lines[:-1])) <= columns
    assert sum(line.count("█") for line in lines[:-1]) == 15  # layers 22 to 29, and the last has one matrix only


def test_colour_only_at_a_terminal_and_plain_marks_where_the_encoding_has_no_shades(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert "\x1b[38;5;196m█\x1b[0m" in heat_map(grid(vectors(6)))[2]
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    lines = heat_map(grid(vectors(6)))
    assert lines[2].split() == ["q_proj", "".join(2 * PLAIN[level] for level in (0, 1, 2, 3, 4, 4))]
    assert not set("".join(lines)) & set(SHADES)


def test_levels() -> None:
    assert [level_of(value, 1.0, 5.0) for value in (0, 1, 1.9, 2, 3, 4, 5)] == [0, 1, 1, 2, 3, 4, 4]
    assert level_of(0.7, 0.7, 0.7) == 4
