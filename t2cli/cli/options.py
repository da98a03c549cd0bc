"""The options that commands share, each defined once.

A command takes the ones it needs as parameters: `base: Base = DEFAULT_BASE, json: Json = False`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from t2cli.cli.completion import base_names, expert_names, task_names

if TYPE_CHECKING:
    from t2cli.cli.output import Output
    from t2cli.tasks.base import Task

DEFAULT_BASE = "smollm2-135m"

Base = Annotated[
    str,
    typer.Option(
        "--base", metavar="NAME", help="Base model: a name, a Hub id or a local folder.", autocompletion=base_names
    ),
]
OnlyBase = Annotated[
    str,
    typer.Option(
        "--base",
        metavar="NAME",
        help="Only experts made for this base: its name, folder or Hub id.",
        show_default="all",
        autocompletion=base_names,
    ),
]
RegistryPath = Annotated[
    Path | None,
    typer.Option(
        "--registry",
        metavar="PATH",
        help="Folder of experts.",
        show_default="T2_REGISTRY, else T2_HOME/registry and the shipped experts",
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps", "spread"],
    typer.Option("--device", help="Where to compute; spread: one base over all GPUs."),
]
AllowForeign = Annotated[
    bool, typer.Option("--allow-foreign", help="Use experts of a foreign base too, where the shapes fit.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No talk and no progress; warnings remain.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, max=2**63 - 1, help="Seed of everything random.")]
AsExpert = Annotated[
    str,
    typer.Option("--expert", metavar="REF", help="Answer as this expert; no pass 1.", autocompletion=expert_names),
]
TaskName = Annotated[
    str,
    typer.Option(
        "--task", metavar="TASK", help="What to learn: a built-in task or a YAML file.", autocompletion=task_names
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Read the task's questions from this file, from the train and test file of a folder, or from"
        " train=FILE and test=FILE (given twice; test=FILE alone to evaluate; other=FILE for dispatch).",
        show_default="the task's own source",
    ),
]
UnsafeCode = Annotated[
    bool,
    typer.Option("--unsafe-code", help="Run model-written code as you, without a sandbox, where the task needs it."),
]
CurvePlot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE.png", help="Also draw the reward curve into a file (.png, .pdf, .svg)."),
]
Patience = Annotated[
    int | None,
    typer.Option(
        "--patience",
        metavar="K",
        min=0,
        help="End after K validations without a better checkpoint; 0: never early.",
        show_default="0",
    ),
]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Also write events for TensorBoard into the run's folder.")
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE.png", help="Also draw the map into a file (.png, .pdf, .svg)."),
]
Examples = Annotated[
    str,
    typer.Option(
        "--examples", metavar="FILE.jsonl", help='Questions to search a mix with, a line each: {"prompt", "answer"}.'
    ),
]
AsReward = Annotated[
    str,
    typer.Option("--reward", metavar="KIND", help="How their answers are judged.", show_default="what they look like"),
]


def check_judge(tasks: Iterable[Task], out: Output) -> None:
    """Raise T2Error where a task runs model-written code and there is no sandbox for it; warn if none is to be used."""
    from t2cli.tasks.base import SpecTask, require_judge

    running = [task for task in tasks if require_judge(task)]
    if any(isinstance(task, SpecTask) and task.unsafe_code for task in running):
        out.warn("--unsafe-code: programs that the model writes run as you: they can read, change and send your files")
