"""The folder of an export: new, whole or absent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from t2cli.errors import UsageError
from t2cli.files import folder_being_made


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block succeeds.

    Raises UsageError if something is there, before the block runs or at its end.
    """
    if path.exists() or path.is_symlink():
        raise _taken(path)
    try:
        with folder_being_made(path) as folder:
            yield folder
    except FileExistsError as error:
        raise _taken(path) from error


def _taken(path: Path) -> UsageError:
    return UsageError(f"{path} is there already", hint="give another -o, or remove it first")
