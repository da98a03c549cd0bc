"""The skeleton of t2: help, exit codes, lazy imports, and ends that are not errors."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from t2cli import __version__
from t2cli.cli.app import COMMANDS, app

T2 = Callable[..., subprocess.CompletedProcess[str]]
HEAVY = ("torch", "transformers", "huggingface_hub", "numpy", "safetensors", "tqdm", "rich")

# One row in the table makes a command: these end in every way that a command can.
COMMAND_ENDING_AS_ASKED = """
import os, sys, time
from t2cli.cli.app import COMMANDS, main
from t2cli.errors import IncompatibleBaseError

def end(how: str) -> None:
    \"\"\"End somehow.\"\"\"
    if how == "sleep":
        print("asleep", flush=True)
        time.sleep(60)
    elif how == "t2":
        raise IncompatibleBaseError("math is for another base", hint="t2 list")
    elif how == "bug":
        raise RuntimeError("a bug")
    elif how == "connection":
        raise BrokenPipeError(32, "Broken pipe")
    elif how == "little":
        print("data")
    elif how == "much":
        for _ in range(100_000):
            print("data " * 20)

COMMANDS["end"] = "__main__:end"
main()
"""


@pytest.fixture
def ending(tmp_path: Path) -> list[str]:
    """Return the command line of a t2 that has one more command, `end HOW`."""
    script = tmp_path / "ending.py"
    script.write_text(COMMAND_ENDING_AS_ASKED)
    return [sys.executable, str(script), "end"]


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_is_golden_and_the_same_in_process_and_under_test(
    name: str, t2: T2, golden: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "82")  # Typer leaves two free, but not in CliRunner
    arguments = [*name.split(), "--help"]
    result = t2(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    golden(f"help{name and '-'}{name}.txt", result.stdout)
    assert CliRunner().invoke(app, arguments, prog_name="t2").stdout == result.stdout


def test_every_row_of_the_table_is_a_function_with_help() -> None:
    for row in COMMANDS.values():
        module, _, function = row.partition(":")
        assert getattr(importlib.import_module(module), function).__doc__, row


def test_version(t2: T2) -> None:
    result = t2("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"t2 {__version__}\n", "")


def test_without_a_command_help_goes_to_stderr_and_the_code_is_usage(t2: T2) -> None:
    result = t2()
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == t2("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lst"], ["there is no command 'lst'", "did you mean list?"]),
        (["list", "--device", "tpu"], ["--device", "'tpu'", "'mps'", "t2 list --help"]),
        (["list", "--bse", "x"], ["No such option: --bse", "--base", "t2 list --help"]),
        (["list", "extra"], ["extra", "t2 list --help"]),
        (["list", "--registry", ""], ["--registry is given nothing", "leave it out"]),
        (["list", "--base="], ["--base is given nothing"]),
        (["decompose", "a", "--base", "b"], ["two bases are named, a and b"]),
        (["--no-such-option"], ["--no-such-option", "t2 --help"]),
    ],
)
def test_usage_errors_exit_2_alike_in_process_and_under_test(arguments: list[str], said: list[str], t2: T2) -> None:
    result = t2(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    what, hint = result.stderr.splitlines()
    assert (what[:7], hint[:6]) == ("error: ", "hint: ")
    for text in said:
        assert text in result.stderr
    tested = CliRunner().invoke(app, arguments, prog_name="t2")
    assert (tested.exit_code, tested.stderr) == (2, result.stderr)


@pytest.mark.parametrize(
    ("how", "code", "stderr"),
    [
        ("well", 0, ""),
        ("t2", 4, "error: math is for another base\nhint: t2 list\n"),
        ("bug", 1, "error: RuntimeError: a bug\nhint: this is a bug in t2"),
        ("connection", 1, "error: BrokenPipeError: [Errno 32] Broken pipe\nhint: this is a bug in t2"),
    ],
)
def test_exit_codes(how: str, code: int, stderr: str, ending: list[str]) -> None:
    result = subprocess.run([*ending, how], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.startswith(stderr)
    assert len(result.stderr.splitlines()) <= 3


def test_debug_shows_the_traceback(ending: list[str]) -> None:
    environment = {**os.environ, "T2_DEBUG": "1"}
    result = subprocess.run([*ending, "bug"], capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("error: RuntimeError: a bug\n")


def test_interrupt_exits_130_with_one_word(ending: list[str]) -> None:
    with subprocess.Popen([*ending, "sleep"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "asleep\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "interrupted\n")


def closed_early(command: list[str]) -> tuple[int, str]:
    """Run `command` with a stdout whose reader has gone, and return its exit code and stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    return result.returncode, result.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_early_is_no_error(
    unbuffered: str, ending: list[str], registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    t2 = [sys.executable, "-m", "t2cli"]
    assert closed_early([*t2, "--help"]) == (0, "")
    assert closed_early([*t2, "list", "--registry", str(registry)]) == (0, "")
    assert closed_early([*t2, "list", "--registry", str(registry), "--json"]) == (0, "")
    assert closed_early([*ending, "little"]) == (0, "")
    assert closed_early([*ending, "much"]) == (0, "")


def test_a_reader_that_leaves_in_the_middle_is_no_error(ending: list[str]) -> None:
    with subprocess.Popen([*ending, "much"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("data")
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this platform has no /dev/full")
@pytest.mark.parametrize("asked", ["list", "--help"])
def test_a_full_disk_behind_stdout_is_said_once(asked: str, registry: Path) -> None:
    options = ["--registry", str(registry)] if asked == "list" else []
    command = [sys.executable, "-m", "t2cli", asked, *options]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines() == ["error: standard output could not be written: No space left on device"]


def test_shell_completion_knows_the_commands() -> None:
    environment = {**os.environ, "_T2_COMPLETE": "complete_bash", "COMP_WORDS": "t2 l", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "t2cli"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert "list" in result.stdout.split()


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["list", "--json"]])
def test_help_and_list_import_nothing_heavy(arguments: list[str], registry: Path) -> None:
    script = (
        "import sys; sys.argv = ['t2', *sys.argv[1:]]\n"
        "from t2cli.cli.app import main\n"
        "try: main()\n"
        f"finally: print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    environment = {**os.environ, "T2_REGISTRY": str(registry)}
    command = [sys.executable, "-c", script, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "math" in result.stdout or arguments == ["--help"]
    assert "HEAVY []" in result.stderr


def test_help_and_list_take_at_most_twice_the_time_of_an_empty_typer_app(tmp_path: Path, registry: Path) -> None:
    empty = tmp_path / "empty.py"
    empty.write_text("import typer\napp = typer.Typer()\n@app.command()\ndef empty(): pass\napp()\n")
    commands = {
        "empty": [str(empty)],
        "--help": ["-m", "t2cli", "--help"],
        "list": ["-m", "t2cli", "list", "--registry", str(registry)],
    }

    def seconds(arguments: list[str]) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        return time.perf_counter() - start

    # Interleaved, so that a busy moment of the machine meets all of them; the first round fills caches.
    rounds = [{name: seconds(arguments) for name, arguments in commands.items()} for _ in range(8)][1:]
    fastest = {name: min(times[name] for times in rounds) for name in commands}
    assert fastest["--help"] <= 2 * fastest["empty"], fastest
    assert fastest["list"] <= 2 * fastest["empty"], fastest
