"""The rows of t2 chat --jsonl: what a line may hold, how far it is read ahead, and what was answered before."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from t2cli.cli import chat_rows
from t2cli.cli.chat_rows import LONGEST_LINE, ReadAhead, done_ids, lines_of, parsed
from t2cli.errors import NotFoundError, T2Error, UsageError

USER = [{"role": "user", "content": "what"}]


def row_of(**fields: Any) -> Any:
    row = parsed(9, json.dumps(fields).encode())
    assert row is not None
    return row


def test_what_a_row_may_hold() -> None:
    assert row_of(prompt="what") == chat_rows.Row(9, 9, USER, None)
    assert row_of(messages=USER, id="a").id == "a"
    assert row_of(prompt="what", id=0).id == 0
    assert row_of(prompt="what", expert="math@2").weights == {"math@2": 1.0}
    assert row_of(prompt="what", expert="none").weights == {}
    assert row_of(prompt="what", expert=None, mix=None, id=None) == row_of(prompt="what")
    assert row_of(prompt="what", mix="a:0.6, b:0.4").weights == {"a": 0.6, "b": 0.4}
    assert row_of(prompt="what", mix={"a": 0.1, "b": 1}).weights == {"a": 0.1, "b": 1.0}
    talk = [{"role": "system", "content": ""}, *USER, {"role": "assistant", "content": "it"}, *USER]
    assert row_of(messages=talk).messages == talk
    assert row_of(prompt="\ud800 and \ud83d\ude42").messages[0]["content"] == "\ufffd and 🙂"
    assert parsed(1, b"\xef\xbb\xbf" + b'{"prompt": "after a byte order mark"}') is not None
    assert parsed(3, b" \t\r\n") is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"hello", "no JSON"),
        (b'{"prompt": "half', "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'{"prompt": "caf\xe9"}', "not UTF-8: byte 16"),
        (b'["prompt"]', "no JSON object"),
        (b"{}", "a prompt or messages"),
        (b'{"prompt": "a", "messages": []}', "a prompt or messages"),
        (b'{"prompt": 3}', "prompt"),
        (b'{"prompt": " "}', "empty"),
        (b'{"messages": []}', "messages"),
        (b'{"messages": "a"}', "messages"),
        (b'{"messages": [{"role": "user"}]}', "role and a content"),
        (b'{"messages": [{"role": "tool", "content": "a"}]}', "system, user, assistant"),
        (b'{"messages": [{"role": "user", "content": 3}]}', "content a text"),
        (b'{"messages": [{"role": ["user"], "content": "a"}]}', "system, user, assistant"),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', "last message"),
        (b'{"prompt": "a", "expret": "math"}', "'expret'"),
        (b'{"prompt": "a", "id": true}', "id"),
        (b'{"prompt": "a", "id": 1.5}', "id"),
        (b'{"prompt": "a", "id": ["b"]}', "id"),
        (b'{"prompt": "a", "expert": 1}', "expert"),
        (b'{"prompt": "a", "expert": ""}', "expert"),
        (b'{"prompt": "a", "expert": "m", "mix": "m:1"}', "exclude"),
        (b'{"prompt": "a", "mix": {}}', "mix"),
        (b'{"prompt": "a", "mix": ","}', "mix"),
        (b'{"prompt": "a", "mix": {"m": "1"}}', "the weight of m"),
        (b'{"prompt": "a", "mix": {"m": NaN}}', "the weight of m"),
        (b'{"prompt": "a", "mix": {"m": 1' + b"0" * 400 + b"}}", "the weight of m"),
        (b'{"prompt": "a", "mix": ["m"]}', "mix"),
        (None, "longer than 4 MB"),
    ],
)
def test_what_is_no_row_says_why(line: bytes | None, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parsed(1, line)
    assert said in caught.value.message


def test_endless_lines_are_not_kept_and_the_next_are_read() -> None:
    content = [b"a\n", b"b" * (2 * LONGEST_LINE) + b"\n", b"c\n", b"d" * LONGEST_LINE + b"\n", b"\n", b"last"]
    found = list(lines_of(io.BytesIO(b"".join(content))))
    assert found == [(1, b"a\n"), (2, None), (3, b"c\n"), (4, None), (5, b"\n"), (6, b"last")]


class Endless(io.RawIOBase):
    """Lines without end, counted as they are taken."""

    def __init__(self) -> None:
        self.taken = 0
        self.more = threading.Semaphore(10_000)

    def readline(self, size: int | None = -1, /) -> bytes:
        self.more.acquire()
        self.taken += 1
        return b"x\n"


def test_no_more_than_a_window_waits() -> None:
    stream = Endless()
    windows = ReadAhead(stream, 5).windows()
    for expected in range(1, 4):
        lines = next(windows)
        assert 1 <= len(lines) <= 5
        assert stream.taken <= 5 * expected + 6  # those given out, those that wait, and one in the thread's hand
    assert len(lines) == 5


@pytest.mark.parametrize("size", [1, 3, 100])
def test_every_line_comes_once_and_in_order(size: int) -> None:
    content = b"".join(b"%d\n" % number for number in range(50))
    ahead = ReadAhead(io.BytesIO(b"\n" + content), size)
    assert ahead.any()
    windows = list(ahead.windows())
    assert [line for window in windows for _, line in window] == [b"\n", *content.splitlines(keepends=True)]
    assert max(map(len, windows)) <= size


class _Broken(io.BytesIO):
    """Two lines, and then an error."""

    def readline(self, size: int | None = -1, /) -> bytes:
        if line := super().readline(size):
            return line
        raise OSError("the disk is gone")


@pytest.mark.parametrize("size", [1, 2, 5])
def test_what_was_read_before_an_error_comes_first(size: int) -> None:
    ahead = ReadAhead(_Broken(b"a\nb\n"), size)
    assert ahead.any()
    windows, lines = ahead.windows(), []
    with pytest.raises(T2Error, match="the disk is gone"):
        lines.extend(line for window in windows for line in window)
    assert lines == [(1, b"a\n"), (2, b"b\n")]
    with pytest.raises(T2Error, match="the disk is gone"):
        ReadAhead(_Broken(b"\n"), size + 1).any()


def test_blank_lines_alone_are_nothing() -> None:
    assert not ReadAhead(io.BytesIO(b""), 4).any()
    assert not ReadAhead(io.BytesIO(b" \n\n"), 4).any()


def test_the_ids_of_an_earlier_run(tmp_path: Path) -> None:
    path, warned = tmp_path / "out.jsonl", list[str]()
    answers = [
        '{"id": 1, "answer": "a"}',
        '{"id": "1", "answer": ""}',
        "no answer",
        '{"id": 3, "answer": null, "error": {}}',
        "[1]",
        '{"id": 4, "answer": "b"}',
    ]
    path.write_text("\n".join(answers) + '\n{"id": 5, "ans')
    assert done_ids(path, warned.append) == {1, "1", 4}
    assert [text.partition(", ")[2] for text in warned] == [
        "line 3 is no answer of t2 chat",
        "line 5 is no answer of t2 chat",
    ]
    path.write_text('{"id": "whole", "answer": "but its line has no end"}')
    assert done_ids(path, warned.append) == {"whole"}
    with pytest.raises(NotFoundError, match=r"nowhere\.jsonl"):
        done_ids(tmp_path / "nowhere.jsonl", warned.append)
