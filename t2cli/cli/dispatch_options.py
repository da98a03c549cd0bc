"""How certain pass 1 has to be, and whether it mixes: options for whoever takes a strategy."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from t2cli.config import DispatchConfig
from t2cli.dispatch.decision import FEW_SHOT
from t2cli.errors import UsageError

OptionalShare = Optional[float]  # noqa: UP045

Threshold = Annotated[
    OptionalShare,
    typer.Option(
        "--threshold",
        metavar="P",
        help="Leave a question to the base unless its category has this probability.",
        show_default="what the strategy advises",
    ),
]
Soft = Annotated[bool, typer.Option("--soft", help="Mix the experts by the probabilities of their categories.")]


def dispatch_config(threshold: float | None, soft: bool, adapt: str, *, by_hand: bool) -> DispatchConfig:
    """Return what --threshold and --soft ask for.

    Raises UsageError for a threshold that is no probability, and for either option where nothing is dispatched.
    """
    given = [*(["--threshold"] if threshold is not None else []), *(["--soft"] if soft else [])]
    if given and (by_hand or adapt in ("none", FEW_SHOT)):
        raise UsageError(
            f"{' and '.join(given)} need{'s' * (len(given) == 1)} a strategy that looks at each question",
            hint=f"leave out --expert and --mix, and --adapt none or {FEW_SHOT}",
        )
    try:
        return DispatchConfig(threshold, soft)
    except ValueError as error:
        raise UsageError(f"--{error}", hint="0.5 leaves a question to the base unless one category has half") from error
