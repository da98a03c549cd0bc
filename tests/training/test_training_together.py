"""Training in two processes started by torchrun: the same z as one process makes, and an end with those that die."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from odd_task import SMALL, spec_of, start

from t2cli.config import TrainConfig
from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import LocalRegistry
from t2cli.training.checkpoint import RunFolder, new_run, run_to_resume

ENOUGH = replace(SMALL, enough=1.0)  # of some steps the first lesson, of others more

Open = Callable[[], AdaptedModel]

# Trains the run in a folder; what each process ends with is printed with its rank.
SCRIPT = """
import hashlib, os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from odd_task import OddTask, open_base, start
from t2cli.registry.local import LocalRegistry
from t2cli.training.checkpoint import RunFolder
from t2cli.training.distributed import joined
from t2cli.training.metrics import Silent

def tell(*words):
    # One write with a line break on both sides: what the other process or gloo prints cannot come in between.
    os.write(1, ("\\n" + " ".join(map(str, words)) + "\\n").encode())

class Told(Silent):
    def step(self, record):
        tell("step", record.step, "of", run.team.rank, os.getpid())
        tell("validation", run.team.rank, record.step, record.validation)
        if sys.argv[5] == "wait" and record.step == 2 and run.team.rank == 1:
            time.sleep(60)

class Disagreeing(OddTask):
    def reward(self, example, completion):
        return super().reward(example, completion) if sys.argv[5] != "disagree" or team.leads else -1.0

if sys.argv[5] == "diverge":  # the numbers of the second process overflow once, while it samples the third step
    from t2cli.errors import DivergedError
    from t2cli.training import rollouts
    sampled, calls = rollouts.generate, []
    def overflowing(*arguments, **options):
        calls.append(1)
        if os.environ["RANK"] == "1" and len(calls) == 3:
            raise DivergedError("overflow", hint="smaller weights")
        return sampled(*arguments, **options)
    rollouts.generate = overflowing

with joined("cpu") as team:
    adapted = open_base(sys.argv[2])
    adapted.model.double()
    adapted.team = team
    run = start(adapted, folder=RunFolder(Path(sys.argv[4])), listener=Told(), task=Disagreeing())
    trained = run.run(LocalRegistry([Path(sys.argv[3])]))
    z = hashlib.sha256(run.policy.flat.detach().numpy().tobytes()).hexdigest()
    tell("done", team.rank, team.size, z, trained.entry.reference)
