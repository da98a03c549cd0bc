"""What the training tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from odd_task import open_base

from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import LocalRegistry


@pytest.fixture
def counting(counting_folder: Path) -> AdaptedModel:
    """Return a tiny base that likes to say digits."""
    return open_base(counting_folder)


@pytest.fixture
def open_counting(counting_folder: Path) -> Callable[[], AdaptedModel]:
    """Return a function that loads that base anew, as another process would."""
    return lambda: open_base(counting_folder)


@pytest.fixture
def registry(tmp_path: Path) -> LocalRegistry:
    """Return an empty registry."""
    return LocalRegistry([tmp_path / "experts"])
