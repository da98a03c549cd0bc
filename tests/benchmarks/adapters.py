"""SVF beside a LoRA of rank 16, each at several learning rates and seeds, on equal questions, rollouts and updates.

    python tests/benchmarks/adapters.py OUT [--tasks math reasoning code] [--steps 30] [--seeds 0 1 2] [--workers 1]
                                        [--test 500] [--table] [--device cpu|cuda]

Every run is one of t2's own training (RLOO, the same questions and sampling seeds), in a process of its own with one
thread, in a folder of its own under OUT. Runs that were interrupted go on, those that are done are not made again, and
`--table` only prints what there is. At first each adapter is tried at all its rates with the first seed; the rate with
the best checkpoint on 200 validation questions (of equal ones that with the higher mean reward) is trained with the
other seeds too. Checkpoints are judged on the same held-out test questions, which chose nothing. What a run came to is
in its result.json and test-N.json; its checkpoint, state.safetensors, is not needed any more.

The runs behind RESULTS.md are in tests/benchmarks/adapter_runs: as OUT it shows them, and what is missing is made.

The difference of the adapters is that of their mean over the seeds; its interval comes from drawing the questions anew.

area      mean share of right rollouts over all steps, each of fresh training questions at temperature 1
test      of the best checkpoint of each run, greedy; a run that found nothing better than the base counts as the base
seconds   median per step; memory: the most that the process had, resident or on the GPU
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clock import peak_megabytes
from table import print_table

if TYPE_CHECKING:
    from t2cli.training.checkpoint import RunFolder, RunState
    from t2cli.training.loop import TrainingRun

BASE = "smollm2-135m"
RATES = {"svf": (2e-3, 6e-3, 2e-2, 6e-2), "lora": (2e-4, 4e-4, 8e-4, 1.6e-3)}  # lower ones were no better on any task
VALIDATION, TEST_SEED = 200, 0

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


def train(run: Run, options: argparse.Namespace) -> None:
    """Make or finish a run in this process, and write its result."""
    from t2cli.cli.session import open_model
    from t2cli.config import preset
    from t2cli.tasks.base import load_task
    from t2cli.training.checkpoint import FORMAT, RunFolder, RunSpec
    from t2cli.training.loop import TrainingRun
    from t2cli.training.metrics import Silent

    out = options.out
    config = preset(
        "t2",
        adapter=run.adapter,
        learning_rate=run.rate,
        seed=run.seed,
        steps=options.steps,
        validation_examples=VALIDATION,
    )
    adapted = open_model(BASE, device=options.device, quiet=True)
    if run.adapter == "svf":
        adapted.prepare(quiet=True)
    folder = RunFolder(run.folder(out))
    folder.path.mkdir(parents=True, exist_ok=True)
    spec = RunSpec(run.task, run.folder(out).name, BASE, adapted.base.identity.weights, config)
    record = {"format": FORMAT, **vars(spec), "config": vars(config)}
    (folder.path / "run.json").write_text(json.dumps(record, indent=1))
    task = load_task(run.task)
    training = TrainingRun(adapted, task, spec, folder, Silent())
    write(folder.path / "result.json", result_of(training, training.train(), folder))


def result_of(training: TrainingRun, state: RunState, folder: RunFolder) -> Result:
    """Return the figures of a run that has ended."""
    records = folder.metrics.read()
    return {
        "parameters": training.policy.flat.numel(),
        "base_validation": state.base_accuracy,
        "validation": state.best_accuracy,
        "best_step": state.best_step,
        "collapses": state.collapses,
        "area": statistics.mean((record.reward + 1) / 2 for record in records),
        "last": statistics.mean((record.reward + 1) / 2 for record in records[-5:]),
        "curve": [round((record.reward + 1) / 2, 4) for record in records],
        "validations": {record.step: record.validation for record in records if record.validation is not None},
        "kl": next((record.kl for record in reversed(records) if record.kl is not None), None),
        "seconds_per_step": statistics.median(record.seconds for record in records if record.validation is None),
        "memory_mb": peak_megabytes(),
    }


def ask_base(run: Run, options: argparse.Namespace) -> None:
    """Let the base answer the test questions of a run's task."""
    from t2cli.cli.session import open_model
    from t2cli.evaluation.evaluate import answers_in_use
    from t2cli.tasks.base import load_task

    task = load_task(run.task)
    adapted = open_model(BASE, device=options.device, quiet=True)
    right = answers_in_use(adapted, task, task.examples("test", options.test, TEST_SEED)).right
    write(base_file(run.task, options), {"right": list(right)})


