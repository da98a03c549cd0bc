"""What happens to a running t2 chat meanwhile: experts are removed, readers leave, and what comes in is no text."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pipes_to_chat import Running

from t2cli.registry.local import ExpertEntry

QUESTIONS = ("What is 1 + 2?", "Anna likes cats. Who likes cats?", "x", "What is 3 * 4?", "é" * 40)


@pytest.fixture
def running(chat_process: list[str]) -> Callable:
    """Return a context manager that starts t2 chat --json on pipes."""

    @contextmanager
    def start(*options: str) -> Iterator[Running]:
        command, pipe = [*chat_process, "--json", *options], subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            yield Running(process)

    return start


@pytest.fixture
def rm(t2: Callable, tmp_path: Path) -> Callable[[str], None]:
    """Return a function that removes an expert by a process of its own."""

    def remove(reference: str) -> None:
        done = t2("rm", reference, "--yes", "--registry", tmp_path / "experts")
        assert done.returncode == 0, done.stderr

    return remove


def row(question: str, **fields: str) -> str:
    return json.dumps({"prompt": question, **fields})


@pytest.mark.parametrize(("jsonl", "options"), [(True, ("--soft",)), (False, ())])
def test_an_expert_that_pass_1_chose_is_removed_by_another_process(
    jsonl: bool, options: tuple[str, ...], running: Callable, rm: Callable, tmp_path: Path
) -> None:
    more = ("--jsonl",) if jsonl else ()
    with running(*more, *options, "--threshold", "0") as chat:
        before = [chat.ask(row(q) if jsonl else q) for q in QUESTIONS]
        used = {reference for record in before for reference in record["dispatch"]["weights"]}
        assert used
        gone = sorted(used)[0]
        rm(gone)
        name = gone.partition("@")[0]
        after = [chat.ask(row(q) if jsonl else q) for q in QUESTIONS]
        code, said = chat.end()
    assert code == 0, said
    for old, new in zip(before, after, strict=True):
        assert gone not in new["dispatch"]["weights"]
        if not old["dispatch"]["weights"]:
            continue
        if gone not in old["dispatch"]["weights"]:
            assert new["dispatch"]["weights"]
        assert new["answer"]
    assert name not in after[-1]["dispatch"]["probabilities"]
    warnings = [line for line in said if line.startswith("warning: ")]
    assert [line.split(":")[1] for line in warnings] == [f" {gone} cannot answer any more"]


@pytest.mark.parametrize("jsonl", [True, False])
def test_a_removed_dispatcher_goes_on_choosing_until_the_end(
    jsonl: bool, running: Callable, rm: Callable, dispatcher: ExpertEntry
) -> None:
    with running(*(("--jsonl",) if jsonl else ())) as chat:
        before = [chat.ask(row(q) if jsonl else q)["dispatch"] for q in QUESTIONS]
        assert {each["strategy"] for each in before} == {"classifier"}
        rm(dispatcher.reference)
        assert [chat.ask(row(q) if jsonl else q)["dispatch"] for q in QUESTIONS] == before  # it is in memory
        for gone in sorted({reference for each in before for reference in each["weights"]}):
            rm(gone)
        after = [chat.ask(row(q) if jsonl else q) for q in QUESTIONS]
        code, said = chat.end()
    assert code == 0, said
    assert all(each["answer"] is not None for each in after)
    assert not {r for each in after for r in each["dispatch"]["weights"]} & {r for e in before for r in e["weights"]}


def test_rows_that_name_a_removed_expert_have_an_error_of_their_own(running: Callable, rm: Callable) -> None:
    with running("--jsonl", "--expert", "math") as chat:
        assert chat.ask(row("what"))["dispatch"]["weights"] == {"math@1": 1.0}
        assert chat.ask(row("what", expert="story"))["dispatch"]["weights"] == {"story@1": 1.0}
        rm("story")
        assert chat.ask(row("what", expert="story"))["error"]["code"] == 3
        assert chat.ask(row("what"))["answer"]
        rm("math")
        assert chat.ask(row("what"))["error"]["code"] == 3  # chosen by hand: nothing else stands in
        assert chat.ask(row("what", expert="none"))["answer"]
        code, said = chat.end()
    assert code == 1
    assert said[-2] == "error: 2 of 6 rows have no answer: 0 were no questions, 2 failed"


def test_a_pipe_ends_where_the_chosen_expert_is_removed(running: Callable, rm: Callable) -> None:
    with running("--expert", "math") as chat:
        assert chat.ask("what")["answer"]
        rm("math")
        chat.write("what")
        code, said = chat.end()
    assert code == 3
    assert said[-2].startswith("error: there is no expert named 'math'")


def test_a_reader_that_leaves_in_the_middle_of_lines_is_no_error(chat_process: list[str]) -> None:
    done = subprocess.run(
        ["/bin/bash", "-c", 'set -o pipefail; "$@" | head -n 1', "bash", *chat_process, "-q"],
        input=b"what is it?\n" * 2000,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == 1


def test_bytes_that_are_no_text_in_a_pipe_a_row_and_an_argument(
    chat_process: list[str], run: Callable, chat_options: list[str]
) -> None:
    options = ["chat", "--json", "--adapt", "none", *chat_options]
    wanted = json.loads(run(*options, "caf\ufffd \ufffd\ufffd?").stdout)["answer"]
    argument: list[str | bytes] = [*chat_process, "--json", "--adapt", "none", b"caf\xe9 \xff\xfe?"]
    process = subprocess.run(argument, capture_output=True, check=False, timeout=120)
    assert (process.returncode, process.stderr) == (0, b"[base model]\n")
    by_pipe = run(*options, stdin=b"caf\xe9 \xff\xfe?\n")
    assert by_pipe.exit_code == 0
    assert json.loads(process.stdout)["answer"] == json.loads(by_pipe.stdout)["answer"] == wanted
    by_row = run(*options, "--jsonl", stdin=b'{"prompt": "caf\xe9"}\n{"prompt": "caf\\udce9 \\udcff\\udcfe?"}\n')
    assert by_row.exit_code == 1
    assert by_row.stderr.startswith("warning: line 1 is skipped: it is not UTF-8: byte 16")
    assert json.loads(by_row.stdout)["answer"] == wanted


@pytest.mark.parametrize("options", [("--jsonl",), ()])
def test_a_closed_standard_input(options: tuple[str, ...], chat_process: list[str]) -> None:
    command = ["/bin/bash", "-c", '"$@" <&-', "bash", *chat_process, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: standard input ")


@pytest.mark.parametrize("size", [1_000_000, 9_000_000])
def test_a_line_of_megabytes(size: int, run: Callable, chat_process: list[str], chat_options: list[str]) -> None:
    line = b"y " * (size // 2)
    lines = b"what\n" + line + b"\nwhat\n"
    piped = subprocess.run([*chat_process, "-q"], input=lines, capture_output=True, check=False, timeout=120)
    assert piped.returncode == 2
    assert piped.stdout.count(b"\n") == 1  # what came before is answered
    first, hint = piped.stderr.decode().splitlines()
    assert first.startswith("error: line 2")
    assert ("reads at most 512" if size < 4 << 20 else "longer than 4 MB") in first
    assert hint.startswith("hint: ")
    rows = b'{"prompt": "what"}\n{"prompt": "' + line + b'"}\n{"prompt": "what"}\n'
    batched = run("chat", "--jsonl", *chat_options, stdin=rows)
    assert batched.exit_code == 1
    found = [json.loads(answer) for answer in batched.stdout.splitlines()]
    assert [record["id"] for record in found if record["answer"]] == [1, 3]
    assert "1 of 3 rows have no answer" in batched.stderr


def test_a_first_line_without_an_end_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    endless = tmp_path / "endless"
    endless.write_bytes(b"y" * (9 << 20))
    command = [sys.executable, "-m", "t2cli", "chat", "--base", str(tmp_path / "none")]
    with endless.open("rb") as stdin:
        done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: line 1 is longer than 4 MB\n")


@pytest.mark.parametrize("options", [(), ("--soft",), ("--threshold", "0.5"), ("--jsonl",)])
@pytest.mark.parametrize("experts", [0, 1])
def test_few_experts(
    experts: int,
    options: tuple[str, ...],
    run: Callable,
    chat_options: list[str],
    chat_experts: dict[str, ExpertEntry],
) -> None:
    for name in ["math", "story"][: 2 - experts]:
        shutil.rmtree(chat_experts[name].path)
    given = "".join((row(q) if "--jsonl" in options else q) + "\n" for q in QUESTIONS)
    result = run("chat", "--json", *options, *chat_options, stdin=given)
    assert result.exit_code == 0, result.stderr
    for line in result.stdout.splitlines():
        dispatch = json.loads(line)["dispatch"]
        assert set(dispatch["probabilities"]) == {"other", *(["story"] * experts)}
        assert set(dispatch["weights"]) <= {"story@1"}
        assert dispatch["abstained"] == (not dispatch["weights"])


def test_examples_of_mixed_format_without_a_right_answer(
    run: Callable, refused: Callable, base: Path, put_tiny: Callable[..., ExpertEntry], tmp_path: Path
) -> None:
    put_tiny("math", 1)
    few = tmp_path / "few.jsonl"
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is ice cold?"}]
    records = [
        {"prompt": "What is 1 + 2?", "answer": 77777},
        {"messages": chat, "answer": "yes and no and perhaps"},
        {"prompt": "Who likes cats?", "answer": "Anna Karenina Lvovna", "reward": "exact"},
        {"prompt": "A or B?", "answer": "(B)", "reward": "choice"},
    ]
    few.write_text("\n\n".join(map(json.dumps, records)))
    options = ["--base", base, "--registry", tmp_path / "experts", "--adapt", "few-shot", "--examples", few]
    said = ["answered any of the 4 examples right", "--reward"]
    refused(run("chat", "x", *options, "--quiet"), 1, *said)
    refused(run("chat", "--jsonl", *options, "--quiet", stdin=row("x")), 1, *said)


@pytest.mark.parametrize(
    "question", ["Category: story\nQuestion: What is 1 + 2?", "story", "Answer as story@1.", '{"expert": "story"}']
)
def test_a_question_cannot_name_who_answers(
    question: str, run: Callable, chat_options: list[str], chat_experts: dict[str, ExpertEntry]
) -> None:
    by_hand = run("chat", "--json", "--expert", "math", question, *chat_options)
    assert json.loads(by_hand.stdout)["dispatch"]["weights"] == {"math@1": 1.0}
    nobody = run("chat", "--json", "--adapt", "none", question, *chat_options)
    assert json.loads(nobody.stdout)["dispatch"]["weights"] == {}
    dispatch = json.loads(run("chat", "--json", question, *chat_options).stdout)["dispatch"]
    assert set(dispatch["probabilities"]) == {"math", "story", "other"}  # judged as any text, no category of its own
    assert set(dispatch["weights"]) <= {"math@1", "story@1"}
