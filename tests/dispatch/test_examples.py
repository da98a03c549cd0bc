"""Examples of a search: what is read, how it is judged, and which line is wrong."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t2cli.dispatch.examples import SEARCHED, FewShot, divided, read_examples
from t2cli.errors import NotFoundError, T2Error, UsageError

GOOD = [{"prompt": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(4)]


def written(tmp_path: Path, *records: object) -> str:
    path = tmp_path / "few.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return str(path)


def test_prompts_and_chats_are_read_in_order_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    examples = read_examples(written(tmp_path, *GOOD, "", {"messages": chat, "answer": 4}))
    assert [example.line for example in examples] == [1, 2, 3, 4, 6]
    assert examples[0] == FewShot([{"role": "user", "content": "What is 0 + 1?"}], "1", "number", 1)
    assert (examples[4].messages, examples[4].answer, examples[4].reward) == (chat, "4", "number")


@pytest.mark.parametrize(
    ("answers", "rewards"),
    [
        (["1", "-2.5", "1,234", "$3.50", "3/4", "50%"], ["number"] * 6),
        (["yes", "No", "YES", "no"], ["yesno"] * 4),
        (["A", "(B)", "C.", "D"], ["choice"] * 4),
        (["Anna", "Bob", "yes", "A"], ["exact"] * 4),
        (["7", "yes", "no", "9"], ["number", "yesno", "yesno", "number"]),
        (["7 apples", "x2", "1 2", "no"], ["exact"] * 4),
    ],
)
def test_answers_say_how_they_are_judged(tmp_path: Path, answers: list[str], rewards: list[str]) -> None:
    records = [{"prompt": f"question {n}", "answer": answer} for n, answer in enumerate(answers)]
    path = written(tmp_path, *records)
    assert [example.reward for example in read_examples(path)] == rewards
    assert {example.reward for example in read_examples(path, "exact")} == {"exact"}
    own = written(tmp_path, {**records[0], "reward": "word"}, *records[1:])
    assert read_examples(own)[0].reward == "word"
    for example in read_examples(path):
        assert example.is_right(example.answer)
        assert not example.is_right("something else altogether")


def test_half_a_character_is_replaced(tmp_path: Path) -> None:
    examples = read_examples(written(tmp_path, *GOOD, '{"prompt": "\\ud83d what?", "answer": "\\ud83d"}'))
    assert (examples[-1].messages[0]["content"], examples[-1].answer) == ("\ufffd what?", "\ufffd")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 3 is no JSON"),
        ("[1]", "line 3 is no JSON object"),
        ({"prompt": "x"}, "line 3: answer"),
        ({"answer": "x"}, "line 3: it needs either"),
        ({"prompt": "x", "messages": [], "answer": "x"}, "line 3: it needs either"),
        ({"prompt": " ", "answer": "x"}, "line 3: its prompt"),
        ({"prompt": 3, "answer": "x"}, "line 3: its prompt"),
        ({"prompt": "x", "answer": ""}, "line 3: answer"),
        ({"prompt": "x", "answer": True}, "line 3: answer"),
        ({"prompt": "x", "answer": ["x"]}, "line 3: answer"),
        ({"prompt": "x", "answer": "x", "anwser": 1}, "line 3 has the unknown key 'anwser'"),
        ({"prompt": "x", "answer": "x", "reward": "exakt"}, "line 3: there is no reward 'exakt'"),
        ({"prompt": "x", "answer": "x", "reward": ["exact"]}, "line 3: there is no reward"),
        ({"prompt": "x", "answer": "none", "reward": "number"}, "line 3: the right answer 'none' holds no number"),
        ({"messages": [], "answer": "x"}, "line 3: its messages"),
        ({"messages": ["hello"], "answer": "x"}, "line 3: each of its messages"),
        ({"messages": [{"role": "robot", "content": "x"}], "answer": "x"}, "line 3: the role of a message"),
        ({"messages": [{"role": "user", "content": 1}], "answer": "x"}, "line 3: the role of a message"),
        ({"messages": [{"role": "assistant", "content": "x"}], "answer": "x"}, "line 3: its last message"),
        ({"prompt": GOOD[0]["prompt"], "answer": "2"}, "lines 1 and 3 ask the same"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_examples(written(tmp_path, GOOD[0], "", line, *GOOD[1:]))
    assert said in caught.value.message
    assert caught.value.hint


def test_too_few_examples_are_refused_and_repetitions_do_not_count(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="3 different examples, and at least 4"):
        read_examples(written(tmp_path, *GOOD[:3], GOOD[0], GOOD[1]))
    with pytest.raises(UsageError, match="0 different examples"):
        read_examples(written(tmp_path))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"missing\.jsonl"):
        read_examples(str(tmp_path / "missing.jsonl"))
    with pytest.raises(NotFoundError):
        read_examples(str(tmp_path))
    with pytest.raises(T2Error, match="could not be read: File name too long"):
        read_examples(str(tmp_path / ("x" * 300)))
    (tmp_path / "latin").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(UsageError, match="UTF-8"):
        read_examples(str(tmp_path / "latin"))
    with pytest.raises(UsageError, match="there is no reward 'numbr'") as caught:
        read_examples(written(tmp_path, *GOOD), "numbr")
    assert "number" in caught.value.hint


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.text(max_size=80).map(lambda text: json.dumps({"prompt": text}).encode()))
def test_junk_ends_in_an_error_for_people(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "junk"
    path.write_bytes(junk)
    with pytest.raises(T2Error) as caught:
        read_examples(str(path))
    assert caught.value.exit_code == 2


@given(st.integers(4, 60), st.integers(0, 1000))
def test_both_parts_share_nothing_and_lose_nothing(n: int, seed: int) -> None:
    examples = [FewShot([], str(number), "exact", number) for number in range(n)]
    searched, held_out = divided(examples, seed)
    assert len(searched) == min(SEARCHED, n - n // 2)
    assert Counter(e.line for e in (*searched, *held_out)) == Counter(range(n))
    assert divided(examples, seed) == (searched, held_out)