"""


@pytest.fixture
def together(counting_folder: Path, tmp_path: Path) -> Callable[[RunFolder, str], subprocess.Popen[str]]:
    """Return a function that starts two processes that train a run together."""
    script = tmp_path / "together.py"
    script.write_text(SCRIPT)

    def begin(folder: RunFolder, how: str) -> subprocess.Popen[str]:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
        arguments = [str(Path(__file__).parent), str(counting_folder), str(tmp_path / "experts"), str(folder.path), how]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.Popen(
            [*launch, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    return begin


@pytest.fixture
def alone(open_counting: Open, tmp_path: Path) -> RunFolder:
    """Return a run that one process has finished."""
    return finished_alone(open_counting(), ENOUGH, tmp_path)


def finished_alone(adapted: AdaptedModel, config: TrainConfig, folder: Path) -> RunFolder:
    """Train in this process; in float64, for rounding may choose another token."""
    adapted.model.double()
    run = start(adapted, config)
    run.run(LocalRegistry([folder / "alone"]))
    return run.folder


def z_of(folder: RunFolder) -> torch.Tensor:
    state = folder.load()
    assert state is not None
    assert state.step == SMALL.steps
    return state.tensors["z"]


def fresh(adapted: AdaptedModel, config: TrainConfig = ENOUGH) -> RunFolder:
    return new_run(adapted.base.identity.folder_name, spec_of(adapted, config))


def ended(training: subprocess.Popen[str]) -> str:
    """Return what the processes of a training printed, when all of them have ended well."""
    with training as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output


def assert_as_alone(output: str, folder: RunFolder, alone: RunFolder, registry: LocalRegistry) -> None:
    done = [line.split()[1:] for line in output.splitlines() if line.startswith("done")]
    assert sorted(line[:2] for line in done) == [["0", "2"], ["1", "2"]]
    assert len({z for _, _, z, _ in done}) == 1  # bit for bit the same in both
    (entry,) = registry.list()
    assert {reference for *_, reference in done} == {entry.reference}
    assert folder.published == entry.reference
    difference = float((z_of(folder) - z_of(alone)).abs().max())
    assert difference < 1e-5, difference
    assert float((z_of(alone) - 1).abs().max()) > 0.01
    mine, other = folder.metrics.read(), alone.metrics.read()
    assert [record.step for record in mine] == [record.step for record in other]
    for one, two in zip(mine, other, strict=True):
        assert (one.reward, one.tokens, one.validation) == (two.reward, two.tokens, two.validation)
        assert one.informative == pytest.approx(two.informative)
        assert one.kl == (two.kl if two.kl is None else pytest.approx(two.kl, rel=1e-4, abs=1e-9))


def test_two_processes_train_what_one_does(
    together: Callable[[RunFolder, str], subprocess.Popen[str]],
    alone: RunFolder,
    counting: AdaptedModel,
    tmp_path: Path,
) -> None:
    folder = fresh(counting)
    output = ended(together(folder, "go"))
    assert_as_alone(output, folder, alone, LocalRegistry([tmp_path / "experts"]))


def test_two_processes_share_the_candidates_of_an_evolution(
    together: Callable[[RunFolder, str], subprocess.Popen[str]], counting: AdaptedModel, tmp_path: Path
) -> None:
    config = replace(SMALL, trainer="evolution", population=16, prompts_per_step=4, sigma=0.1, learning_rate=2.0)
    alone = finished_alone(counting, config, tmp_path)
    folder = fresh(counting, config)
    output = ended(together(folder, "go"))
    assert_as_alone(output, folder, alone, LocalRegistry([tmp_path / "experts"]))


def test_processes_that_judge_differently_agree_on_what_is_best(
    together: Callable[[RunFolder, str], subprocess.Popen[str]], counting: AdaptedModel, tmp_path: Path
) -> None:
    """A reward of somebody's own may be of two minds; what one process finds wrong the other must not find right."""
    folder = fresh(counting)
    output = ended(together(folder, "disagree"))
    words = [line.split() for line in output.splitlines()]
    heard = {rank: [line[2:] for line in words if line[:2] == ["validation", rank]] for rank in ("0", "1")}
    assert len(heard["0"]) == SMALL.steps
    assert heard["0"] == heard["1"]
    assert heard["0"] == [[str(record.step), str(record.validation)] for record in folder.metrics.read()]
    (entry,) = LocalRegistry([tmp_path / "experts"]).list()
    assert {line[-1] for line in words if line[:1] == ["done"]} == {entry.reference}
    (evaluation,) = entry.manifest.evaluation
    assert 0 < evaluation.expert_accuracy <= 0.5  # one of the two finds nothing right, and judges half


def test_numbers_that_overflow_in_one_process_send_all_back_to_the_best_checkpoint(
    together: Callable[[RunFolder, str], subprocess.Popen[str]], counting: AdaptedModel, tmp_path: Path
) -> None:
    folder = fresh(counting, replace(SMALL, rounds=1))
    output = ended(together(folder, "diverge"))
    assert [record.collapse for record in folder.metrics.read()] == ["", "", "overflow", ""]
    state = folder.load()
    assert state is not None
    assert (state.step, state.collapses, state.restarted) == (SMALL.steps, 1, 3)
    done = [line.split()[1:] for line in output.splitlines() if line.startswith("done")]
    assert sorted(line[0] for line in done) == ["0", "1"]
    assert len({z for _, _, z, _ in done}) == 1
    assert [entry.reference for entry in LocalRegistry([tmp_path / "experts"]).list()] == ["odd@1"]


def test_the_death_of_one_ends_all_and_the_run_goes_on_later(
    together: Callable[[RunFolder, str], subprocess.Popen[str]],
    alone: RunFolder,
    counting: AdaptedModel,
    tmp_path: Path,
) -> None:
    folder = fresh(counting)
    with together(folder, "wait") as process:
        assert process.stdout is not None
        said: dict[str, str] = {}
        while "1" not in said:  # until the second process waits after its step 2
            found = re.match(r"step 2 of (\d) (\d+)", process.stdout.readline())
            said |= {found[1]: found[2]} if found else {}
        os.kill(int(said["1"]), signal.SIGKILL)
        process.communicate(timeout=60)
    assert process.returncode != 0
    assert not folder.finished
    assert run_to_resume(counting.base.identity.folder_name, "odd").path == folder.path
    output = ended(together(folder, "go"))
    assert_as_alone(output, folder, alone, LocalRegistry([tmp_path / "experts"]))
