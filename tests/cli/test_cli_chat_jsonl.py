"""t2 chat --jsonl: an object in, an object out, in order; what is no row is skipped, what fails says so itself."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t2cli.registry.local import ExpertEntry

PROMPTS = ("what", "the sum of two numbers", "6 * 7", "Anna likes cats. Who likes cats?", "x " * 30)
EXPERTS = ({}, {"expert": "math"}, {"expert": "story@1"}, {"mix": {"math": 0.5, "story": 0.25}}, {"expert": "none"})


@pytest.fixture
def jsonl(run: Callable, chat_options: list[str], chat_experts: dict[str, ExpertEntry]) -> Callable:
    """Return a function that runs t2 chat --jsonl on rows (or the bytes of a line) with the tiny base."""

    def ask(*rows: dict[str, Any] | bytes, options: tuple[str | Path, ...] = ()) -> Any:
        lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
        return run("chat", "--jsonl", *chat_options, *options, stdin=b"".join(line + b"\n" for line in lines))

    return ask


def records(result: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_answers_come_in_order_each_by_its_own_expert(jsonl: Callable, run: Callable, chat_options: list[str]) -> None:
    rows = [
        {"prompt": prompt, "id": f"{prompt[:4]} {index}", **expert}
        for prompt in PROMPTS
        for index, expert in enumerate(EXPERTS)
    ]
    result = jsonl(*rows, options=("--batch", "4"))
    assert (result.exit_code, result.stderr) == (0, "")
    found = records(result)
    assert [record["id"] for record in found] == [row["id"] for row in rows]
    ways: tuple[tuple[str, ...], ...] = ((), ("--expert=math",), ("--expert=story",), ("--mix=math:0.5,story:0.25",))
    for row, record in list(zip(rows, found, strict=True))[:10]:
        options = (*ways, ("--adapt=none",))[int(row["id"].split()[-1])]
        alone = json.loads(run("chat", row["prompt"], *chat_options, *options, "--json").stdout)
        assert list(record) == list(alone)
        assert (record["schema"], record["answer"]) == ("t2.chat/1", alone["answer"])
        assert record["dispatch"]["weights"] == alone["dispatch"]["weights"]
        assert record["dispatch"]["category"] == alone["dispatch"]["category"]
        for field in ("prompt_tokens", "answer_tokens"):
            assert record["timing"][field] == alone["timing"][field]


def test_lines_that_are_no_rows_are_skipped_and_rows_that_fail_say_so(
    jsonl: Callable, chat_experts: dict[str, ExpertEntry]
) -> None:
    path = chat_experts["story"].path / "z.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    result = jsonl(
        {"prompt": "what"},
        b"what?",
        b"",
        {"prompt": "what", "expert": "mth"},
        b'{"prompt": "caf\xe9"}',
        {"prompt": "what", "expert": "story", "id": "broken"},
        {"prompt": "zq" * 600},
        {"prompt": "y" * 1_000_000, "id": "a million"},
        {"prompt": "what", "expert": "foreign"},
        {"prompt": "what", "expert": "math"},
        options=("--adapt", "none"),
    )
    assert result.exit_code == 1
    found = records(result)
    assert [record["id"] for record in found] == [1, 4, "broken", 7, "a million", 9, 10]
    codes = {record["id"]: record["error"]["code"] for record in found if "error" in record}
    assert codes == {4: 3, "broken": 5, 7: 2, "a million": 2, 9: 4}
    for record in found:
        assert (record["answer"] is None) == ("error" in record)
        assert record["schema"] == "t2.chat/1"
    said = result.stderr.splitlines()
    assert said[0].startswith("warning: line 2 is skipped: it is no JSON")
    assert said[1].startswith("warning: line 5 is skipped: it is not UTF-8")
    assert "did you mean math" in found[1]["error"]["hint"]
    assert [line.split(" has")[0] for line in said[2:-2]] == [f"warning: line {n}" for n in (4, 9, 7, 8, 6)]
    assert said[-2] == "error: 7 of 9 rows have no answer: 2 were no questions, 5 failed"


def test_a_second_row_of_an_answered_id_is_said_to_be_left_out(jsonl: Callable, tmp_path: Path) -> None:
    done = tmp_path / "done.jsonl"
    done.write_text('{"id": "a", "answer": "it"}\n')
    rows = [{"prompt": "what", "id": "a"}, {"prompt": "who", "id": "a"}, {"prompt": "what", "id": "b"}]
    result = jsonl(*rows, options=("--adapt", "none", "--done", done))
    assert [record["id"] for record in records(result)] == ["b"]
    assert "line 2 is left out as answered: it has the id of an earlier line, 'a'" in result.stderr
    assert "line 1" not in result.stderr


def test_experts_of_the_command_line_are_for_rows_without_their_own(jsonl: Callable) -> None:
    result = jsonl({"prompt": "what"}, {"prompt": "what", "expert": "story"}, options=("--expert", "math"))
    assert [list(record["dispatch"]["weights"]) for record in records(result)] == [["math@1"], ["story@1"]]


def test_without_experts_the_base_answers(run: Callable, chat_options: list[str]) -> None:
    result = run("chat", "--jsonl", *chat_options, stdin='{"prompt": "what"}\n')
    (record,) = records(result)
    assert (result.exit_code, record["dispatch"]["category"], record["dispatch"]["weights"]) == (0, "other", {})


def test_a_long_conversation_loses_its_oldest_turns(jsonl: Callable) -> None:
    talk = [{"role": role, "content": "one more question " * 3} for _ in range(20) for role in ("user", "assistant")]
    system = {"role": "system", "content": "Be brief."}
    result = jsonl({"messages": [system, *talk, {"role": "user", "content": "what"}]}, options=("--adapt", "none"))
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: line 1 is longer than the context: its first ")
    assert records(result)[0]["timing"]["prompt_tokens"] <= 500


def test_a_run_goes_on_where_it_was_interrupted(jsonl: Callable, tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "id": number} for number, prompt in enumerate(PROMPTS)]
    whole = jsonl(*rows, options=("--adapt", "none"))
    lines = whole.stdout.splitlines()
    before = tmp_path / "before.jsonl"
    failed = json.dumps({"id": 2, "answer": None, "error": {}})
    before.write_text("\n".join([lines[0], lines[3], failed]) + "\n" + lines[1][:40])
    rest = jsonl(*rows, options=("--adapt", "none", "--done", before))
    assert (rest.exit_code, rest.stderr) == (0, "")
    assert [record["id"] for record in records(rest)] == [1, 2, 4]
    answers = {record["id"]: record["answer"] for record in records(whole)}
    assert all(record["answer"] == answers[record["id"]] for record in records(rest))
    before.write_text(whole.stdout)
    nothing = jsonl(*rows, options=("--done", before))
    assert (nothing.exit_code, nothing.stdout, nothing.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "said"),
    [
        (["--jsonl"], "", 2, ["standard input holds no question", "prompt"]),
        (["--jsonl"], "\n \n", 2, ["standard input holds no question"]),
        (["--jsonl", "what"], "", 2, ["--jsonl reads standard input"]),
        (["--done", "x"], "what\n", 2, ["--done belongs to --jsonl"]),
        (["--batch", "3"], "what\n", 2, ["--batch belongs to --jsonl"]),
        (["--jsonl", "--batch", "0"], "{}\n", 2, ["--batch"]),
        (["--jsonl", "--done", "nowhere.jsonl"], "{}\n", 3, ["nowhere.jsonl"]),
    ],
)
def test_what_cannot_work_is_refused(
    arguments: list[str],
    stdin: str,
    code: int,
    said: list[str],
    run: Callable,
    chat_options: list[str],
    refused: Callable,
) -> None:
    refused(run("chat", *chat_options, *arguments, stdin=stdin), code, *said)


def test_each_answer_is_there_before_the_next_question(chat_process: list[str]) -> None:
    command = [*chat_process, "--jsonl"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stderr is not None
        for number in range(1, 3):
            running.stdin.write(b'{"prompt": "what is it?"}\n')
            running.stdin.flush()
            assert select.select([running.stdout], [], [], 60)[0]
            assert json.loads(running.stdout.readline())["id"] == number
        running.send_signal(signal.SIGINT)  # while it waits: nothing that was answered is lost
        assert running.wait(timeout=30) == 130
        assert running.stderr.read() == b"interrupted\n"


def test_a_reader_that_leaves_ends_it_quietly(chat_process: list[str]) -> None:
    rows = b'{"prompt": "what is it?"}\n' * 2000
    line = '"$@" | head -n 1'
    done = subprocess.run(
        ["/bin/bash", "-c", f"set -o pipefail; {line}", "bash", *chat_process, "--jsonl", "--batch", "2"],
        input=rows,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert json.loads(done.stdout)["id"] == 1
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "half", ['{"schema": "t2.chat/1", "id": 2, "answ', '{"id": 2, "answer": "without the end of its line"}']
)
def test_an_interrupted_file_is_gone_on_with(half: str, chat_process: list[str], tmp_path: Path) -> None:
    out, rows = tmp_path / "out.jsonl", tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    out.write_text('{"id": 1, "answer": "kept"}\n' + half)
    with rows.open("rb") as stdin, out.open("ab") as stdout:
        done = subprocess.run(
            [*chat_process, "--jsonl", "--done", str(out)], stdin=stdin, stdout=stdout, check=False, timeout=120
        )
    assert done.returncode == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]  # no half line among them
    assert [record["id"] for record in found] == [1, 2, 3, 4, 5]
    assert found[0]["answer"] == "kept"


def test_a_pipe_loads_no_line_editor(chat_process: list[str], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, atexit\nfrom t2cli.cli.app import main\n"
        "atexit.register(lambda: print('prompt_toolkit' in sys.modules, file=sys.stderr))\nmain()\n"
    )
    command = [chat_process[0], str(program), *chat_process[3:], "-q"]
    done = subprocess.run(command, input=b"what\n", capture_output=True, check=False, timeout=60, env=os.environ)
    assert (done.returncode, done.stderr) == (0, b"False\n")
