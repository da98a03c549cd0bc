"""t2 chat --threshold and --soft: how certain pass 1 has to be, and mixes by probability."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from t2cli.cli.chat_commands import run as run_command
from t2cli.cli.chat_output import explained
from t2cli.cli.chat_session import Conversation
from t2cli.cli.output import Output
from t2cli.config import DispatchConfig, SamplingConfig
from t2cli.dispatch.choice import DIGITS
from t2cli.dispatch.decision import Decision
from t2cli.dispatch.two_pass import TwoPass
from t2cli.errors import OutputError
from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import ExpertEntry, LocalRegistry

# of the tiny base some have an expert's category and some none
QUESTIONS = (
    "What is 1 + 2?",
    "Anna likes cats. Who likes cats?",
    "6 * 7",
    "x",
    "What is 3 * 4? What is 3 * 4?",
    "é" * 40,
)


@pytest.fixture
def ask(run: Callable, chat_options: list[str], chat_experts: dict[str, ExpertEntry]) -> Callable:
    """Return a function that answers all QUESTIONS with --json and returns the records and what was said."""

    def answers(*options: str) -> tuple[list[dict[str, Any]], list[str]]:
        result = run("chat", "--json", *options, *chat_options, stdin="\n".join(QUESTIONS))
        assert result.exit_code == 0, result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()], result.stderr.splitlines()

    return answers


def test_a_threshold_leaves_what_is_less_certain_to_the_base(ask: Callable) -> None:
    plain, _ = ask("--threshold", "0")
    chosen = [record["dispatch"] for record in plain if record["dispatch"]["weights"]]
    assert chosen
    shares = sorted(dispatch["probabilities"][dispatch["category"]] for dispatch in chosen)
    threshold = min(1.0, shares[0] + 1e-5)  # more than the least certain of them has
    records, said = ask("--threshold", str(threshold))
    base, _ = ask("--adapt", "none")
    left = 0
    for before, after, alone, line in zip(plain, records, base, said, strict=True):
        dispatch = after["dispatch"]
        assert dispatch["probabilities"] == before["dispatch"]["probabilities"]
        assert dispatch["category"] == before["dispatch"]["category"]
        if before["dispatch"]["weights"] and dispatch["probabilities"][dispatch["category"]] < threshold:
            left += 1
            assert (dispatch["weights"], dispatch["abstained"]) == ({}, True)
            assert after["answer"] == alone["answer"]
            assert line.endswith(f", below {threshold:.0%} -> base model]")
        else:
            assert (dispatch["weights"], after["answer"]) == (before["dispatch"]["weights"], before["answer"])
            assert "below" not in line
    assert left == sum(share < threshold for share in shares) > 0


def test_soft_mixes_by_probability_and_says_so(ask: Callable, run: Callable, chat_options: list[str]) -> None:
    plain, _ = ask()
    records, said = ask("--soft")
    mixes = 0
    for question, before, after, line in zip(QUESTIONS, plain, records, said, strict=True):
        dispatch = after["dispatch"]
        assert dispatch["category"] == before["dispatch"]["category"]
        if not before["dispatch"]["weights"]:
            assert dispatch["weights"] == {}
            continue
        shares = {f"{name}@1": round(p, DIGITS) for name, p in dispatch["probabilities"].items() if name != "other"}
        assert dispatch["weights"] == pytest.approx({ref: p for ref, p in shares.items() if p}, abs=0.01)
        mix = ",".join(f"{reference}:{alpha}" for reference, alpha in dispatch["weights"].items())
        by_hand = run("chat", "--json", question, "--mix", mix, *chat_options)
        assert json.loads(by_hand.stdout)["answer"] == after["answer"]
        mixes += len(dispatch["weights"]) > 1
        share = f"{dispatch['probabilities'][dispatch['category']]:.0%}"
        parts = (ref if alpha == 1 else f"{ref}:{alpha:g}" for ref, alpha in dispatch["weights"].items())
        assert line == f"[{dispatch['category']} {share} -> {' '.join(parts)}]"
    assert mixes


def test_rows_of_a_script_are_dispatched_alike(
    ask: Callable, run: Callable, chat_options: list[str], chat_experts: dict[str, ExpertEntry]
) -> None:
    rows = "".join(json.dumps({"prompt": question}) + "\n" for question in QUESTIONS)
    for options in (["--soft"], ["--threshold", "1"], ["--soft", "--threshold", "0.6"]):
        alone, _ = ask(*options)
        batched = run("chat", "--jsonl", "--batch", "4", *options, *chat_options, stdin=rows)
        assert (batched.exit_code, batched.stderr) == (0, "")
        for one, other in zip(alone, map(json.loads, batched.stdout.splitlines()), strict=True):
            assert one["answer"] == other["answer"]
            for field in ("category", "weights", "abstained"):
                assert one["dispatch"][field] == other["dispatch"][field]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--threshold", "1.5"], ["--threshold must lie between 0 and 1", "0.5"]),
        (["--threshold", "-0.1"], ["--threshold must lie between 0 and 1"]),
        (["--threshold", "nan"], ["--threshold must lie between 0 and 1"]),
        (["--threshold", "half"], ["--threshold", "number"]),
        (["--threshold", "0.5", "--expert", "math"], ["--threshold needs a strategy", "--expert"]),
        (["--soft", "--mix", "math:1"], ["--soft needs a strategy", "--mix"]),
        (["--soft", "--adapt", "none"], ["--soft needs a strategy", "--adapt none"]),
        (["--soft", "--threshold", "0.5", "--adapt", "none"], ["--threshold and --soft need a strategy"]),
        (["--soft", "--adapt", "few-shot", "--examples", "FEW"], ["--soft needs a strategy", "few-shot"]),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], said: list[str], run: Callable, refused: Callable, chat_options: list[str], tmp_path: Any
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"prompt": f"{n}?", "answer": str(n)}) + "\n" for n in range(4)))
    given = [str(few) if word == "FEW" else word for word in arguments]
    refused(run("chat", "x", *given, *chat_options), 2, *said)


def test_the_dispatch_line() -> None:
    probabilities = {"math": 0.71, "reasoning": 0.22, "other": 0.07}
    soft = Decision("prompt", "math", probabilities, {"math@1": 0.71, "reasoning@1": 0.22})
    assert explained(soft) == "[math 71% -> math@1:0.71 reasoning@1:0.22]"
    assert explained(Decision("prompt", "math", probabilities, threshold=0.8)) == "[math 71%, below 80% -> base model]"
    assert explained(Decision("prompt", "math", probabilities, threshold=0.71)) == "[math 71% -> base model]"
    assert explained(Decision("prompt", "other", {"other": 0.4}, threshold=0.8)) == "[other 40% -> base model]"


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        (
            Decision("prompt", "math", {"math": 0.71, "other": 0.29}, threshold=0.8),
            "71.0% below the threshold of 80.0%",
        ),
        (Decision("prompt", "music", {"music": 1.0}), "found music the likeliest, and there is no expert for it"),
        (Decision("prompt", "other", {"other": 1.0}), "found no category that the question belongs to"),
        (
            Decision("prompt", "math", {"math": 0.7, "story": 0.2}, {"math@1": 0.7, "story@1": 0.2}),
            "mixes by probability: 0.7 math@1 + 0.2 story@1, and the base model with 0.10",
        ),
        (Decision("prompt", "math", {"math": 1.0}, {"math@1": 1.0}), "found math the likeliest: its expert is math@1"),
    ],
)
def test_why(
    decision: Decision, said: str, adapt: Callable[..., AdaptedModel], capsys: pytest.CaptureFixture[str]
) -> None:
    two_pass = TwoPass(adapt("llama"), LocalRegistry([]), quiet=True)
    talk = Conversation(Output(), two_pass, two_pass.strategy("none"), SamplingConfig(4), "prompt")
    talk.decision = decision
    run_command(talk, "/why")
    assert said in " ".join(capsys.readouterr().err.split())


def test_adapt_and_expert_alone_say_who_answers(
    adapt: Callable[..., AdaptedModel],
    chat_experts: dict[str, ExpertEntry],
    tmp_path: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    two_pass = TwoPass(adapt("llama"), LocalRegistry([tmp_path / "experts"]), quiet=True)
    talk = Conversation(Output(), two_pass, two_pass.strategy("auto"), SamplingConfig(4), "auto")
    for command, said in {
        "/adapt": "(auto chooses)",
        "/expert math": "(math@1 answers)",
        "/mix math:0.5": "(0.5 math@1 answers)",
        "/expert none": "(the base model answers)",
        "/adapt prompt": "(prompt chooses)",
    }.items():
        if " " in command:
            run_command(talk, command)
        for alone in ("/adapt", "/expert"):
            capsys.readouterr()
            run_command(talk, alone)
            assert capsys.readouterr().err.splitlines() == [said]


def test_a_strategy_that_lost_what_it_needs_leaves_the_base_to_answer(
    adapt: Callable[..., AdaptedModel],
    chat_experts: dict[str, ExpertEntry],
    dispatcher: ExpertEntry,
    tmp_path: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    two_pass = TwoPass(adapt("llama"), LocalRegistry([tmp_path / "experts"]), quiet=True)
    talk = Conversation(Output(quiet=True), two_pass, two_pass.strategy("classifier"), SamplingConfig(4), "classifier")
    chosen = [
        question for question in QUESTIONS if talk.strategy.decide([{"role": "user", "content": question}]).weights
    ]
    assert chosen
    for entry in (dispatcher, *chat_experts.values()):
        shutil.rmtree(entry.path.parent)
    for _ in range(2):
        talk.turn(chosen[0])
        assert talk.decision is not None
        assert not talk.decision.weights
        assert "warning: the base model answers" in capsys.readouterr().err
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2


@pytest.mark.parametrize("name", ["x" * 300, "file.txt/talk.jsonl"])
def test_what_cannot_be_saved_ends_no_conversation(
    name: str, adapt: Callable[..., AdaptedModel], tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.txt").touch()
    two_pass = TwoPass(adapt("llama"), LocalRegistry([]), quiet=True)
    talk = Conversation(Output(quiet=True), two_pass, two_pass.strategy("none"), SamplingConfig(4), "prompt")
    talk.messages = [{"role": "user", "content": "x"}]
    run_command(talk, f"/save {tmp_path}/{name}")
    assert "could not be written" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this platform has no /dev/full")  # noqa: PTH110
def test_a_conversation_ends_where_nobody_can_read_it(
    adapt: Callable[..., AdaptedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    two_pass = TwoPass(adapt("llama"), LocalRegistry([]), quiet=True)
    talk = Conversation(Output(quiet=True), two_pass, two_pass.strategy("none"), SamplingConfig(4), "prompt")
    talk.question = [{"role": "user", "content": "x"}]
    for ask in (lambda: talk.turn("what?"), lambda: run_command(talk, "/compare")):
        with open("/dev/full", "w") as full, contextlib.suppress(OSError):  # noqa: PTH123
            monkeypatch.setattr("sys.stdout", full)
            with pytest.raises(OutputError):
                ask()
    assert talk.messages == []


def test_a_conversation_keeps_the_options(
    adapt: Callable[..., AdaptedModel], chat_experts: dict[str, ExpertEntry], tmp_path: Any
) -> None:
    two_pass = TwoPass(adapt("llama"), LocalRegistry([tmp_path / "experts"]), quiet=True)
    config = DispatchConfig(1.0, soft=True)
    before = two_pass.strategy("none")
    talk = Conversation(Output(quiet=True), two_pass, before, SamplingConfig(4), "prompt", config)
    for command in ("/adapt prompt", "/expert auto"):
        run_command(talk, "/expert none")
        run_command(talk, command)
        for question in QUESTIONS:
            decision = talk.decided([{"role": "user", "content": question}])
            assert decision.abstained
            assert decision.below_threshold == (decision.category != "other")
