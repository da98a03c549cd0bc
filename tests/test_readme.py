"""README.md says what is so: its two commands run, and every t2 command in it exists with its options."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import typer
import typer.main

from t2cli.cli.app import COMMANDS, app, command

ROOT = Path(__file__).parents[1]
CI = ROOT / ".ci" / "run"
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELLS = {"bash", "sh", "shell", "console"}

posix = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")


@pytest.fixture
def readme() -> str:
    if not (ROOT / "README.md").exists():
        pytest.skip("there is no README.md yet")
    return (ROOT / "README.md").read_text(encoding="utf-8")


def marked(text: str, name: str) -> str:
    """Return the command in the fenced block that follows the line `<!-- command: name -->`."""
    _, marker, rest = text.partition(f"<!-- command: {name} -->\n")
    block = FENCE.match(rest)
    assert marker, f"README.md has no line <!-- command: {name} -->"
    assert block, f"README.md has no fenced block right after <!-- command: {name} -->"
    return block[2].strip()


def shell_lines(text: str) -> Iterator[str]:
    """Yield the logical lines of every shell block: continued lines joined, a leading "$ " taken off."""
    for language, block in FENCE.findall(text):
        if language in SHELLS:
            yield from (line.removeprefix("$ ") for line in block.replace("\\\n", " ").splitlines())


def t2_commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of every call of t2 in the shell blocks of `text`."""
    for line in shell_lines(text):
        tokens = shlex.shlex(line, posix=True, punctuation_chars=True)
        tokens.whitespace_split = True
        simple: list[list[str]] = [[]]
        for token in tokens:
            if set(token) <= set("();<>|&"):
                simple.append([])
            elif simple[-1] or not re.fullmatch(r"\w+=.*", token):  # not VARIABLE=value before a command
                simple[-1].append(token)
        yield from (words[1:] for words in simple if words and words[0] == "t2")


def complaint(arguments: list[str]) -> str:
    """Return what t2's own parser says against `arguments`, without running the command; "" for nothing."""
    if arguments and arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
        return f"there is no command {arguments[0]!r}"
    try:
        if arguments and arguments[0] in COMMANDS:
            command(arguments[0]).make_context(arguments[0], arguments[1:])
        else:
            typer.main.get_command(app).make_context("t2", list(arguments))
    except typer.Exit as end:  # --help and --version print and end
        return f"exit code {end.exit_code}" if end.exit_code else ""
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


def test_the_two_commands_are_there(readme: str) -> None:
    assert "t2 " in marked(readme, "try")
    assert "pytest" in marked(readme, "test")


def test_every_t2_command_in_it_is_one(readme: str) -> None:
    found = list(t2_commands(readme))
    assert found
    wrong = {shlex.join(["t2", *arguments]): complaint(arguments) for arguments in found}
    assert not {call: what for call, what in wrong.items() if what}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("t2 list --all", [["list", "--all"]]),
        ("pip install . && T2_HOME=x t2 list | grep math  # all of them", [["list"]]),
        ('echo "t2 none" | t2 chat "2 > 1; or not?" \\\n  --quiet', [["chat", "2 > 1; or not?", "--quiet"]]),
        ("(cd x; t2 list) > out.txt; t2", [["list"], []]),
    ],
)
def test_commands_are_found_in_shell_blocks_only(line: str, expected: list[list[str]]) -> None:
    assert list(t2_commands(f"text\n```bash\n{line}\n```\n```yaml\nt2 list\n```\n")) == expected


@pytest.mark.parametrize("line", ["t2 nosuch", "t2 list --nosuch", "t2 list more", "t2 list --device", "t2 --nosuch"])
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    (arguments,) = t2_commands(f"```bash\n{line}\n```\n")
    assert complaint(arguments)


@pytest.mark.parametrize("line", ["t2 list --all --json", "t2 list -q --base=x", "t2 list --help", "t2 --version"])
def test_a_command_that_exists_is_not(line: str) -> None:
    (arguments,) = t2_commands(f"```bash\n{line}\n```\n")
    assert complaint(arguments) == ""


