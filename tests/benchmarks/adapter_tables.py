"""The runs of SVF beside LoRA that adapters.py makes, and the tables of RESULTS.md, in Markdown.

The difference of the adapters is that of their mean over the seeds; its interval comes from drawing the questions anew.

validation     the best checkpoint, on 200 questions that chose it
in equal time  test of runs that plan no more steps than the quicker adapter's had time for, by the medians per step
area           mean share of right rollouts over all steps, each of fresh training questions at temperature 1
test           of the best checkpoint, greedy; a run that found nothing better than the base counts as the base
seconds        median per step; memory: the most that the process had, resident or on the GPU
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# To be tried for each; lower ones were behind on all three tasks for both.
RATES = {"svf": (2e-3, 6e-3, 2e-2, 6e-2), "lora": (2e-4, 4e-4, 8e-4, 1.6e-3)}
NAMES = {"svf": "SVF", "lora": "LoRA"}

Result = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run of the grid."""

    task: str
    adapter: str
    rate: float
    seed: int
    steps: int = 0  # 0: as many as all; else as many as the quicker adapter's run had time for

    def folder(self, out: Path) -> Path:
        """Return where it lies."""
        name = f"{self.adapter}-{self.rate:g}-{self.seed}"
        return out / self.task / (f"{name}-{self.steps}steps" if self.steps else name)

    def result(self, out: Path) -> Result | None:
        """Return what came out, None before its end."""
        path = self.folder(out) / "result.json"
        return json.loads(path.read_text()) if path.is_file() else None


def base_file(task: str, options: argparse.Namespace) -> Path:
    """Return where it is kept which test questions the base has right."""
    out: Path = options.out
    return out / task / f"base-{options.test}.json"


def test_file(run: Run, options: argparse.Namespace) -> Path:
    """Return where it is kept which test questions a run has right."""
    return run.folder(options.out) / f"test-{options.test}.json"


def rights(run: Run, options: argparse.Namespace) -> list[bool] | None:
    """Return which test questions a run has right; None before it is judged."""
    path = test_file(run, options)
    return list(json.loads(path.read_text())["right"]) if path.is_file() else None


def tried(task: str, adapter: str, options: argparse.Namespace) -> dict[float, Result]:
    """Return what an adapter came to at each rate that was tried with the first seed, in the order of the rates."""
    seed, found = options.seeds[0], dict[float, Result]()
    for path in (options.out / task).glob(f"{adapter}-*-{seed}/result.json"):
        found[float(path.parent.name.removeprefix(f"{adapter}-").removesuffix(f"-{seed}"))] = json.loads(
            path.read_text()
        )
    return dict(sorted(found.items()))


def tuned_runs(task: str, adapter: str, options: argparse.Namespace) -> list[Run]:
    """Return the runs of an adapter at the best of the rates that were tried, done or not; none before one was."""
    found = tried(task, adapter, options)
    if not found:
        return []
    rate = max(found, key=lambda rate: (found[rate]["validation"], found[rate]["area"]))
    return [Run(task, adapter, rate, seed) for seed in options.seeds]


@dataclass(frozen=True)
class Tuned:
    """What the runs of an adapter at its rate came to, as far as they are judged."""

    runs: Sequence[Run]
    results: Sequence[Result]
    rights: Sequence[Sequence[bool]]

    @property
    def adapter(self) -> str:
        """Return whose runs these are."""
        return self.runs[0].adapter

    def mean(self, key: str) -> float:
        """Return the mean of a figure over the seeds."""
        return float(statistics.mean(result[key] for result in self.results))


def runs_in_equal_time(task: str, options: argparse.Namespace) -> list[Run]:
    """Return the slower adapter's runs in the quicker one's time, done or not; none before the times are known."""
    pair = [tuned_runs(task, adapter, options) for adapter in RATES]
    results = [[run.result(options.out) for run in runs] for runs in pair]
    if not all(results) or not all(result for each in results for result in each):
        return []
    seconds = [statistics.mean(result["seconds_per_step"] for result in each if result) for each in results]
    steps = int(options.steps * min(seconds) / max(seconds))
    return [replace(run, steps=steps) for run in pair[seconds.index(max(seconds))]]


def judged(runs: Sequence[Run], options: argparse.Namespace) -> Tuned | None:
    """Return what runs came to, None before one of them is judged."""
    found = [(run, run.result(options.out), rights(run, options)) for run in runs]
    done = [(run, result, right) for run, result, right in found if result and right]
    return Tuned(*zip(*done, strict=True)) if done else None


