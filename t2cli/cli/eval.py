"""t2 eval: how right experts answer on a task, beside the base on the same held-out questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from t2cli.cli.completion import expert_names, task_names
from t2cli.cli.eval_held_out import seen_before
from t2cli.cli.eval_plots import PlotFolder, check_folder, make_folder, save_pictures
from t2cli.cli.eval_strategies import (
    Adapts,
    ShotsOption,
    Strategies,
    answerers,
    choice_lines,
    confusion_lines,
    strategies_of,
)
from t2cli.cli.options import (
    DEFAULT_BASE,
    AllowForeign,
    Base,
    Data,
    Device,
    Json,
    Quiet,
    RegistryPath,
    Seed,
    UnsafeCode,
    check_judge,
)
from t2cli.cli.output import Output, interval, one_line, table
from t2cli.errors import UsageError

if TYPE_CHECKING:
    from t2cli.evaluation.evaluate import Answerer, Evaluation, Row
    from t2cli.registry.local import ExpertEntry
    from t2cli.registry.resolve import Resolver
    from t2cli.tasks.base import Example, Task

    Questions = list[tuple[Task, list[Example]]]

HEADER = ("WHO", "RIGHT", "ACCURACY", "95 %", "GAIN", "GAIN 95 %", "P", "HOLM P", "TOKENS", "CUT")
COMPARED = {"GAIN", "GAIN 95 %", "P", "HOLM P"}  # nothing to say where the base is alone


Tasks = Annotated[
    list[str],
    typer.Option(
        "--task",
        metavar="TASK",
        help="What to ask: a built-in task or a YAML file; may be given more than once.",
        autocompletion=task_names,
    ),
]
Experts = Annotated[
    list[str] | None,
    typer.Argument(metavar="EXPERT", help="Experts; none: the base alone.", autocompletion=expert_names),
]
Split = Annotated[
    Literal["test", "validation", "train"],
    typer.Option("--split", help="Only the questions of `test` are new to every expert."),
]
Save = Annotated[
    Path | None, typer.Option("--save", metavar="FILE.jsonl", help="Also write every question and answer.")
]


def evaluate(
    task: Tasks,
    experts: Experts = None,
    adapt: Adapts = None,
    shots: ShotsOption = None,
    data: Data = None,
    n: Annotated[int, typer.Option("--n", metavar="N", min=1, help="How many questions of each task.")] = 300,
    split: Split = "test",
    save: Save = None,
    plot: PlotFolder = None,
    unsafe_code: UnsafeCode = False,
    allow_foreign: AllowForeign = False,
    base: Base = DEFAULT_BASE,
    registry: RegistryPath = None,
    device: Device = "auto",
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure experts and strategies on a task, each beside the base on the same held-out questions.

    Answers are greedy. Intervals are 95 %: Wilson's of an accuracy, Newcombe's of a gain, which is in
    points; P is McNemar's, exact and paired. TOKENS is the mean length of an answer, CUT counts those
    that had not ended at four times the task's limit. Of a strategy it is said which experts it chose
    and what share of the time that took, and where it chooses categories, which for the questions of
    each task.
    """
    from t2cli.tasks.base import up_to

    out = Output(json=json, quiet=quiet)
    check_folder(plot)
    tasks = _tasks(out, task, data or [], unsafe_code)
    questions = [(task, up_to(task, split, n, seed)) for task in tasks]
    resolver = _resolver(base, registry, allow_foreign=allow_foreign, quiet=quiet)
    entries = _found(resolver, experts or [])
    strategies = strategies_of(adapt or [], shots, tasks, resolver, split, seed)
    for warning in resolver.warnings:
        out.warn(warning)
    seen = seen_before(out, split, tasks, entries, resolver, strategies=bool(strategies.names))
    make_folder(plot)
    with _saved(save) as written:
        evaluations = _asked(out, questions, seen, entries, strategies, resolver, base, device, split, seed)
        if written is not None:
            _write_answers(written, evaluations)
    _report(out, evaluations, resolver.base.label)
    if save is not None:
        out.say(f"wrote {save}")
    for picture in save_pictures(evaluations, plot):
        out.say(f"wrote {picture}")


def _resolver(base: str, registry: Path | None, *, allow_foreign: bool, quiet: bool) -> Resolver:
    from t2cli.cli.session import for_base
    from t2cli.paths import registry_search_path
    from t2cli.registry.local import LocalRegistry
    from t2cli.registry.resolve import Resolver

    entries = LocalRegistry(registry_search_path(registry))
    return Resolver(entries, for_base(base, quiet), allow_foreign=allow_foreign)


def _tasks(out: Output, names: Sequence[str], data: Sequence[str], unsafe_code: bool) -> list[Task]:
    """Return the tasks; what cannot be is refused here, before a model is loaded."""
    from t2cli.tasks.base import load_spec, load_task
    from t2cli.tasks.data_files import parse_data

    if data and len(names) > 1:
        raise UsageError("--data goes with one task", hint="evaluate on one task at a time")
    files = parse_data(data, load_spec(names[0]).name)
    tasks = [load_task(name, files, unsafe_code=unsafe_code) for name in names]
    found = [task.name for task in tasks]
    if twice := [name for name in found if found.count(name) > 1]:
        raise UsageError(f"the task {twice[0]} is named twice", hint="name it once")
    check_judge(tasks, out)
    return tasks


def _found(resolver: Resolver, experts: Sequence[str]) -> list[ExpertEntry]:
    """Return the experts that are named; raises as Resolver.find, and UsageError for one that is named twice."""
    entries: list[ExpertEntry] = []
    for expert in experts:
        entry = resolver.find(expert)
        if entry.digest in [known.digest for known in entries]:
            raise UsageError(f"{expert} is named twice: it is {entry.reference}", hint="name every expert once")
        entries.append(entry)
    return entries


