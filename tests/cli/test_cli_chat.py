"""t2 chat: one prompt, a pipe, a terminal; every answer with its dispatch, every failure in three lines."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from t2cli.cli.chat import _Folded, explained
from t2cli.cli.output import Output
from t2cli.dispatch.decision import Decision
from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import ExpertEntry
from t2cli.svf.zvector import ZVectors

FIELDS = ["schema", "id", "answer", "dispatch", "timing"]
DISPATCH = ["strategy", "category", "probabilities", "weights", "abstained"]
TIMING = ["dispatch_seconds", "first_token_seconds", "answer_seconds", "prompt_tokens", "answer_tokens"]


@pytest.fixture
def experts(
    tmp_path: Path,
    adapt: Callable[..., AdaptedModel],
    publish: Callable[..., ExpertEntry],
    random_z: Callable[..., ZVectors],
) -> dict[str, ExpertEntry]:
    """Return experts for the tiny base in a registry, and one for another base."""
    adapted, folder = adapt("llama"), tmp_path / "experts"
    identity = adapted.base.identity

    def put(name: str, seed: int, **fields: Any) -> ExpertEntry:
        return publish(folder, identity, name, random_z(adapted.ranks, seed=seed, sigma=0.5), **fields)

    foreign = replace(identity, name="other", weights="a" * 64)
    return {
        "math": put("math", 1, examples=("What is 1 + 2?", "What is 3 * 4?")),
        "story": put("story", 2, examples=("Anna likes cats. Who likes cats?",)),
        "foreign": publish(folder, foreign, "foreign", random_z(adapted.ranks)),
    }


@pytest.fixture
def options(base_folder: Callable[[str], Path], tmp_path: Path) -> list[str]:
    """Return the options that all of these chats share."""
    folder = tmp_path / "experts"
    return ["--base", str(base_folder("llama")), "--registry", str(folder), "--max-new-tokens", "12"]


@pytest.fixture
def chat(run: Callable, options: list[str], experts: dict[str, ExpertEntry]) -> Callable:
    """Return a function that runs t2 chat with the tiny base and the experts."""
    return lambda *arguments, stdin="": run("chat", *arguments, *options, stdin=stdin)


@pytest.fixture
def process(options: list[str], experts: dict[str, ExpertEntry]) -> list[str]:
    """Return the command of the same as a process."""
    return [sys.executable, "-m", "t2cli", "chat", *options]


def test_a_prompt_is_answered_on_stdout_and_the_dispatch_said_on_stderr(chat: Callable) -> None:
    record = json.loads(chat("What is 2 + 2?", "--json").stdout)
    result = chat("What is 2 + 2?")
    assert result.exit_code == 0
    assert result.stdout_bytes.decode() == record["answer"] + "\n"
    (line,) = result.stderr.splitlines()
    category, weights = record["dispatch"]["category"], record["dispatch"]["weights"]
    certainty = record["dispatch"]["probabilities"][category]
    assert line == f"[{category} {certainty:.0%} -> {next(iter(weights), 'base model')}]"
    quiet = chat("What is 2 + 2?", "--quiet")
    assert (quiet.stdout_bytes, quiet.stderr) == (result.stdout_bytes, "")


def test_json_has_every_field(chat: Callable) -> None:
    result = chat("What is 2 + 2?", "--json")
    (line,) = result.stdout.splitlines()
    record = json.loads(line)
    assert list(record) == FIELDS
    assert (record["schema"], record["id"]) == ("t2.chat/1", None)
    dispatch, timing = record["dispatch"], record["timing"]
    assert list(dispatch) == DISPATCH
    assert list(timing) == TIMING
    assert dispatch["strategy"] == "prompt"
    assert set(dispatch["probabilities"]) == {"math", "story", "other"}
    assert sum(dispatch["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert dispatch["category"] == max(dispatch["probabilities"], key=lambda name: dispatch["probabilities"][name])
    assert dispatch["abstained"] == (dispatch["category"] == "other")
    assert 0 < timing["dispatch_seconds"] <= timing["first_token_seconds"]
    assert 0 < timing["answer_tokens"] <= 12
    assert timing["prompt_tokens"] > 0


def test_an_expert_a_mix_and_none_answer_differently(chat: Callable) -> None:
    results = {
        "--expert=math": "[math@1]\n",
        "--expert=math@1": "[math@1]\n",
        "--expert=story": "[story@1]\n",
        "--mix=math:0.6,story:0.4": "[0.6 math@1 + 0.4 story@1]\n",
        "--mix=math:1": "[math@1]\n",
        "--adapt=none": "[base model]\n",
    }
    answers = {}
    for option, line in results.items():
        result = chat("what is it?", option, "--json")
        assert (result.exit_code, result.stderr) == (0, line)
        record = json.loads(result.stdout)
        answers[option] = record["answer"]
        assert record["dispatch"]["category"] is None
        assert record["dispatch"]["probabilities"] == {}
        assert record["dispatch"]["abstained"] is False
    assert answers["--expert=math"] == answers["--expert=math@1"] == answers["--mix=math:1"]
    assert len(set(answers.values())) == 4


def test_a_pipe_gives_a_line_for_a_line(chat: Callable) -> None:
    questions = ["What is 1 + 2?", "", "Who is it?", "   ", "What is 1 + 2?"]
    text = "\n".join(questions) + "\n"
    result = chat("--expert", "math", stdin=text)
    assert result.exit_code == 0
    assert result.stderr == ("[math@1]\nwarning: line 2 is empty\n[math@1]\nwarning: line 4 is empty\n[math@1]\n")
    lines = result.stdout_bytes.decode().split("\n")
    records = [json.loads(line) for line in chat("--expert", "math", "--json", stdin=text).stdout.splitlines()]
    assert [record["id"] for record in records] == [1, 3, 5]
    folded = [" ".join(record["answer"].split()) for record in records]
    assert lines == [folded[0], "", folded[1], "", folded[2], ""]
    assert folded[0] == folded[2] != folded[1]
    single = json.loads(chat("What is 1 + 2?", "--expert", "math", "--json").stdout)
    assert single["answer"] == records[0]["answer"]


def test_the_last_line_needs_no_end_and_blank_lines_before_the_first_stay(chat: Callable) -> None:
    result = chat("--adapt", "none", "--quiet", stdin="\n\nwhat")
    assert result.stdout_bytes.decode().count("\n") == 3
    assert result.stderr == "warning: line 1 is empty\nwarning: line 2 is empty\n"


def test_bytes_that_are_no_text_are_replaced(chat: Callable) -> None:
    odd = chat("--adapt", "none", "--json", stdin=b"caf\xe9 \xff?\r\n\x00\n")
    assert odd.exit_code == 0, odd.stderr
    first, second = (json.loads(line) for line in odd.stdout.splitlines())
    assert first["answer"] == json.loads(chat("caf\ufffd \ufffd?", "--adapt", "none", "--json").stdout)["answer"]
    assert second["id"] == 2


def test_seed_and_temperature_decide_the_draw(chat: Callable) -> None:
    def answer(seed: int) -> str:
        result = chat("what", "--adapt", "none", "--temperature", "1", "--seed", seed, "--json")
        return str(json.loads(result.stdout)["answer"])

    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in range(3)}) > 1


def test_with_no_experts_at_all_the_base_answers(run: Callable, options: list[str]) -> None:
    result = run("chat", "what is it?", *options, "--json")
    assert result.exit_code == 0, result.stderr
    dispatch = json.loads(result.stdout)["dispatch"]
    assert (dispatch["category"], dispatch["weights"], dispatch["abstained"]) == ("other", {}, True)
    plain = run("chat", "what is it?", *options, "--json", "--adapt", "none")
    assert json.loads(plain.stdout)["answer"] == json.loads(result.stdout)["answer"]


def test_an_expert_that_cannot_be_read_is_warned_of(chat: Callable, experts: dict[str, ExpertEntry]) -> None:
    (experts["story"].path / "expert.yaml").write_text("schema: 1\nname: story\n")
    result = chat("what is it?", "--json")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: ")
    assert set(json.loads(result.stdout)["dispatch"]["probabilities"]) == {"math", "other"}


LONG = "zq" * 600


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "said"),
    [
        ([""], "", 2, ["the prompt is empty", "t2 chat"]),
        ([" \n"], "", 2, ["the prompt is empty"]),
        ([], "", 2, ["standard input holds no question", "t2 chat"]),
        ([], "\n \n\t\n", 2, ["standard input holds no question"]),
        (["x", "--expert", "math", "--mix", "math:1"], "", 2, ["--expert and --mix exclude each other"]),
        (["x", "--mix", ", ,"], "", 2, ["--mix names no expert"]),
        (["x", "--mix", "math:0.5,story"], "", 2, ["story has no weight"]),
        (["x", "--mix", "math:0.5,math@1:0.5"], "", 2, ["same expert, math@1"]),
        (["x", "--mix", "math:nan"], "", 2, ["not a finite number"]),
        (["x", "--mix", "math:1e300"], "", 2, ["finite"]),
        (["x", "--expert", "Math!"], "", 2, ["'Math!'"]),
        (["x", "--adapt", "few"], "", 2, ["'few'", "'prompt'"]),
        (["x", "--temperature", "inf"], "", 2, ["--temperature"]),
        (["x", "--temperature", "-1"], "", 2, ["--temperature"]),
        (["x", "--max-new-tokens", "0"], "", 2, ["--max-new-tokens"]),
        (["x", "--device", "tpu"], "", 2, ["'tpu'"]),
        (["x", "--expert", "mth"], "", 3, ["no expert named 'mth'", "did you mean math"]),
        (["x", "--expert", "math@9"], "", 3, ["math@9", "math@1"]),
        (["x", "--base", "smollm2-135n"], "", 3, ["'smollm2-135n'", "did you mean smollm2-135m"]),
        (["x", "--expert", "foreign"], "", 4, ["foreign", "other-aaaaaaaaaaaa", "llama"]),
        ([LONG], "", 2, ["1210 tokens", "at most 512", "shorten"]),
        ([], LONG + "\n", 2, ["line 1: ", "at most 512"]),
    ],
)
def test_what_cannot_be_answered_is_refused(
    arguments: list[str],
    stdin: str,
    code: int,
    said: list[str],
    run: Callable,
    chat: Callable,
    refused: Callable,
    options: list[str],
) -> None:
    # what comes last on the command line counts
    result = run("chat", *options, *arguments, stdin=stdin)
    refused(result, code, *said)


def damaged_bytes(entry: ExpertEntry, how: str) -> None:
    path = entry.path / "z.safetensors"
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[:-8])
    elif how == "edited":
        path.write_bytes(content[:-4] + b"\0\0\0\0")
    elif how == "gone":
        path.unlink()
    else:
        manifest = entry.path / "expert.yaml"
        text = manifest.read_text()
        manifest.write_text(text.replace("kind: expert", "kind: wizard") if how == "kind" else text[:200])


@pytest.mark.parametrize("how", ["truncated", "edited", "gone", "kind", "half a manifest"])
def test_a_damaged_expert_is_refused(
    how: str, chat: Callable, refused: Callable, experts: dict[str, ExpertEntry]
) -> None:
    damaged_bytes(experts["math"], how)
    refused(chat("x", "--expert", "math"), 5)


def test_an_expert_with_numbers_that_are_none_is_refused(
    chat: Callable, refused: Callable, experts: dict[str, ExpertEntry]
) -> None:
    import hashlib
    import struct

    entry = experts["math"]
    content = entry.z_bytes()[:-4] + struct.pack("<f", float("nan"))
    (entry.path / "z.safetensors").write_bytes(content)
    manifest = entry.path / "expert.yaml"
    manifest.write_text(manifest.read_text().replace(entry.manifest.z.sha256, hashlib.sha256(content).hexdigest()))
    refused(chat("x", "--expert", "math"), 5, "NaN or infinite")


def test_an_answer_ends_where_the_context_does(chat: Callable) -> None:
    result = chat("zq" * 235, "--adapt", "none", "--json", "--max-new-tokens", "100")
    timing = json.loads(result.stdout)["timing"]
    assert timing["prompt_tokens"] + timing["answer_tokens"] <= 512


def test_a_reader_that_leaves_is_no_error(process: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run([*process, "what", "-q"], stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, b"")


def test_standard_input_that_is_closed_holds_no_question(process: list[str]) -> None:
    result = subprocess.run(
        ["/bin/sh", "-c", '"$@" <&-', "sh", *process], capture_output=True, text=True, check=False, timeout=60
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: standard input holds no question\n")


def test_answers_come_as_the_lines_do(process: list[str]) -> None:
    with subprocess.Popen([*process, "-q"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        for _ in range(2):  # each answer is there before the next question is written
            running.stdin.write(b"what is it?\n")
            running.stdin.flush()
            assert select.select([running.stdout], [], [], 60)[0]
            assert running.stdout.readline().endswith(b"\n")
        running.stdin.close()
        assert running.wait(timeout=30) == 0


class Terminal:
    """A process on a terminal of its own, and what a person sees of it."""

    def __init__(self, command: list[str], **streams: Any) -> None:
        import pty

        self.master, slave = pty.openpty()
        given = {"stdin": slave, "stdout": slave, "stderr": slave, **streams}
        self.process = subprocess.Popen(
            command,
            **given,
            env={**os.environ, "TERM": "dumb"},
            start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(slave), os.O_RDWR)),  # makes it the controlling one
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, text: str, *, seconds: float = 60) -> str:
        """Read until `text` has come; return what came before it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            left = end - time.monotonic()
            assert left > 0, f"no {text!r} in {self.seen!r}"
            if select.select([self.master], [], [], left)[0]:
                try:
                    self.seen += os.read(self.master, 4096).decode(errors="replace")
                except OSError as error:  # the other end is closed
                    raise AssertionError(f"ended without {text!r}: {self.seen!r}") from error
        before, _, self.seen = self.seen.partition(text)
        return before

    def record(self) -> dict[str, Any]:
        """Return the next answer of --json."""
        self.until('{"schema"')
        loaded: dict[str, Any] = json.loads('{"schema"' + self.until("}}") + "}}")
        return loaded

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_terminal(command: list[str], **streams: Any) -> Terminal:
        opened.append(Terminal(command, **streams))
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.close()


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
def test_a_conversation_at_a_terminal(process: list[str], terminal: Callable[..., Terminal]) -> None:
    person = terminal([*process, "--json", "--adapt", "none", "--max-new-tokens", "40"])
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
    process: list[str], terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    with (tmp_path / "answers").open("wb") as answers:
        person = terminal([*process, "--expert", "math", "--max-new-tokens", "450"], stdout=answers)
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


def test_the_dispatch_line() -> None:
    assert explained(Decision("none")) == "[base model]"
    assert explained(Decision("fixed", weights={"math@1": 1.0})) == "[math@1]"
    assert explained(Decision("fixed", weights={"a@1": 0.25, "b@2": -1.0})) == "[0.25 a@1 + -1 b@2]"
    probabilities = {"math": 0.874, "other": 0.126}
    assert explained(Decision("prompt", "math", probabilities, {"math@3": 1.0})) == "[math 87% -> math@3]"
    assert explained(Decision("prompt", "other", {"other": 1.0})) == "[other 100% -> base model]"


@pytest.mark.parametrize(
    "pieces",
    [
        ["one two"],
        ["one", " ", "two"],
        ["on", "e t", "wo"],
        ["  one\n", "\n\ttwo \n"],
        ["\u2028one\u2028", "two\x85", "\x1c\r\n"],
        ["one\r", "\ntwo"],
        ["", "one", "", " two", ""],
        [" ", "\n"],
        [],
    ],
)
def test_an_answer_is_folded_into_one_line(pieces: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    writer = _Folded(Output())
    for piece in pieces:
        writer.add(piece)
    assert capsys.readouterr().out == " ".join("".join(pieces).split())
