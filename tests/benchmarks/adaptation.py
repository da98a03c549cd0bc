"""The paper's tables on the default base: strategies on tasks that experts were trained on, and on others.

    python tests/benchmarks/adaptation.py FOLDER [--task NAME]... [--adapt NAME]... [--n 300] [--seed 0]
        [--data gsm8k=FILE]...

Every task is one call of `t2 eval --adapt`, kept as a line of FOLDER/TASK.jsonl. What is there is not asked again, so
that a run may be interrupted and strategies may be added later. Then the tables are printed in Markdown, with p
adjusted over all comparisons (Holm), and the pictures are drawn into FOLDER (extra `plot`). `--tables` only prints.

Seen are the tasks of the experts that ship; few-shot and best learn from training and validation questions alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2cli.cli.eval_plots import Bar, draw
from t2cli.evaluation.confusion import Asked, Confusion
from t2cli.evaluation.statistics import holm
from t2cli.files import write_atomic

SEEN = ("math", "reasoning", "code")
UNSEEN = ("terms", "letters", "largest", "arc-easy")
STRATEGIES = ("best", "prompt", "few-shot")

Row = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """What is known of a task: its category, how many questions, and a row for each who answered; the base first."""

    task: str
    category: str
    n: int
    rows: dict[str, Row]


def measured(folder: Path, task: str) -> Measured | None:
    """Return what earlier calls found of a task."""
    path = folder / f"{task}.jsonl"
    if not path.exists():
        return None
    records = [json.loads(line) for line in path.read_text().splitlines()]
    rows = {row["expert"] or row["strategy"]: row for record in records for row in record["rows"]}
    if len({(record["n"], record["seed"]) for record in records}) > 1:
        raise SystemExit(f"{path} has calls with different questions: begin a new folder")
    return Measured(records[0]["task"], records[0]["category"], records[0]["n"], rows)


def measure(folder: Path, task: str, options: argparse.Namespace) -> None:
    """Ask what is not known of a task yet, and keep it."""
    known = measured(folder, task)
    missing = [name for name in options.adapt if known is None or name not in known.rows]
    if not missing:
        return
    command = [
        sys.executable,
        "-m",
        "t2cli",
        "eval",
        "--task",
        task,
        "--n",
        str(options.n),
        "--seed",
        str(options.seed),
    ]
    for name in missing:
        command += ["--adapt", name]
    for data in options.data:
        if data.startswith(f"{task}="):
            command += ["--data", data.removeprefix(f"{task}=")]
    print(f"{task}: {', '.join(missing)}", file=sys.stderr, flush=True)
    found = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, text=True, check=True).stdout
    path = folder / f"{task}.jsonl"
    write_atomic(path, (path.read_text() if path.exists() else "") + found)


def tables(found: Sequence[Measured], names: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the tables: accuracies, what was chosen, where the time went, and the confusion."""
    compared = [(task.task, name) for task in found for name in names if name in task.rows]
    p_values = [task.rows[name]["mcnemar_p"] for task in found for name in names if name in task.rows]
    adjusted = dict(zip(compared, holm(p_values), strict=True))
    yield "| task | n | base | " + " | ".join(names) + " |"
    yield "|---" * (3 + len(names)) + "|"
    for task in found:
        cells = [_cell(task.rows[name], adjusted[task.task, name]) if name in task.rows else "" for name in names]
        seen = "" if task.task in SEEN else " (unseen)"
        yield f"| `{task.task}`{seen} | {task.n} | {_accuracy(task.rows['none'])} | {' | '.join(cells)} |"
    yield ""
    yield "| task | best | few-shot | share of pass 1 |"
    yield "|---|---|---|---|"
    for task in found:
        shares = ", ".join(f"{n} {100 * task.rows[n]['pass1_share']:.0f} %" for n in names if n in task.rows)
        yield f"| `{task.task}` | {_chosen(task, 'best')} | {_alphas(task)} | {shares} |"
    for confusion in confusions_of(found):
        yield ""
        yield f"| {confusion.strategy}: questions of | " + " | ".join(confusion.columns) + " |"
        yield "|---" * (1 + len(confusion.columns)) + "|"
        for row in confusion.rows:
            yield f"| {row.label} | " + " | ".join(str(row.counts.get(name, 0)) for name in confusion.columns) + " |"
        if confusion.n:
            yield f"\n{confusion.strategy}: the task's own category for {confusion.right} of {confusion.n} questions"


def _accuracy(row: Row) -> str:
    return f"{row['accuracy']:.3f} [{row['ci95'][0]:.3f}, {row['ci95'][1]:.3f}]"


def _cell(row: Row, p: float) -> str:
    return f"{_accuracy(row)}, {100 * row['gain']:+.1f}, p {row['mcnemar_p']:.2g} ({p:.2g})"


def _chosen(task: Measured, name: str) -> str:
    return task.rows[name]["learned"]["chosen"] if name in task.rows else ""


def _alphas(task: Measured) -> str:
    if "few-shot" not in task.rows:
        return ""
    learned = task.rows["few-shot"]["learned"]
    alphas = ", ".join(f"{each['alpha']:.2f} {reference}" for reference, each in learned["alphas"].items())
    return f"{alphas} ({learned['chosen']})"


def confusions_of(found: Sequence[Measured]) -> list[Confusion]:
    """Return the matrix of every strategy that chooses categories."""
    names = dict.fromkeys(name for task in found for name, row in task.rows.items() if row.get("categories"))
    return [
        Confusion(
            name,
            tuple(Asked(t.task, t.category, t.rows[name]["categories"]) for t in found if name in t.rows),
        )
        for name in names
    ]


def pictures(folder: Path, found: Sequence[Measured], names: Sequence[str]) -> None:
    """Draw what t2 eval --plot draws, of all tasks together."""
    bars = [
        Bar(task.task, "base" if name == "none" else name, task.rows[name]["accuracy"], *task.rows[name]["ci95"])
        for task in found
        for name in ("none", *names)
        if name in task.rows
    ]
    alphas = [
        Bar(task.task, reference, each["alpha"], each["alpha"] - each["spread"], each["alpha"] + each["spread"])
        for task in found
        if "few-shot" in task.rows
        for reference, each in task.rows["few-shot"]["learned"]["alphas"].items()
    ]
    draw(folder, bars, confusions_of(found), alphas)


def main() -> None:
    """Measure what is missing and print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", action="append")
    parser.add_argument("--adapt", action="append")
    parser.add_argument("--data", action="append", default=[], metavar="TASK=FILE")
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    options.adapt = options.adapt or list(STRATEGIES)
    tasks = options.task or [*UNSEEN, *SEEN]
    options.folder.mkdir(parents=True, exist_ok=True)
    for task in [] if options.tables else tasks:
        measure(options.folder, task, options)
    found = [known for task in tasks if (known := measured(options.folder, task)) is not None]
    for line in tables(found, options.adapt):
        print(line)
    pictures(options.folder, found, options.adapt)


if __name__ == "__main__":
    main()
