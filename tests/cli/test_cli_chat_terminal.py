"""t2 chat at a real terminal: editing, history, completion, slash commands, and what may go wrong meanwhile."""

from __future__ import annotations

import json
import os
import select
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from terminals import EDITING, Terminal

from t2cli.cli.chat_commands import COMMANDS, is_command
from t2cli.cli.chat_session import Conversation
from t2cli.cli.output import Output
from t2cli.config import SamplingConfig
from t2cli.dispatch.two_pass import TwoPass
from t2cli.models.adapted import AdaptedModel
from t2cli.registry.local import ExpertEntry, LocalRegistry

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")

UP, BACKSPACE, TAB = "\x1b[A", "\x7f", "\t"


@pytest.fixture
def person(chat_process: list[str], terminal: Callable[..., Terminal]) -> Callable[..., Terminal]:
    """Return a function that begins a conversation on a terminal that can edit lines."""

    def begin(*options: str) -> Terminal:
        started = terminal([*chat_process, "--json", *options], kind="xterm")
        assert "/help" in started.prompted()
        return started

    return begin


def told(who: Terminal, line: str) -> str:
    """Type a line and return what is said until the next line can be typed."""
    who.type(line + "\r")
    return who.prompted()


def answered(who: Terminal, line: str) -> dict:
    """Type a question and return its answer's record."""
    who.type(line + "\r")
    found = who.record()
    who.prompted()
    return found


def pasted(who: Terminal, text: str) -> str:
    """Paste a text that is longer than a terminal takes at once, and return what is said until the next line."""
    data = f"\x1b[200~{text}\x1b[201~\r".encode()
    while data:
        readable, writable, _ = select.select([who.master], [who.master], [], 60)
        assert readable or writable
        if readable:
            os.read(who.master, 1 << 16)  # the echo
        if writable:
            data = data[os.write(who.master, data[:1024]) :]
    return who.prompted()


def ended(who: Terminal) -> int:
    who.type("\x04")
    return who.process.wait(timeout=30)


def test_lines_are_edited_recalled_and_completed(person: Callable[..., Terminal], tmp_path: Path) -> None:
    who = person("--adapt", "none")
    first = answered(who, "whaX" + BACKSPACE + "t is it?")
    again = answered(who, UP)
    assert again["timing"]["prompt_tokens"] > 2 * first["timing"]["prompt_tokens"]
    who.type("/exp" + TAB)
    who.until("ert")  # completion takes a moment, and typing on would stop it
    who.type(" ma" + TAB)
    who.until("th")
    assert "(math@1 answers)" in told(who, "")
    who.type("/mix math:0.5,sto" + TAB)
    who.until("ry")
    assert "(0.5 math@1 + 0.25 story@1 answers)" in told(who, ":0.25")
    history = tmp_path / "home" / "chat-history"
    typed = [line[1:] for line in history.read_text().splitlines() if line.startswith("+")]
    assert typed[:2] == ["what is it?", "/expert math"]  # what is typed twice in a row is kept once
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert ended(who) == 0
    later = person("--adapt", "none")
    assert answered(later, UP * 3)["answer"] == first["answer"]  # the first line of the earlier conversation
    assert ended(later) == 0


