"""SVF beside a LoRA of rank 16, each at several learning rates and seeds, on equal questions, rollouts and updates.

    python tests/benchmarks/adapters.py OUT [--tasks math reasoning code] [--steps 30] [--seeds 0 1 2] [--workers 1]
                                        [--test 500] [--table] [--device cpu|cuda]

Every run is one of t2's own training (RLOO, the same questions and sampling seeds), in a process of its own with one
thread, in a folder of its own under OUT. A step has 12 questions with 4 rollouts each, also where `t2 train` would
ask more because they teach too little. Runs that were interrupted go on, those that are done are not made again, and
`--table` only prints what there is. At first each adapter is tried at all its rates with the first seed; the rate
with the best checkpoint on 200 validation questions (of equal ones that with the higher mean reward) is trained with
the other seeds too. Then the slower adapter is trained again with as many steps as the quicker one's runs had time
for, so that its rate decays within them. Checkpoints are judged on the same held-out test questions, which chose
nothing. What a run came to is in its result.json and test-N.json; its checkpoint, state.safetensors, is not needed
any more.

The runs behind RESULTS.md are in tests/benchmarks/adapter_runs: as OUT it shows them, and what is missing is made.

What the columns of the tables mean is in adapter_tables.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from adapter_tables import RATES, Result, Run, base_file, runs_in_equal_time, tables, test_file, tuned_runs
from clock import peak_megabytes

if TYPE_CHECKING:
    from t2cli.training.checkpoint import RunFolder, RunState
    from t2cli.training.loop import TrainingRun

BASE = "smollm2-135m"
VALIDATION, TEST_SEED = 200, 0


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
        steps=run.steps or options.steps,
        validation_examples=VALIDATION,
        rounds=1,  # a step has as many rollouts, whatever they teach
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


def write(path: Path, record: Result) -> None:
    """Write a file that is there as a whole or not at all."""
    from t2cli.files import write_atomic

    write_atomic(path, json.dumps(record) + "\n")


def spawn(what: str, run: Run, options: argparse.Namespace) -> None:
    """Do a part of a run in a process of its own."""
    arguments = [what, run.task, run.adapter, str(run.rate), str(run.seed), str(run.steps)]
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
    """Make what is missing, in order: the base's answers, all rates with one seed, more seeds, the equal time."""
    with ThreadPoolExecutor(options.workers) as pool:

        def finish(runs: Sequence[Run]) -> None:
            list(pool.map(lambda run: make(run, options), runs))

        asked = [Run(task, "svf", 0.0, 0) for task in options.tasks if not base_file(task, options).is_file()]
        list(pool.map(lambda run: spawn("base", run, options), asked))
        for task in options.tasks:
            first = [
                Run(task, adapter, rate, options.seeds[0])
                for pair in zip(*RATES.values(), strict=True)
                for adapter, rate in zip(RATES, pair, strict=True)
            ]
            finish(first)
            if not all(run.result(options.out) for run in first):
                continue  # one failed, so that the best rate is not known
            finish([run for adapter in RATES for run in tuned_runs(task, adapter, options)])
            finish(runs_in_equal_time(task, options))


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
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)  # what, and the fields of the Run
    options = parser.parse_args(arguments)
    if options.one:
        what, task, adapter, rate, seed, steps = options.one
        run = Run(task, adapter, float(rate), int(seed), int(steps))
        PARTS[what](run, options)
        return
    if not options.table:
        work(options)
    print("\n".join(tables(options)))


if __name__ == "__main__":
    main()
