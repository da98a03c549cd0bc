"""The options of t2 train alone."""

from __future__ import annotations

from typing import Annotated, Literal, Optional

import typer

from t2cli.config import ADAPTER_DEFAULTS, PRESETS, TRAINER_DEFAULTS, TrainConfig

OptionalInt = Optional[int]  # noqa: UP045
OptionalFloat = Optional[float]  # noqa: UP045
DEFAULTS = TrainConfig()
RATES = (
    f"LoRA: {ADAPTER_DEFAULTS['lora']['learning_rate']}, evolution: {TRAINER_DEFAULTS['evolution']['learning_rate']}, "
    f"paper and reference: {PRESETS['paper'].learning_rate}"
)

Name = Annotated[str, typer.Option("--name", metavar="NAME", help="The expert's name.", show_default="the task's")]
Preset = Annotated[
    str, typer.Option("--preset", metavar="NAME", help=f"A tested set of settings: {', '.join(PRESETS)}.")
]
TrainerName = Annotated[
    Literal["policy-gradient", "evolution", "labels"],
    typer.Option(
        "--trainer",
        help="How to learn; evolution needs no backward pass, labels is for tasks whose answers are categories.",
        show_default="what suits the task",
    ),
]
Adapter = Annotated[
    Literal["svf", "lora"],
    typer.Option("--adapter", help="What to train; a LoRA is saved in the run's folder, to compare with."),
]
Rank = Annotated[OptionalInt, typer.Option("--rank", min=1, help="Rank of a LoRA.", show_default=str(DEFAULTS.rank))]
Steps = Annotated[
    OptionalInt,
    typer.Option(
        "--steps",
        min=1,
        help="Updates.",
        show_default=f"{DEFAULTS.steps}; labels: {TRAINER_DEFAULTS['labels']['steps']}",
    ),
]
LearningRate = Annotated[
    OptionalFloat,
    typer.Option("--learning-rate", min=0.0, help="Step size.", show_default=f"{DEFAULTS.learning_rate}; {RATES}"),
]
Targets = Annotated[
    Literal["all", "mlp", "attention"], typer.Option("--targets", help="Which linear layers are adapted.")
]
OwnRewardName = Annotated[
    str,
    typer.Option(
        "--reward",
        metavar="MODULE:FUNCTION",
        help="Judge answers with a Python function of yours, (answer, completion) -> bool or a number from -1 to 1."
        " Its code is run.",
        show_default="the task's",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the newest unfinished run of that name.")]
