"""What generation needs of a model: the base it is made from, and rows that follow their batch."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from t2cli.models.base import BaseModel
from t2cli.models.memory import Room
from t2cli.models.team import Team

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class TextModel(Protocol):
    """A model that answers as whatever is in use in it; models/adapted.py's AdaptedModel is one."""

    @property
    def base(self) -> BaseModel:
        """Return the base: its tokens, its device, what ends an answer."""

    @property
    def model(self) -> PreTrainedModel:
        """Return what is called with token ids."""

    @property
    def team(self) -> Team:
        """Return the processes that answer together."""

    @property
    def answers_at_once(self) -> Room:
        """Return how many prompts are answered in a batch."""

    @property
    def rows(self) -> int | None:
        """Return how many rows the batch must have because each answers in its own way; None: any number."""

    @property
    def rows_differ(self) -> bool:
        """Tell whether each row answers in its own way."""

    def rows_kept(self) -> contextlib.AbstractContextManager[None]:
        """Undo at the end of the block what `select_rows` does inside it."""

    def select_rows(self, rows: torch.Tensor) -> None:
        """Keep, repeat or reorder what each row answers as, where rows differ."""


@dataclass(frozen=True)
class PlainModel:
    """A base's model all rows of which answer alike."""

    base: BaseModel
    team: Team = field(default_factory=Team)
    answers_at_once: Room = field(default_factory=lambda: Room(32, "answers"))
    rows: None = None
    rows_differ: bool = False

    @property
    def model(self) -> PreTrainedModel:
        """Return the base's model."""
        return self.base.model

    def rows_kept(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing: no row has anything of its own."""
        return contextlib.nullcontext()

    def select_rows(self, rows: torch.Tensor) -> None:
        """Do nothing: no row has anything of its own."""