def tables(options: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the tables of all tasks that something was run of."""
    for task in options.tasks:
        yield from rates_table(task, options)
        svf, lora = (judged(tuned_runs(task, adapter, options), options) for adapter in RATES)
        if svf and lora:
            yield from comparison(task, svf, lora, options)


def rates_table(task: str, options: argparse.Namespace) -> Iterator[str]:
    """Yield the table of what an adapter came to at each rate, with the first seed."""
    yield f"| `{task}`, seed {options.seeds[0]} | rate | validation | area | test | KL at the end | fell back |"
    yield "|---|---|---|---|---|---|---|"
    for adapter in RATES:
        for rate, result in tried(task, adapter, options).items():
            right = rights(Run(task, adapter, rate, options.seeds[0]), options)
            test = f"{statistics.mean(right):.3f}" if right else "-"
            kl = "-" if result["kl"] is None else f"{result['kl']:.2f}"
            figures = f"{result['validation']:.3f} | {result['area']:.3f} | {test} | {kl} | {result['collapses']}"
            yield f"| {NAMES[adapter]} | {rate:g} | {figures} |"
    yield ""


def comparison(task: str, svf: Tuned, lora: Tuned, options: argparse.Namespace) -> Iterator[str]:
    """Yield the table of both at their rates, and their difference after as many steps and in as much time."""
    from t2cli.evaluation.statistics import paired_gain

    base = json.loads(base_file(task, options).read_text())["right"]
    shorter = judged(runs_in_equal_time(task, options), options)
    yield (
        f"| `{task}` | rate | test by seed | mean | gain | largest p of a seed | area | validation | in equal time "
        "| numbers | seconds a step | peak memory |"
    )
    yield "|---" * 12 + "|"
    for each in (svf, lora):
        pairs = [paired_gain(base, right) for right in each.rights]
        mean = statistics.mean(pair.expert_accuracy for pair in pairs)
        cells = [
            NAMES[each.adapter],
            f"{each.runs[0].rate:g}",
            ", ".join(f"{pair.expert_accuracy:.3f}" for pair in pairs),
            f"{mean:.3f}",
            f"{100 * (mean - pairs[0].base_accuracy):+.1f}",
            f"{max(pair.mcnemar_p for pair in pairs):.1g}",
            f"{each.mean('area'):.3f}",
            f"{each.mean('validation'):.3f}",
            in_equal_time(each, shorter, options),
            f"{each.mean('parameters'):,.0f}",
            f"{each.mean('seconds_per_step'):.1f}",
            f"{max(result['memory_mb'] for result in each.results) / 1000:.1f} GB",
        ]
        yield "| " + " | ".join(cells) + " |"
    yield f"\nSVF minus LoRA: {difference(svf, lora)}."
    if shorter:
        in_time = (shorter if each.adapter == shorter.adapter else each for each in (svf, lora))
        yield f"In equal time: {difference(*in_time)}."
    yield ""


def in_equal_time(each: Tuned, shorter: Tuned | None, options: argparse.Namespace) -> str:
    """Return the test accuracies by seed, and the steps, of an adapter in the time of the quicker one."""
    if not shorter:
        return "-"
    runs, steps = (shorter, shorter.runs[0].steps) if each.adapter == shorter.adapter else (each, options.steps)
    return f"{', '.join(f'{statistics.mean(right):.3f}' for right in runs.rights)} ({steps} steps)"


def difference(svf: Tuned, lora: Tuned) -> str:
    """Say the difference of the mean accuracies and its interval, in points."""
    low, mean, high = difference_of(svf.rights, lora.rights)
    return f"{100 * mean:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}"


def difference_of(svf: Sequence[Sequence[bool]], lora: Sequence[Sequence[bool]]) -> tuple[float, float, float]:
    """Return the difference in accuracy between its 95 % bounds, by 10,000 draws of the questions."""
    of_svf, of_lora = ([statistics.mean(each) for each in zip(*rights, strict=True)] for rights in (svf, lora))
    differences = [a - b for a, b in zip(of_svf, of_lora, strict=True)]
    draw = random.Random(0)
    means = sorted(statistics.fmean(draw.choices(differences, k=len(differences))) for _ in range(10_000))
    return means[249], statistics.fmean(differences), means[9_749]