@contextmanager
def _saved(path: Path | None) -> Iterator[Path | None]:
    """Yield a file to write that becomes `path` when the block succeeds; that it can be written is known at once."""
    if path is None:
        yield None
        return
    from t2cli.files import writing
    from t2cli.paths import expanded

    if expanded(path).is_dir():
        raise UsageError(f"{path} is a folder", hint="name a file, as in --save answers.jsonl")
    with writing(expanded(path)) as temporary:
        yield temporary


def _asked(
    out: Output,
    questions: Questions,
    seen: set[str],
    entries: Sequence[ExpertEntry],
    strategies: Strategies,
    resolver: Resolver,
    base: str,
    device: str,
    split: str,
    seed: int,
) -> list[Evaluation]:
    """Ask the base, once for each task, all experts and all strategies; a bar shows how long that still takes."""
    from t2cli.cli.progress import progress
    from t2cli.cli.session import open_model
    from t2cli.dispatch.two_pass import TwoPass
    from t2cli.evaluation import evaluate as evaluation
    from t2cli.registry.vectors import read_z

    vectors = [read_z(entry) for entry in entries]  # a damaged expert is found now, not after the others
    adapted = open_model(base, device=device, quiet=out.quiet)
    for z in vectors:
        adapted.check(z)
    if vectors or strategies.names:
        adapted.prepare(quiet=out.quiet)
    two_pass = TwoPass(adapted, resolver.registry, quiet=out.quiet, allow_foreign=resolver.allow_foreign)
    total = (1 + len(entries) + len(strategies.names)) * sum(len(examples) for _, examples in questions)
    with progress("evaluate", total, unit="answers", quiet=out.quiet) as bar:
        others: list[Answerer] = [
            evaluation.an_expert(adapted, z, entry.reference, entry.digest)
            for entry, z in zip(entries, vectors, strict=True)
        ]
        others += answerers(strategies, two_pass, seed, bar.note)
        for warning in two_pass.resolver.warnings:
            if warning not in resolver.warnings:  # said before
                out.warn(warning)
        return [
            evaluation.evaluate(
                task,
                examples,
                evaluation.the_base(adapted),
                others,
                split=split,
                seed=seed,
                held_out=task.name not in seen,
                on_done=bar.advance,
            )
            for task, examples in questions
        ]


def _write_answers(path: Path, evaluations: Sequence[Evaluation]) -> None:
    import json

    from t2cli.evaluation.report import answer_records

    with path.open("w", encoding="utf-8") as file:
        for evaluation in evaluations:
            file.writelines(json.dumps(record) + "\n" for record in answer_records(evaluation))


def _report(out: Output, evaluations: Sequence[Evaluation], base: str) -> None:
    from t2cli.evaluation.confusion import confusions
    from t2cli.evaluation.report import adjusted, record

    holm = adjusted(evaluations)
    comparisons = sum(p is not None for row in holm for p in row)
    for evaluation, p_values in zip(evaluations, holm, strict=True):
        out.emit("eval", {"base": base, **record(evaluation, p_values, comparisons)})
        for line in _lines(evaluation, p_values, comparisons, base):
            out.data(line)
    for confusion in confusions(evaluations):
        for line in confusion_lines(confusion):
            out.data(line)
    if comparisons > 1:
        out.data(
            f"P is that of one comparison alone; with {comparisons} of them read HOLM P, which holds for all together"
        )


def _lines(evaluation: Evaluation, holm: Sequence[float | None], comparisons: int, base: str) -> Iterator[str]:
    """Yield what people read of a task: a title, the table, and a verdict on everybody but the base."""
    from t2cli.evaluation.report import verdict

    held_out = "" if evaluation.held_out else ", NOT HELD OUT"
    yield one_line(
        f"{evaluation.task.name}: n = {len(evaluation.examples)} questions of the split {evaluation.split}{held_out}, "
        f"seed {evaluation.seed}, base {base}"
    )
    hidden = COMPARED if not comparisons else {"HOLM P"} if comparisons == 1 else set()
    shown = [i for i, name in enumerate(HEADER) if name not in hidden]
    rows = [_cells(row, p) for row, p in zip(evaluation.rows, holm, strict=True)]
    picked = [[row[i] for i in shown] for row in (HEADER, *rows)]
    yield table(picked[0], picked[1:], right=range(1, len(shown)))
    for row, p in zip(evaluation.rows, holm, strict=True):
        if row.paired is not None and p is not None:
            named = "Holm p" if comparisons > 1 else "p"
            yield one_line(f"{row.who.name}: {verdict(row.paired.gain, p)} ({named} = {p:.2g})")
    for row in evaluation.rows:
        yield from choice_lines(row)


def _cells(row: Row, holm: float | None) -> list[str]:
    answers, paired = row.answers, row.paired
    measured = [f"{sum(answers.right)}/{len(answers.right)}", f"{answers.accuracy:.3f}", interval(row.ci95, "{:.3f}")]
    compared = ["-"] * 4
    if paired is not None and holm is not None:
        points = (100 * paired.ci95[0], 100 * paired.ci95[1])
        gain = f"{100 * paired.gain:+.1f}"
        compared = [gain, interval(points, "{:+.1f}"), f"{paired.mcnemar_p:.2g}", f"{holm:.2g}"]
    return [row.who.name, *measured, *compared, f"{answers.mean_tokens:.1f}", str(sum(answers.cut))]
