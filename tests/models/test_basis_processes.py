"""Decompositions by real processes: killed at any moment, several at once, interrupted, and short of disk."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from t2cli.config import DecomposeConfig
from t2cli.files import claimed
from t2cli.models.basis_cache import basis_files, basis_folder, decompose, load_bases
from t2cli.models.catalog import locate
from t2cli.models.identity import identify
from t2cli.models.targets import checkpoint_targets

resource = pytest.importorskip("resource")

LAYERS = 5
TARGETS = 7 * LAYERS

# Loads everything once; for each line "HOME COUNT SECONDS" it forks processes that start at once, kills the first
# of them after that time (not for 0), and says how each ended.
SERVER = """
import os, signal, sys, threading, time
from tqdm import tqdm
from t2cli.config import DecomposeConfig
from t2cli.models.basis_cache import decompose
from t2cli.models.catalog import locate
from t2cli.models.identity import identify
files = locate(sys.argv[1])
identity = identify(files, quiet=True)
os.environ["T2_HOME"] = sys.argv[2]
decompose(files, identity, DecomposeConfig(), quiet=True)
print("ready", flush=True)
for line in sys.stdin:
    home, count, seconds = line.split()
    gate, opened = os.pipe()
    children = []
    for _ in range(int(count)):
        child = os.fork()
        if child == 0:
            os.close(opened)
            os.read(gate, 1)
            os.environ["T2_HOME"] = home
            tqdm.set_lock(threading.RLock())  # else all share a semaphore, which one that is killed may hold
            os._exit(decompose(files, identity, DecomposeConfig(), quiet=True).computed)
        children.append(child)
    started = time.monotonic()
    os.close(opened)
    if float(seconds):
        time.sleep(float(seconds))
        os.kill(children[0], signal.SIGKILL)
    print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), flush=True)
    print(time.monotonic() - started, flush=True)
"""


class Ended(NamedTuple):
    """How processes ended: what each computed, or minus the signal that killed it."""

    codes: list[int]
    seconds: float


@pytest.fixture(scope="module")
def many_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a base whose decomposition takes long enough to be interrupted."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=4
    )
    folder = tmp_path_factory.mktemp("many") / "layers"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the T2_HOME of the server's own decomposition."""
    return tmp_path_factory.mktemp("undisturbed")


@pytest.fixture(scope="module")
def server(many_layers: Path, undisturbed: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that starts others in no time."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(many_layers), str(undisturbed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},  # threads do not fork
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.communicate(timeout=60)


@pytest.fixture
def decomposed(server: subprocess.Popen[str]) -> Callable[..., Ended]:
    """Return a function that decomposes into a home with some processes at once, and may kill the first."""

    def run(home: Path, count: int = 1, *, killed_after: float = 0) -> Ended:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(f"{home} {count} {killed_after}\n")
        server.stdin.flush()
        codes = [int(code) for code in server.stdout.readline().split()]
        return Ended(codes, float(server.stdout.readline()))

    return run


def contents(home: Path) -> dict[str, bytes]:
    """Return everything in the folders of bases, hidden files and folders included."""
    (folder,) = (home / "cache" / "bases").iterdir()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_at_any_moment_loses_at_most_the_matrix_at_hand(
    decomposed: Callable[..., Ended], undisturbed: Path, tmp_path: Path
) -> None:
    wanted = contents(undisturbed)
    assert len(wanted) == TARGETS
    alone = decomposed(tmp_path / "alone")
    assert alone.codes == [TARGETS]
    assert contents(tmp_path / "alone") == wanted
    chance = random.Random(0)
    in_the_middle = 0
    for attempt in range(20):
        home = tmp_path / str(attempt)
        (home / "cache" / "bases" / "layers").mkdir(parents=True)  # for a kill before anything is written
        decomposed(home, killed_after=chance.uniform(0, alone.seconds))
        (home / "cache" / "bases" / "layers").rmdir()
        folders = list((home / "cache" / "bases").iterdir())
        left = contents(home) if folders else {}
        whole = {name: content for name, content in left.items() if not name.startswith(".")}
        assert whole.items() <= wanted.items(), "what is there is whole"
        assert len(left) - len(whole) <= 2, "one matrix was at hand: a lock and what was being written"
        in_the_middle += 0 < len(whole) < len(wanted)
        assert decomposed(home).codes == [len(wanted) - len(whole)]
        assert contents(home) == wanted
    assert in_the_middle >= 5


@pytest.mark.parametrize("count", [2, 3])
def test_processes_at_once_share_the_work(
    count: int, decomposed: Callable[..., Ended], undisturbed: Path, tmp_path: Path
) -> None:
    computed = decomposed(tmp_path, count).codes
    assert sum(computed) == TARGETS
    assert min(computed) > 0, computed
    assert contents(tmp_path) == contents(undisturbed)


def test_the_others_finish_what_a_killed_process_leaves(
    decomposed: Callable[..., Ended], undisturbed: Path, tmp_path: Path
) -> None:
    alone = decomposed(tmp_path / "alone").seconds
    killed, *others = decomposed(tmp_path / "home", 3, killed_after=alone / 6).codes
    assert killed == -signal.SIGKILL
    assert all(0 < code <= TARGETS for code in others)
    assert contents(tmp_path / "home") == contents(undisturbed)


def command(folder: Path, **options: object) -> subprocess.Popen[str]:
    """Start `t2 decompose` on a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "t2cli", "decompose", str(folder), "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        **options,  # type: ignore[call-overload]
    )


def test_what_another_process_makes_is_waited_for_and_made_if_it_gives_up(many_layers: Path) -> None:
    files = locate(str(many_layers))
    identity, targets = identify(files, quiet=True), checkpoint_targets(files.folder)
    cache = basis_files(identity, "float32")
    held = targets[5]
    with claimed(cache.claim(held.weight)) as ours:
        assert ours
        process = command(many_layers)
        deadline = time.monotonic() + 60
        while cache.missing(targets) != [held] and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        assert cache.missing(targets) == [held]
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, f"{TARGETS} made in" in out) == (0, True), errors
    assert len(load_bases(identity, targets)) == TARGETS


def test_ctrl_c_stops_cleanly_and_the_next_run_goes_on(many_layers: Path) -> None:
    files = locate(str(many_layers))
    identity = identify(files, quiet=True)
    folder = basis_folder(identity)
    for _ in range(5):  # a process that was done before the signal came proves nothing
        shutil.rmtree(folder, ignore_errors=True)
        process = command(many_layers)
        deadline = time.monotonic() + 60
        while len(list(folder.glob("[!.]*"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.0005)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
        if process.returncode:
            break
    assert (process.returncode, out, errors.splitlines()[-1]) == (130, "", "interrupted")
    assert not list(folder.glob(".*"))
    done = len(list(folder.iterdir()))
    assert 3 <= done < TARGETS
    assert decompose(files, identity, DecomposeConfig(), quiet=True).computed == TARGETS - done


def test_a_disk_that_fills_up_is_said_and_leaves_nothing_partial(many_layers: Path) -> None:
    # The limit on file sizes ends a write half-way, as a full disk does.
    process = command(many_layers, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (15000, 15000)))
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    said = errors.splitlines()
    assert len(said) == 3, errors
    assert said[0].startswith(f"decomposing layers: {TARGETS} matrices")
    assert "could not be written" in said[1]
    assert said[2].startswith("hint: ")
    files = locate(str(many_layers))
    identity = identify(files, quiet=True)
    assert not list(basis_folder(identity).iterdir())
    assert decompose(files, identity, DecomposeConfig(), quiet=True).computed == TARGETS