def judge(run: Run, options: argparse.Namespace) -> None:
    """Let the best checkpoint of a run answer the test questions; the base's answers stand for a run without one."""
    from t2cli.cli.session import open_model
    from t2cli.config import preset
    from t2cli.evaluation.evaluate import answers_in_use
    from t2cli.tasks.base import load_task
    from t2cli.training.checkpoint import RunFolder
    from t2cli.training.policy import policy_of

    out, task = options.out, load_task(run.task)
    result = run.result(out)
    assert result is not None
    if result["best_step"]:
        adapted = open_model(BASE, device=options.device, quiet=True)
        policy = policy_of(adapted, preset("t2", adapter=run.adapter, learning_rate=run.rate, seed=run.seed))
        state = RunFolder(run.folder(out)).load(policy.flat.numel())
        assert state is not None
        with policy.answering(state.tensors["best"]):
            examples = task.examples("test", options.test, TEST_SEED)
            right = list(answers_in_use(policy.text_model, task, examples).right)
    else:
        right = json.loads(base_file(run.task, options).read_text())["right"]
    write(test_file(run, options), {"right": right})


PARTS = {"base": ask_base, "train": train, "judge": judge}


def base_file(task: str, options: argparse.Namespace) -> Path:
    """Return where it is kept which test questions the base has right."""
    out: Path = options.out
    return out / task / f"base-{options.test}.json"


def test_file(run: Run, options: argparse.Namespace) -> Path:
    """Return where it is kept which test questions a run has right."""
    return run.folder(options.out) / f"test-{options.test}.json"


def write(path: Path, record: Result) -> None:
    """Write a file that is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(record) + "\n")
    temporary.replace(path)


def best_rate(task: str, adapter: str, seed: int, out: Path) -> float | None:
    """Return the rate that an adapter is used with; None while a rate is not yet tried."""
    found = {rate: Run(task, adapter, rate, seed).result(out) for rate in RATES[adapter]}
    if not all(found.values()):
        return None
    return max(found, key=lambda rate: (found[rate]["validation"], found[rate]["area"]))  # type: ignore[index]


def tuned_runs(options: argparse.Namespace) -> list[Run]:
    """Return the runs at the chosen rates, as far as these are known."""
    rates = {(t, a): best_rate(t, a, options.seeds[0], options.out) for t in options.tasks for a in RATES}
    return [Run(t, a, rate, seed) for seed in options.seeds for (t, a), rate in rates.items() if rate is not None]


def spawn(what: str, run: Run, options: argparse.Namespace) -> None:
    """Do a part of a run in a process of its own."""
    arguments = [what, run.task, run.adapter, str(run.rate), str(run.seed)]
    command = [sys.executable, __file__, str(options.out), "--steps", str(options.steps), "--test", str(options.test)]
    command += ["--device", options.device]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--one", *arguments], env=environment, check=False)
    print(f"{what} {run.folder(options.out)}: {'done' if done.returncode == 0 else 'FAILED'}", flush=True)


def make(run: Run, options: argparse.Namespace) -> None:
    """Train and judge a run as far as that is not done. At once: its checkpoint is large, and need not be kept then."""
    if not run.result(options.out):
        spawn("train", run, options)
    if run.result(options.out) and not test_file(run, options).is_file():
        spawn("judge", run, options)


def work(options: argparse.Namespace) -> None:
    """Make what is missing: the base's answers, each task's first seed at all rates, then the others at the best."""
    with ThreadPoolExecutor(options.workers) as pool:
        asked = [Run(task, "svf", 0.0, 0) for task in options.tasks if not base_file(task, options).is_file()]
        list(pool.map(lambda run: spawn("base", run, options), asked))
        for task in options.tasks:
            first = [
                Run(task, adapter, rate, options.seeds[0])
                for pair in zip(*RATES.values(), strict=True)
                for adapter, rate in zip(RATES, pair, strict=True)
            ]
            list(pool.map(lambda run: make(run, options), first))
            tuned = [run for run in tuned_runs(options) if run.task == task]
            list(pool.map(lambda run: make(run, options), tuned))


def show(options: argparse.Namespace) -> None:
    """Print what every run came to, and the comparison at the chosen rates."""
    rows = []
    for path in sorted(options.out.glob("*/*/result.json")):
        result, test = json.loads(path.read_text()), path.with_name(f"test-{options.test}.json")
        figures = [f"{result[key]:.3f}" for key in ("base_validation", "validation", "area", "last")]
        figures.append(f"{statistics.mean(json.loads(test.read_text())['right']):.3f}" if test.is_file() else "-")
        kl = "-" if result["kl"] is None else f"{result['kl']:.2f}"
        seconds, memory = f"{result['seconds_per_step']:.1f}", f"{result['memory_mb']:.0f}"
        rows.append([f"{path.parts[-3]} {path.parts[-2]}", *figures, str(result["collapses"]), kl, seconds, memory])
    print_table(("run", "base", "validation", "area", "last 5", "test", "collapses", "KL", "s/step", "MB"), rows)
    print()
    rows = [row for task in options.tasks for adapter in RATES for row in compared(task, adapter, options)]
    print_table(("task, adapter", "rate", "test by seed", "mean", "gain", "p", "area", "numbers", "s/step", "MB"), rows)
    for task in options.tasks:
        svf, lora = (rights(task, adapter, options) for adapter in RATES)
        if svf and lora:
            low, difference, high = difference_of(svf, lora)
            interval = f"{100 * low:+.1f} to {100 * high:+.1f}"
            print(f"{task}: svf - lora {100 * difference:+.1f} points, 95 % interval {interval}")


def rights(task: str, adapter: str, options: argparse.Namespace) -> dict[Run, list[bool]]:
    """Return which test questions each judged run at the adapter's rate has right."""
    runs = [run for run in tuned_runs(options) if (run.task, run.adapter) == (task, adapter)]
    files = {run: test_file(run, options) for run in runs}
    return {run: json.loads(file.read_text())["right"] for run, file in files.items() if file.is_file()}


