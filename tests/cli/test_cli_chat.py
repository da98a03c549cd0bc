"""t2 chat: one prompt, a pipe, a terminal; every answer with its dispatch, every failure in three lines."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from t2cli.cli.chat_output import Folded, explained
from t2cli.cli.output import Output
from t2cli.dispatch.decision import Decision
from t2cli.registry.local import ExpertEntry

FIELDS = ["schema", "id", "answer", "dispatch", "timing"]
DISPATCH = ["strategy", "category", "probabilities", "weights", "abstained"]
TIMING = ["dispatch_seconds", "first_token_seconds", "answer_seconds", "prompt_tokens", "answer_tokens"]


@pytest.fixture
def chat(run: Callable, chat_options: list[str], chat_experts: dict[str, ExpertEntry]) -> Callable:
    """Return a function that runs t2 chat with the tiny base and the experts."""
    return lambda *arguments, stdin="": run("chat", *arguments, *chat_options, stdin=stdin)


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


def test_blank_lines_alone_are_answered_and_no_question(chat: Callable) -> None:
    result = chat(stdin="\n \n\t\n")
    assert (result.exit_code, result.stdout) == (2, "\n\n\n")
    assert "error: standard input holds no question" in result.stderr.splitlines()


def test_a_byte_order_mark_is_no_part_of_the_question(chat: Callable) -> None:
    with_mark, without = (chat("--json", stdin=mark + b"what\n") for mark in (b"\xef\xbb\xbf", b""))
    answers = [json.loads(result.stdout) for result in (with_mark, without)]
    assert answers[0]["timing"]["prompt_tokens"] == answers[1]["timing"]["prompt_tokens"]
    assert answers[0]["answer"] == answers[1]["answer"]


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


def test_with_no_experts_at_all_the_base_answers(run: Callable, chat_options: list[str]) -> None:
    result = run("chat", "what is it?", *chat_options, "--json")
    assert result.exit_code == 0, result.stderr
    dispatch = json.loads(result.stdout)["dispatch"]
    assert (dispatch["category"], dispatch["weights"], dispatch["abstained"]) == ("other", {}, True)
    plain = run("chat", "what is it?", *chat_options, "--json", "--adapt", "none")
    assert json.loads(plain.stdout)["answer"] == json.loads(result.stdout)["answer"]


def test_an_expert_that_cannot_be_read_is_warned_of(chat: Callable, chat_experts: dict[str, ExpertEntry]) -> None:
    (chat_experts["story"].path / "expert.yaml").write_text("schema: 1\nname: story\n")
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
        ([], "y" * 1_000_000 + "\n", 2, ["line 1: ", "at most 512"]),
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
    chat_options: list[str],
) -> None:
    # what comes last on the command line counts
    result = run("chat", *chat_options, *arguments, stdin=stdin)
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
    how: str, chat: Callable, refused: Callable, chat_experts: dict[str, ExpertEntry]
) -> None:
    damaged_bytes(chat_experts["math"], how)
    refused(chat("x", "--expert", "math"), 5)


def test_an_expert_with_numbers_that_are_none_is_refused(
    chat: Callable, refused: Callable, chat_experts: dict[str, ExpertEntry]
) -> None:
    import hashlib
    import struct

    entry = chat_experts["math"]
    content = entry.z_bytes()[:-4] + struct.pack("<f", float("nan"))
    (entry.path / "z.safetensors").write_bytes(content)
    manifest = entry.path / "expert.yaml"
    manifest.write_text(manifest.read_text().replace(entry.manifest.z.sha256, hashlib.sha256(content).hexdigest()))
    refused(chat("x", "--expert", "math"), 5, "NaN or infinite")


def test_an_answer_ends_where_the_context_does(chat: Callable) -> None:
    result = chat("zq" * 235, "--adapt", "none", "--json", "--max-new-tokens", "100")
    timing = json.loads(result.stdout)["timing"]
    assert timing["prompt_tokens"] + timing["answer_tokens"] <= 512


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
    writer = Folded(Output())
    for piece in pieces:
        writer.add(piece)
    assert capsys.readouterr().out == " ".join("".join(pieces).split())
