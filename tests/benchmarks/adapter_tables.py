"""The runs of SVF beside LoRA that adapters.py makes, and the tables of RESULTS.md, in Markdown.

The difference of the adapters is that of their mean over the seeds; its interval comes from drawing the questions anew.

validation     the best checkpoint, on 200 questions that chose it
in equal time  the same with no more steps than the quicker adapter's whole run had time for, by the medians per step
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
from dataclasses import dataclass
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

    def folder(self, out: Path) -> Path:
        """Return where it lies."""
        return out / self.task / f"{self.adapter}-{self.rate:g}-{self.seed}"

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

    def mean(self, key: str) -> float:
        """Return the mean of a figure over the seeds."""
        return float(statistics.mean(result[key] for result in self.results))


def tuned(task: str, adapter: str, options: argparse.Namespace) -> Tuned | None:
    """Return what an adapter came to, None before a run at its rate is judged."""
    found = [(run, run.result(options.out), rights(run, options)) for run in tuned_runs(task, adapter, options)]
    judged = [(run, result, right) for run, result, right in found if result and right]
    return Tuned(*zip(*judged, strict=True)) if judged else None


def tables(options: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the tables of all tasks that something was run of."""
    for task in options.tasks:
        yield from rates_table(task, options)
        svf, lora = (tuned(task, adapter, options) for adapter in RATES)
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
    """Yield the table of both adapters at their rates, and their difference."""
    from t2cli.evaluation.statistics import paired_gain

    base = json.loads(base_file(task, options).read_text())["right"]
    time = min(options.steps * each.mean("seconds_per_step") for each in (svf, lora))
    yield (
        f"| `{task}` | rate | test by seed | mean | gain | largest p of a seed | area | validation | in equal time "
        "| numbers | seconds a step | peak memory |"
    )
    yield "|---" * 12 + "|"
    for each in (svf, lora):
        pairs = [paired_gain(base, right) for right in each.rights]
        mean = statistics.mean(pair.expert_accuracy for pair in pairs)
        cells = [
            NAMES[each.runs[0].adapter],
            f"{each.runs[0].rate:g}",
            ", ".join(f"{pair.expert_accuracy:.3f}" for pair in pairs),
            f"{mean:.3f}",
            f"{100 * (mean - pairs[0].base_accuracy):+.1f}",
            f"{max(pair.mcnemar_p for pair in pairs):.1g}",
            f"{each.mean('area'):.3f}",
            f"{each.mean('validation'):.3f}",
            f"{statistics.mean(within(result, time / each.mean('seconds_per_step')) for result in each.results):.3f}",
            f"{each.mean('parameters'):,.0f}",
            f"{each.mean('seconds_per_step'):.1f}",
            f"{max(result['memory_mb'] for result in each.results) / 1000:.1f} GB",
        ]
        yield "| " + " | ".join(cells) + " |"
    low, difference, high = difference_of(svf.rights, lora.rights)
    yield f"\nSVF minus LoRA: {100 * difference:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}.\n"


def within(result: Result, steps: float) -> float:
    """Return the best validation of a run up to a step."""
    found = [accuracy for step, accuracy in result["validations"].items() if int(step) <= steps + 1e-6]
    return float(max([result["base_validation"], *found]))


def difference_of(svf: Sequence[Sequence[bool]], lora: Sequence[Sequence[bool]]) -> tuple[float, float, float]:
    """Return the difference in accuracy between its 95 % bounds, by 10,000 draws of the questions."""
    of_svf, of_lora = ([statistics.mean(each) for each in zip(*rights, strict=True)] for rights in (svf, lora))
    differences = [a - b for a, b in zip(of_svf, of_lora, strict=True)]
    draw = random.Random(0)
    means = sorted(statistics.fmean(draw.choices(differences, k=len(differences))) for _ in range(10_000))
    return means[249], statistics.fmean(differences), means[9_749]
