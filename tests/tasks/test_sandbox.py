"""Where programs are refused, what limits do with and without the sandbox, and what is on its file system."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandboxes import needs_sandbox

from t2cli.errors import T2Error
from t2cli.tasks import sandbox
from t2cli.tasks.sandbox import Limits, Program, SandboxClosed, require_sandbox
from t2cli.tasks.seccomp import program
from t2cli.tasks.unit_tests import judge

ROOT = Path(sandbox.__file__).parents[2]
RIGHT, WRONG = "def f(x):\n    return x + 1", "def f(x):\n    return x"
TESTS = "assert f(1) == 2"
SAY = "import sys\nfor line in sys.stdin:\n    print(eval(line), flush=True)"  # a program that answers


@pytest.fixture
def without_bubblewrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox._trial.cache_clear()
    yield
    sandbox._trial.cache_clear()


@pytest.mark.usefixtures("without_bubblewrap")
def test_without_bubblewrap_code_is_refused_with_the_way_out() -> None:
    with pytest.raises(T2Error, match="only run in a sandbox") as error:
        judge([TESTS], [RIGHT])
    assert "--unsafe-code" in error.value.hint
    if sys.platform.startswith("linux"):
        assert "bwrap" in error.value.message
        assert "install" in error.value.hint


@pytest.mark.usefixtures("without_bubblewrap")
def test_a_bubblewrap_that_does_not_work_is_found_out_by_trying(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("bubblewrap is for Linux")
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    with pytest.raises(T2Error, match="setting up uid map: Permission denied") as error:
        require_sandbox()
    assert "user namespaces" in error.value.hint


@pytest.mark.usefixtures("without_bubblewrap")
def test_unsafe_code_is_judged_and_limited_without_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2_SECRET", "secret")
    tight = Limits(cpu_seconds=1, wall_seconds=3.0)
    codes = {
        RIGHT: True,
        WRONG: False,
        "while True: pass": False,
        "def f(x):\n    return len(bytearray(10**9)) and 2": False,
        "import os\ndef f(x):\n    return 2 if 'T2_SECRET' in os.environ else 0": False,
        "import os\ndef f(x):\n    return 2 if os.listdir('.') else 0": False,
    }
    outcomes = judge([TESTS] * len(codes), list(codes), limits=tight, unsafe=True)
    assert [outcome.passed for outcome in outcomes] == list(codes.values()), outcomes


def test_the_filter_is_well_formed_for_every_known_machine() -> None:
    assert program("sparc") is None
    for machine in ("x86_64", "aarch64"):
        code = program(machine)
        assert code is not None
        assert len(code) % 8 == 0
        count = len(code) // 8
        assert count < 4096
        for i in range(count):  # every jump lands inside
            operation, if_true, if_false = code[8 * i] | code[8 * i + 1] << 8, code[8 * i + 2], code[8 * i + 3]
            assert operation & 7 != 5 or i + 1 + max(if_true, if_false) < count


@needs_sandbox
def test_a_program_answers_line_by_line_until_it_is_left() -> None:
    with Program(SAY, Limits()) as program:
        program.send(b"6 * 7")
        assert program.receive() == b"42"
        program.send(b"'x' * 200_000")
        assert len(program.receive()) == 200_000
        program.send(b"__import__('os')._exit(0)")
        with pytest.raises(SandboxClosed, match="ended"):
            program.receive()


@needs_sandbox
def test_time_and_output_are_limited() -> None:
    with Program(SAY, Limits(wall_seconds=0.7)) as program:
        program.send(b"__import__('time').sleep(60)")
        started = time.monotonic()
        with pytest.raises(SandboxClosed, match="took too long"):
            program.receive()
        assert time.monotonic() - started < 5
    with Program(SAY, Limits(line=1 << 16)) as program:
        program.send(b"'x' * 10**7")
        with pytest.raises(SandboxClosed, match="too much output"):
            program.receive()
    with (
        Program("import time; time.sleep(60)", Limits(wall_seconds=0.7)) as deaf,
        pytest.raises(SandboxClosed) as closed,
    ):
        deaf.send(b"x" * 10**6)
    assert closed.value.reason == "took too long"


@needs_sandbox
def test_the_sandbox_holds_the_interpreter_and_no_place_to_write() -> None:
    with Program(SAY, Limits()) as program:

        def ask(expression: str) -> object:
            program.send(expression.encode())
            return program.receive().decode()

        assert ask("__import__('os').getcwd()") == "/tmp"
        assert ask("__import__('os').listdir('/tmp')") == "[]"
        assert ask("__import__('os').path.exists('/proc')") == "False"
        assert ask("sorted(__import__('os').listdir('/dev'))") == "['null', 'urandom']"
        assert ask("__import__('os').environ.get('HOME')") == "None"
        assert ask("__import__('os').getuid()") == "65534"
        assert ask("[p for p in __import__('sys').path if 'site-packages' in p]") == "[]"
        assert ask("__import__('importlib.util').util.find_spec('pip')") == "None"
    for made in ("os.mkdir('/tmp/x')", "os.symlink('a', '/tmp/x')", "open('x', 'w')", "open('/x', 'w')"):
        with Program(SAY, Limits(), errors=True) as program:
            program.send(f'exec("import os; {made}")'.encode())
            with pytest.raises(SandboxClosed, match="ended"):
                program.receive()
            assert "Read-only file system" in program.complaint()
    with Program(SAY, Limits()) as other:  # the order of sets must not differ between runs
        other.send(b"hash('a')")
        first = other.receive()
    with Program(SAY, Limits()) as other:
        other.send(b"hash('a')")
        assert other.receive() == first


@needs_sandbox
def test_it_works_for_another_user_too() -> None:
    """As root nearly everything works; most people are not root."""
    python = shutil.which("python3", path="/usr/bin:/bin")
    if os.getuid() != 0 or python is None or shutil.which("setpriv") is None:
        pytest.skip("needs root, setpriv and the system's Python to become somebody else")
    code = (
        "import sys; from t2cli.tasks.unit_tests import judge\n"
        "print([o.passed for o in judge(['assert f(1) == 2'] * 3, sys.argv[1:])])"
    )
    fork = "import os\ndef f(x):\n    os.fork()\n    return 2"
    with_package = shutil.copytree(ROOT / "t2cli", Path("/tmp") / f"t2-of-nobody-{os.getpid()}" / "t2cli")
    try:
        with_package.parent.chmod(0o755)
        command = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            python,
            "-c",
            code,
            RIGHT,
            WRONG,
            fork,
        ]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env={"PYTHONPATH": str(with_package.parent), "PATH": os.environ["PATH"]},
        )
    finally:
        shutil.rmtree(with_package.parent)
    if "SyntaxError" in done.stderr or "only run in a sandbox" in done.stderr:
        pytest.skip(f"not for that user or that Python: {done.stderr.splitlines()[-1]}")
    assert done.stdout.strip() == "[True, False, False]", done.stderr
