"""t2 chat as a process of its own: pipes that stay open or are closed, and a person at a terminal."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from terminals import Terminal


def test_a_reader_that_leaves_is_no_error(chat_process: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [*chat_process, "what", "-q"], stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, b"")


def test_standard_input_that_is_closed_holds_no_question(chat_process: list[str]) -> None:
    result = subprocess.run(
        ["/bin/sh", "-c", '"$@" <&-', "sh", *chat_process], capture_output=True, text=True, check=False, timeout=60
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: standard input holds no question\n")


def test_a_blank_first_line_is_answered_at_once(chat_process: list[str]) -> None:
    with subprocess.Popen([*chat_process, "-q"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        for line in (b"\n", b"what?\n"):
            running.stdin.write(line)
            running.stdin.flush()
            assert running.stdout.readline().endswith(b"\n")
        running.stdin.close()
    assert running.returncode == 0


def test_answers_come_as_the_lines_do(chat_process: list[str]) -> None:
    with subprocess.Popen([*chat_process, "-q"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        for _ in range(2):  # each answer is there before the next question is written
            running.stdin.write(b"what is it?\n")
            running.stdin.flush()
            assert select.select([running.stdout], [], [], 60)[0]
            assert running.stdout.readline().endswith(b"\n")
        running.stdin.close()
        assert running.wait(timeout=30) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
def test_a_conversation_at_a_terminal(chat_process: list[str], terminal: Callable[..., Terminal]) -> None:
    person = terminal([*chat_process, "--json", "--adapt", "none", "--max-new-tokens", "40"])
    assert "Ctrl-D ends the conversation" in person.until("> ")
    person.type("what is it?\n")
    first = person.record()
    person.until("> ")
    person.type("and then?\n")
    second = person.record()
    assert second["timing"]["prompt_tokens"] > first["timing"]["prompt_tokens"] + first["timing"]["answer_tokens"]
    person.until("> ")
    person.type("\n")  # nothing asked
    person.until("> ")
    person.type("/reset\n")
    person.until("(a new conversation)")
    person.until("> ")
    person.type("what is it?\n")
    again = person.record()
    assert again["answer"] == first["answer"]
    assert again["timing"]["prompt_tokens"] == first["timing"]["prompt_tokens"]
    person.until("> ")
    person.type("\x04")
    assert person.process.wait(timeout=30) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
def test_ctrl_c_stops_an_answer_and_not_the_conversation(
    chat_process: list[str], terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    with (tmp_path / "answers").open("wb") as answers:
        person = terminal([*chat_process, "--expert", "math", "--max-new-tokens", "450"], stdout=answers)
        person.until("> ")
        person.type("half an answer, please\n")
        person.until("[math@1]")
        person.type("\x03")
        person.until("(stopped)")
        person.until("> ")
        person.type("\x03")  # nothing to stop
        person.until("> ")
        person.type("/exit\n")
        assert person.process.wait(timeout=30) == 0
    text = (tmp_path / "answers").read_text(errors="replace")
    assert not text.startswith("> ")  # standard output carries answers only
