"""t2 curve: how the reward of a training rose, from its run's folder alone."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from t2cli.cli.chart import reward_curve, save_curve
from t2cli.cli.completion import expert_names
from t2cli.cli.options import DEFAULT_BASE, Base, CurvePlot, Json, Quiet
from t2cli.cli.output import Output
from t2cli.cli.pictures import check_picture
from t2cli.errors import NotFoundError
from t2cli.lookup import near_matches

if TYPE_CHECKING:
    from t2cli.training.checkpoint import RunFolder


def curve(
    run: Annotated[
        str,
        typer.Argument(
            metavar="EXPERT|FOLDER",
            help="An expert that was trained here, NAME or NAME@VERSION, or a run's folder.",
            autocompletion=expert_names,
        ),
    ],
    plot: CurvePlot = None,
    base: Base = DEFAULT_BASE,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the reward curve of a training, also while it goes on.

    NAME is the newest run of that name for --base, NAME@VERSION the run that published it.
    Validations are marked. Experts that were trained elsewhere have no run here.
    """
    from t2cli.paths import expanded
    from t2cli.training.checkpoint import RunFolder

    check_picture(plot)
    out = Output(json=json, quiet=quiet)
    place = expanded(run)
    folder = RunFolder(place) if (place / "run.json").is_file() else _run_of(_folder_of(base, quiet), run)
    records = folder.metrics.done()
    if not records:
        raise NotFoundError(
            f"the run in {folder.path} has no finished step",
            hint="wait for its first step, or start it again if it has ended",
        )
    out.emit("curve", {"path": str(folder.path), "steps": [asdict(record) for record in records]})
    for line in reward_curve(records):
        out.data(line)
    if plot is not None:
        save_curve(records, plot, f"{folder.spec().expert}: reward in training")
        out.say(f"wrote {plot}")


def _folder_of(base: str, quiet: bool) -> str:
    """Return what the folder of a base's runs is called."""
    from t2cli.cli.session import for_base
    from t2cli.models.catalog import CATALOG, locate
    from t2cli.models.identity import identify

    if base in CATALOG:  # known without its files
        return for_base(base, quiet).label
    return identify(locate(base, quiet=quiet), quiet=quiet).folder_name


def _run_of(base_folder: str, expert: str) -> RunFolder:
    """Return the run that published NAME@VERSION, or the newest of NAME."""
    from t2cli.registry.reference import ExpertRef
    from t2cli.training.checkpoint import names_of_runs, runs_of

    ref = ExpertRef.parse(expert)
    runs = runs_of(base_folder, ref.name)
    if str(ref) != ref.name:
        runs = [run for run in runs if run.published == str(ref)]
    if not runs:
        hint = "t2 show has what is known of experts that were trained elsewhere"
        near = near_matches(ref.name, names_of_runs(base_folder))
        raise NotFoundError(
            f"no run of {expert} for {base_folder} was made here", hint=f"{near}; {hint}" if near else hint
        )
    return next((run for run in reversed(runs) if run.metrics.done()), runs[-1])  # some end before their first step
