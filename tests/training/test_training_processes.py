"""Runs in real processes: killed at any moment, out of disk, and two at once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from odd_task import SMALL, start

from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import LocalRegistry
from t2cli.training.checkpoint import RunFolder, new_run, run_to_resume

# Trains, and does what it is told after step 2.
SCRIPT = """
import resource, sys, time
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from odd_task import SMALL, open_base, start
from t2cli.errors import T2Error
from t2cli.registry.local import LocalRegistry
from t2cli.training.metrics import Silent

class Told(Silent):
    def step(self, record):
        print("step", record.step, flush=True)
        if record.step == 2 and sys.argv[4] == "disk full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
        elif record.step == 2:
            time.sleep(60)

run = start(open_base(sys.argv[2]), replace(SMALL, adapter=sys.argv[5]), listener=Told())
with run.folder.claimed():
    try:
        run.run(LocalRegistry([Path(sys.argv[3])]))
    except T2Error as error:
        print(error.message, flush=True)
        sys.exit(error.exit_code)
"""


@pytest.fixture
def command(counting_folder: Path, tmp_path: Path) -> list[str]:
    """Return the command of a process that trains into the registry of the test."""
    return [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(counting_folder), str(tmp_path / "experts")]


def finished_like_a_whole_run(
    folder: RunFolder, open_counting: Callable[[], AdaptedModel], registry: LocalRegistry
) -> None:
    """Resume the run, and compare its expert with that of a run that nothing interrupted."""
    resumed = start(open_counting(), folder=folder).run(registry)
    whole = start(open_counting(), folder.spec().config).run(registry)
    assert resumed.steps == SMALL.steps
    if resumed.adapter is None:
        assert resumed.entry.z_bytes() == whole.entry.z_bytes()
    else:
        first, second = (made.adapter / "adapter_model.safetensors" for made in (resumed, whole))
        assert first.read_bytes() == second.read_bytes()
    assert resumed.evaluation == whole.evaluation


@pytest.mark.parametrize("adapter", ["svf", "lora"])
def test_a_killed_process_loses_nothing(
    adapter: str, command: list[str], open_counting: Callable[[], AdaptedModel], registry: LocalRegistry
) -> None:
    if adapter == "lora":
        pytest.importorskip("peft")
    with subprocess.Popen([*command, "wait", adapter], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["step 1\n", "step 2\n"]
        process.kill()
    assert registry.list() == []
    folder = run_to_resume(open_counting().base.identity.folder_name, "odd")
    assert [path.name for path in folder.path.glob(".*")] == []  # no half-written file
    finished_like_a_whole_run(folder, open_counting, registry)


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_full_disk_leaves_the_last_checkpoint(
    command: list[str], open_counting: Callable[[], AdaptedModel], registry: LocalRegistry
) -> None:
    process = subprocess.run([*command, "disk full", "svf"], capture_output=True, text=True, check=False, timeout=60)
    assert process.returncode == 1, process.stderr
    *steps, message = process.stdout.splitlines()
    assert steps == ["step 1", "step 2"]
    assert "state.safetensors could not be written" in message
    folder = run_to_resume(open_counting().base.identity.folder_name, "odd")
    state = folder.load()
    assert state is not None
    assert state.step == 2
    assert [path.name for path in folder.path.iterdir() if path.name.endswith(".tmp")] == []
    finished_like_a_whole_run(folder, open_counting, registry)


def test_two_processes_that_start_at_once_train_in_two_folders(
    command: list[str], counting: AdaptedModel, tmp_path: Path
) -> None:
    from odd_task import spec_of

    home, spec = counting.base.identity.folder_name, spec_of(counting)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from t2cli.training.checkpoint import RunSpec, new_run\nfrom t2cli.config import TrainConfig\n"
        "spec = RunSpec('odd', 'odd', 'counting', sys.argv[3], TrainConfig())\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(*(new_run(sys.argv[2], spec).path for _ in range(20)), sep='\\n')"
    )
    arguments = [sys.executable, "-c", script, str(Path(__file__).parent), home, spec.weights]
    processes = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    paths = [line for process in processes for line in process.communicate("\n", timeout=30)[0].splitlines()]
    assert len(paths) == len(set(paths)) == 60
    assert new_run(home, spec).path.name == "61"


def test_the_time_of_an_interruption_is_not_counted(open_counting: Callable[[], AdaptedModel]) -> None:
    from t2cli.training.metrics import Silent, StepRecord

    class Stop(Silent):
        def step(self, record: StepRecord) -> None:
            raise KeyboardInterrupt

    registry = LocalRegistry([])
    first = start(open_counting(), listener=Stop())
    with pytest.raises(KeyboardInterrupt):
        first.run(registry)
    time.sleep(0.6)
    run = start(open_counting(), folder=first.folder, listener=Stop())
    with pytest.raises(KeyboardInterrupt):
        run.run(registry)
    records = run.folder.metrics.read()
    assert records[-1].elapsed == pytest.approx(sum(record.seconds for record in records))