def test_the_task_of_ones_own_works_as_it_is_written(
    readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from t2cli.tasks.base import load_task

    names = re.findall(r"^<!-- file: (.+) -->$", readme, re.MULTILINE)
    assert names == ["questions.jsonl", "capitals.yaml"]
    for name in names:
        block = FENCE.match(readme.partition(f"<!-- file: {name} -->\n")[2])
        assert block
        (tmp_path / name).write_text(block[2])
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["tasks", "./capitals.yaml"], prog_name="t2")
    assert shown.exit_code == 0, shown.stderr
    assert "What is the capital of France? It is in Europe.\n" in shown.stdout
    assert "right answer  Paris\n" in shown.stdout
    task = load_task("capitals.yaml")
    example = task.examples("train", 1, 0)[0]
    assert task.reward(example, f"{example.answer}.") == 1.0
    assert task.reward(example, "Rome") == -1.0


@posix
def test_ci_runs_the_test_command_of_the_readme(readme: str) -> None:
    shown = subprocess.run([CI, "--show"], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == marked(readme, "test")


def makes_tools(code: int) -> str:
    """Return a test command that leaves a .venv behind whose ruff and mypy end with exit code `code`."""
    tools = " ".join(f".venv/bin/{name}" for name in ("ruff", "mypy"))
    return f"mkdir -p .venv/bin\nprintf '#!/bin/sh\\nexit {code}\\n' | tee {tools}\nchmod +x {tools}"


@posix
@pytest.mark.parametrize(
    ("test_command", "code", "said"),
    [
        (makes_tools(0), 0, "all checks passed"),
        (makes_tools(3), 1, "failed: .venv/bin/ruff check ., .venv/bin/ruff format --check ., .venv/bin/mypy\n"),
        (makes_tools(0) + "\nfalse", 1, "failed: the test command of README.md\n"),
        ("false\n" + makes_tools(0), 1, "failed and made no .venv"),
        ("true", 1, "command made no .venv"),
        ("test -e untracked && test ! -e ignored && test ! -e gone\n" + makes_tools(0), 0, "all checks passed"),
    ],
)
def test_ci_fails_when_anything_fails(tmp_path: Path, test_command: str, code: int, said: str) -> None:
    """Run the real .ci/run in a small checkout of its own, whose test command leaves behind its own tools."""
    checkout = tmp_path / "a check out"
    (checkout / ".ci").mkdir(parents=True)
    shutil.copy(CI, checkout / ".ci" / "run")
    (checkout / "README.md").write_text(f"# t2\n\n<!-- command: test -->\n```bash\n{test_command}\n```\n")
    for name, content in {".gitignore": "ignored\n.venv\n", "ignored": "", "gone": ""}.items():
        (checkout / name).write_text(content)
    subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)
    subprocess.run(["git", "add", "-A"], cwd=checkout, check=True)
    (checkout / "gone").unlink()
    (checkout / "untracked").touch()
    done = run_bash(".ci/run", checkout, {**os.environ, "CI": "true"})
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done.stdout + done.stderr
    assert not (checkout / ".venv").exists()


@posix
def test_ci_without_a_test_command_says_so(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(CI, tmp_path / ".ci" / "run")
    (tmp_path / "README.md").write_text("# t2\n")
    done = run_bash(".ci/run --show", tmp_path, dict(os.environ))
    assert (done.returncode, done.stdout) == (1, "")
    assert "README.md has no test command" in done.stderr


@posix
@pytest.mark.slow
def test_the_try_command_answers_42_in_a_fresh_clone(readme: str, tmp_path: Path) -> None:
    clone = tmp_path / "t2"
    subprocess.run(["git", "-c", "safe.directory=*", "clone", "-q", ROOT, clone], check=True)
    home = tmp_path / "home"
    home.mkdir()
    # A newcomer's shell: no virtual environment, the Python that this one was made from, and an empty home.
    folders = [str(Path(sys.base_prefix) / "bin"), *os.environ["PATH"].split(os.pathsep)]
    path = os.pathsep.join(folder for folder in folders if folder != str(Path(sys.prefix) / "bin"))
    kept = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH", "T2_REGISTRY")}
    changed = {"PATH": path, "HOME": str(home), "T2_HOME": str(home / "t2"), "PIP_REQUIRE_VIRTUALENV": "1"}
    done = run_bash(marked(readme, "try"), clone, kept | changed)
    assert done.returncode == 0, done.stderr
    assert "42" in done.stdout.splitlines()[-1], done.stdout


def run_bash(line: str, folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command line with nothing on standard input, for half an hour at most."""
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