@pytest.mark.parametrize("off", ["option", "environment"])
def test_the_history_can_be_switched_off(
    off: str, person: Callable[..., Terminal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if off == "environment":
        monkeypatch.setenv("T2_HISTORY", "off")
    who = person(*(["--no-history"] if off == "option" else []))
    told(who, "/help")
    assert ended(who) == 0
    assert not (tmp_path / "home" / "chat-history").exists()


def test_a_history_that_cannot_be_kept_ends_nothing(person: Callable[..., Terminal], tmp_path: Path) -> None:
    (tmp_path / "home" / "chat-history").mkdir(parents=True)
    who = person()
    assert "/compare" in told(who, "/help")
    assert ended(who) == 0


def test_every_command(person: Callable[..., Terminal], tmp_path: Path) -> None:
    who = person()
    assert "nothing was decided yet" in told(who, "/why")
    assert "no question to compare" in told(who, "/compare")
    assert "nothing was said yet" in told(who, f"/save {tmp_path}/talk.jsonl")
    said = told(who, "/exprt math")
    assert "there is no command /exprt" in said
    assert "did you mean /expert" in said
    assert "/reset takes no argument" in told(who, "/reset all")
    said = told(who, "/help")
    assert all(name in said for name in COMMANDS)
    first = answered(who, "What is 1 + 2?")
    category, weights = first["dispatch"]["category"], first["dispatch"]["weights"]
    said = told(who, "/why")
    assert all(f"{name:24}" in said for name in ("math", "story", "other"))
    assert f"{first['dispatch']['probabilities'][category]:.1%}" in said
    assert (next(iter(weights)) if weights else "the base model answers") in said
    for wrong, hint in {"/expert mth": "did you mean math", "/mix": "math:0.6", "/adapt promt": "prompt"}.items():
        assert hint in told(who, wrong)
    assert "(math@1 answers)" in told(who, "/expert math")
    who.type("/compare\r")
    plain, adapted = who.record(), who.record()
    who.prompted()
    assert (plain["dispatch"]["weights"], adapted["dispatch"]["weights"]) == ({}, {"math@1": 1.0})
    assert plain["answer"] != adapted["answer"]
    assert "chosen by hand: math@1" in told(who, "/why")
    second = answered(who, "and then?")  # comparing left the conversation as it was
    file = tmp_path / "talk.jsonl"
    assert "(4 messages saved in " in told(who, f"/save {file}")
    messages = [json.loads(line) for line in file.read_text().splitlines()]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert [messages[1]["content"], messages[3]["content"]] == [first["answer"], second["answer"]]
    assert "(4 messages saved in " in told(who, f"/save {file}")  # its own file is written anew
    (tmp_path / "mine").write_text("precious")
    assert "is there already" in told(who, f"/save {tmp_path}/mine")
    assert (tmp_path / "mine").read_text() == "precious"
    assert "(auto chooses)" in told(who, "/expert auto")
    assert "(a new conversation)" in told(who, "/reset")
    assert answered(who, "What is 1 + 2?")["answer"] == first["answer"]
    assert "(the base model answers)" in told(who, "/expert none")
    assert answered(who, "/etc/hosts is what?")["dispatch"]["weights"] == {}
    who.type("/exit\r")
    assert who.process.wait(timeout=30) == 0


def test_quiet_answers_are_told_apart_where_they_are_compared(
    chat_process: list[str], terminal: Callable[..., Terminal]
) -> None:
    who = terminal([*chat_process, "--quiet", "--expert", "math"], kind="xterm")
    who.prompted()
    assert "[" not in told(who, "what is it?").replace("\x1b[", "")
    said = told(who, "/compare")
    assert said.index("[base model]") < said.index("[math@1]")
    assert ended(who) == 0


def test_what_is_typed_may_be_no_text_and_have_a_megabyte(person: Callable[..., Terminal]) -> None:
    who = person("--adapt", "none")
    os.write(who.master, b"caf\xe9 \xff\xfe?\r")
    assert who.record()["answer"] is not None
    who.prompted()
    said = pasted(who, "y " * 500_000)
    assert "reads at most 512" in said
    assert answered(who, "what")["answer"]
    assert ended(who) == 0


def test_an_expert_that_is_deleted_meanwhile(
    person: Callable[..., Terminal], chat_experts: dict[str, ExpertEntry], t2: Callable, tmp_path: Path
) -> None:
    who = person("--expert", "story")
    assert answered(who, "what is it?")["dispatch"]["weights"] == {"story@1": 1.0}
    assert t2("rm", "story", "--yes", "--registry", tmp_path / "experts").returncode == 0
    said = told(who, "what is it?")
    assert "warning: story@1 cannot answer" in said
    assert "the base model answers" in said
    assert '"weights": {}' in said
    assert "there is no expert named 'story'" in told(who, "/expert story")
    assert "(auto chooses)" in told(who, "/expert auto")
    decided = answered(who, "what is it?")["dispatch"]
    assert set(decided["probabilities"]) == {"math", "other"}  # the rest
    assert "(math@1 answers)" in told(who, "/expert math")
    (chat_experts["math"].path / "z.safetensors").write_bytes(b"")
    assert "(math@1 answers)" in told(who, "/expert math@1")  # what is in memory is whole
    assert ended(who) == 0


def test_a_long_conversation_is_cut_with_a_notice(person: Callable[..., Terminal]) -> None:
    who = person("--adapt", "none")
    for _ in range(2):
        answered(who, "zq" * 110)
    said = told(who, "zq" * 110)
    assert "longer than the context: its first turn is forgotten" in " ".join(said.split())
    assert '"schema"' in said
    said = told(who, "zq" * 300)  # alone it does not fit either
    assert "reads at most 512" in said
    assert answered(who, "what")["answer"]
    assert ended(who) == 0


def test_ctrl_c_empties_the_line_or_stops_the_answer(person: Callable[..., Terminal]) -> None:
    who = person("--expert", "math", "--max-new-tokens", "450")
    who.type("not to be asked\x03")
    assert "{" not in who.until(EDITING)
    who.type("half an answer, please\r")
    who.until("[math@1]")
    who.type("\x03")
    who.until("(stopped)")
    who.prompted()
    assert "chosen by hand: math@1" in told(who, "/why")
    assert ended(who) == 0


def test_completions(adapt: Callable[..., AdaptedModel], chat_experts: dict[str, ExpertEntry], tmp_path: Path) -> None:
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    from t2cli.cli.chat_prompt import Words

    two_pass = TwoPass(adapt("llama"), LocalRegistry([tmp_path / "experts"]), quiet=True)
    words = Words(Conversation(Output(), two_pass, two_pass.strategy("none"), SamplingConfig(), "prompt"))

    def after(text: str) -> list[str]:
        found = words.get_completions(Document(text), CompleteEvent())
        return [text[: len(text) + each.start_position] + each.text for each in found]

    assert after("/") == list(COMMANDS)
    assert after("/e") == ["/expert", "/exit"]
    assert after("what /e") == after("wh") == after("/why ") == []
    assert after("/expert ") == [f"/expert {word}" for word in ("auto", "none", "math", "story")]  # of this base only
    assert after("/expert story@") == ["/expert story@1"]
    assert after("/mix math:0.5, st") == ["/mix math:0.5, story"]
    assert after("/adapt ") == ["/adapt auto", "/adapt classifier", "/adapt prompt", "/adapt none"]
    assert after(f"/save {tmp_path}/exp") == [f"/save {tmp_path}/experts"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/why", True),
        ("/", True),
        ("/?", True),
        ("/save a/b", True),
        ("/etc/hosts", False),
        ("why", False),
        ("", False),
    ],
)
def test_what_is_a_command(line: str, expected: bool) -> None:
    assert is_command(line) is expected
