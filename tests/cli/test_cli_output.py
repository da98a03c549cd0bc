"""The sink: which stream, what shape, and how errors read."""

from __future__ import annotations

import json

import pytest

from t2cli.cli.output import Output, one_line, render_error, table
from t2cli.errors import CorruptArtifactError, Interrupted, NotFoundError, T2Error, UsageError


def test_people_get_data_on_stdout_and_talk_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    out.data("row")
    out.data("to", end="")
    out.emit("list", {"experts": []})
    out.say("talk")
    out.warn("two\nlines")
    assert capsys.readouterr() == ("row\nto", "talk\nwarning: two lines\n")


def test_json_is_the_only_thing_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(json=True)
    out.data("row")
    out.emit("list", {"experts": ["é\udc80"]})
    out.say("talk")
    stdout, stderr = capsys.readouterr()
    assert json.loads(stdout) == {"schema": "t2.list/1", "experts": ["é\udc80"]}
    assert (stdout.isascii(), stdout.count("\n"), stderr) == (True, 1, "talk\n")


def test_json_refuses_what_json_cannot_say() -> None:
    with pytest.raises(ValueError, match="JSON"):
        Output(json=True).emit("eval", {"accuracy": float("nan")})


def test_quiet_keeps_data_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(quiet=True)
    out.data("row")
    out.say("talk")
    out.aside("math 0.98")
    out.warn("careful")
    assert capsys.readouterr() == ("row\n", "warning: careful\n")


def test_a_table_is_aligned_columns_without_trailing_spaces() -> None:
    text = table(("NAME", "N"), [("a", "1"), ("longer", "22")], right=(1,))
    assert text == "NAME     N\na        1\nlonger  22"


def test_a_narrow_table_shortens_the_widest_words_and_never_a_number() -> None:
    row = ("a-name-of-twenty-one.", "a-word-of-18-chars", "+21.3 [16.0, 26.4]")
    text = table(("NAME", "SOURCE", "GAIN"), [row], shrink=(0, 1), width=45)
    assert max(map(len, text.splitlines())) == 45
    assert text.splitlines()[1].endswith("…  +21.3 [16.0, 26.4]")
    impossible = table(("NAME", "SOURCE", "GAIN"), [row], shrink=(0, 1), width=10)
    assert impossible.splitlines()[1] == "a-nam…  a-wor…  +21.3 [16.0, 26.4]"


def test_one_line_escapes_control_characters_and_ends() -> None:
    assert one_line("a\n b\x1b[31m\u202e") == r"a b\x1b[31m\u202e"
    assert len(one_line("x" * 10_000)) == 500


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (NotFoundError("no such base", hint="t2 list"), 3, ["error: no such base", "hint: t2 list"]),
        (
            UsageError("what\nwhy\nand why", hint="do\nthis"),
            2,
            ["error: what", "why and why", "hint: do this"],
        ),
        (CorruptArtifactError("bad \x1b[2J file"), 5, [r"error: bad \x1b[2J file"]),
        (T2Error(""), 1, ["error: T2Error"]),
        (
            Interrupted("step 3 is saved", hint="--resume"),
            130,
            ["interrupted: step 3 is saved", "hint: --resume"],
        ),
        (KeyboardInterrupt(), 130, ["interrupted"]),
    ],
)
def test_an_error_is_at_most_three_lines_and_has_a_code(
    error: BaseException, code: int, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert render_error(error) == code
    stdout, stderr = capsys.readouterr()
    assert (stdout, stderr.splitlines()) == ("", lines)


def test_an_unexpected_error_names_its_type_and_asks_for_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert render_error(ZeroDivisionError("division\nby zero")) == 1
    what, hint = capsys.readouterr().err.splitlines()
    assert what == "error: ZeroDivisionError: division by zero"
    assert hint.startswith("hint: ")
    assert "T2_DEBUG=1" in hint


def test_the_traceback_comes_only_with_debug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T2_DEBUG", "1")
    try:
        raise NotFoundError("no such base")
    except NotFoundError as error:
        render_error(error)
    stderr = capsys.readouterr().err
    assert stderr.startswith("Traceback (most recent call last):")
    assert stderr.endswith("error: no such base\n")
