"""Hostile programs neither harm nor fool: each is judged wrong, soon, and what is around it stays as it was."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import hostile_programs
import pytest
from sandboxes import needs_sandbox

from t2cli.tasks.sandbox import Limits
from t2cli.tasks.unit_tests import Bench, Suite

pytestmark = needs_sandbox

TIGHT = Limits(cpu_seconds=1, wall_seconds=2.0)
SLACK = 4.0  # seconds that a busy machine may add
RIGHT = "def double(x):\n    return 2 * x"
SUITES = (
    Suite("assert double(3) == 6\nassert double(10) == 20"),
    Suite(
        "def check(candidate):\n    assert all(map(lambda x: candidate(x) == 2 * x, [3, 10]))\ncheck(double)",
        entry="double",
    ),
    Suite(
        "for x in map(double, [3, 10]):\n    assert x in (6, 20)\nassert set(map(double, [3, 10])) == {6, 20}",
        entry="double",
    ),
)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Bench(TIGHT) as bench:
        yield bench


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Give a user's file and folder, and a server on the loopback address."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "secret").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield {"SECRET": str(folder / "secret"), "OUTSIDE": str(folder), "PORT": str(server.getsockname()[1])}
        with pytest.raises(BlockingIOError):
            server.accept()  # nobody came
    assert [path.name for path in folder.iterdir()] == ["secret"]
    assert (folder / "secret").read_text() == "secret"


GROUPS = ("NEVER_ENDS", "USES_UP", "REACHES_OUT", "KILLS", "CHEATS")
PROGRAMS = [
    pytest.param(code, id=f"{group.lower()}: {name}")
    for group in GROUPS
    for name, code in getattr(hostile_programs, group).items()
]


@pytest.mark.parametrize("code", PROGRAMS)
def test_a_hostile_program_is_judged_wrong(code: str, bench: Bench, world: dict[str, str]) -> None:
    for name, value in world.items():
        code = code.replace(name, value)
    started = time.monotonic()
    outcome = bench.judge(SUITES[0], code)
    assert not outcome.passed, outcome
    assert outcome.reason
    assert time.monotonic() - started < TIGHT.wall_seconds + SLACK
    assert bench.judge(SUITES[0], RIGHT).passed  # and the next one is judged as if nothing had been


@pytest.mark.parametrize("suite", SUITES[1:], ids=["check", "loops"])
def test_no_cheat_passes_tests_of_another_form(suite: Suite, bench: Bench) -> None:
    assert bench.judge(suite, RIGHT).passed
    codes = hostile_programs.CHEATS.values()
    assert not [code for code in codes if bench.judge(suite, code).passed]


def test_the_sandbox_leaves_no_process(bench: Bench) -> None:
    from t2cli.tasks.sandbox import Program

    def descendants(pid: int) -> set[int]:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return {int(each) for each in below}.union(*(descendants(int(each)) for each in below))

    text = (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\nprint('ready', flush=True)"
    )
    with Program(text, TIGHT) as program:
        assert program.receive() == b"ready"
        inside = descendants(os.getpid()) - descendants_of(bench, descendants)
        assert inside
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in inside) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [pid for pid in inside if Path(f"/proc/{pid}").exists()]


def descendants_of(bench: Bench, descendants: object) -> set[int]:
    """Return the processes of the judge, which stays."""
    judge = bench._judge
    return set() if judge is None else {judge._process.pid} | descendants(judge._process.pid)  # type: ignore[operator]
