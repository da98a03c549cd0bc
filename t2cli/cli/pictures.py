"""Pictures in files: what is asked of their names before anything is computed, and how they are written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from t2cli.errors import T2Error, UsageError
from t2cli.files import check_writable, writing
from t2cli.paths import expanded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".pdf", ".svg")


def check_picture(path: Path | None) -> None:
    """Raise UsageError unless a picture can have that name, and T2Error where it cannot be written.

    Nobody should hear after hours of training that the place for the picture does not exist.
    """
    if path is None:
        return
    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"{path} names no kind of picture", hint=f"end it in {', '.join(PICTURES)}")
    if expanded(path).is_dir():
        raise UsageError(f"{path} is a folder", hint="name a file in it, as in --plot picture.png")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise T2Error(
            "a picture needs matplotlib, which is not installed",
            hint='install the extra "plot": pip install "t2cli[plot]"; without --plot the map is shown as text',
        ) from error
    check_writable(expanded(path))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a file, in the format that its name ends in, whole or not at all."""
    with writing(expanded(path)) as temporary:
        figure.savefig(temporary, format=path.suffix.lower().removeprefix("."))