def difference_of(svf: dict[Run, list[bool]], lora: dict[Run, list[bool]]) -> tuple[float, float, float]:
    """Return the difference in accuracy between its 95 % bounds, by 10,000 draws of the questions."""
    of_svf, of_lora = ([statistics.mean(each) for each in zip(*runs.values(), strict=True)] for runs in (svf, lora))
    differences = [a - b for a, b in zip(of_svf, of_lora, strict=True)]
    draw = random.Random(0)
    means = sorted(statistics.fmean(draw.choices(differences, k=len(differences))) for _ in range(10_000))
    return means[249], statistics.fmean(differences), means[9_749]


def compared(task: str, adapter: str, options: argparse.Namespace) -> list[list[str]]:
    """Return the row of an adapter at its rate, over the seeds that are judged."""
    from t2cli.evaluation.statistics import paired_gain

    judged = rights(task, adapter, options)
    if not judged:
        return []
    base = json.loads(base_file(task, options).read_text())["right"]
    pairs = [paired_gain(base, right) for right in judged.values()]
    results: list[Result] = [result for run in judged if (result := run.result(options.out))]
    mean = statistics.mean(pair.expert_accuracy for pair in pairs)
    by_seed = " ".join(f"{pair.expert_accuracy:.3f}" for pair in pairs)
    gain = f"{100 * (mean - pairs[0].base_accuracy):+.1f}"
    worst = f"{max(pair.mcnemar_p for pair in pairs):.1g}"
    columns = [statistics.mean(r[key] for r in results) for key in ("area", "parameters", "seconds_per_step")]
    figures = [f"{columns[0]:.3f}", f"{columns[1]:,.0f}", f"{columns[2]:.1f}"]
    memory = f"{max(r['memory_mb'] for r in results):.0f}"
    rate = next(iter(judged)).rate
    return [[f"{task}, {adapter}", f"{rate:g}", by_seed, f"{mean:.3f}", gain, worst, *figures, memory]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["math", "reasoning", "code"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", nargs=5, metavar=("WHAT", "TASK", "ADAPTER", "RATE", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        what, task, adapter, rate, seed = options.one
        run = Run(task, adapter, float(rate), int(seed))
        PARTS[what](run, options)
        return
    if not options.table:
        work(options)
    show(options)


if __name__ == "__main__":
    main()
