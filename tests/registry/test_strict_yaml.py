from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2cli.errors import CorruptArtifactError
from t2cli.registry.strict_yaml import MAX_BYTES, dump_mapping, load_mapping

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=10), PLAIN, max_size=5))
@settings(deadline=None)
def test_what_is_dumped_is_read_back(document: dict[str, object]) -> None:
    assert load_mapping(dump_mapping(document), "x") == document


def test_a_value_used_twice_is_written_twice() -> None:
    shared = [1.0, 2.0]
    assert load_mapping(dump_mapping({"a": shared, "b": shared}), "x") == {"a": shared, "b": shared}


def test_dates_stay_text_and_keys_are_text() -> None:
    assert load_mapping("a: 2026-11-23T10:00:00Z\nb: 2026-99-99\n1: x\nno: y", "x") == {
        "a": "2026-11-23T10:00:00Z",
        "b": "2026-99-99",
        "1": "x",
        "no": "y",
    }


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "- a", "a", "a: 1\n---\nb: 2", "a: [", "\x00", "a: \ud800", "a: 1\na: 2", "{a: 1, a: 2}"),
        *("a: &x 1\nb: *x", "a: &a [1]\nb: {<<: *a}", "? [a]\n: 1", "? {a: 1}\n: 1", "!!map [a]"),
        *('a: !!int ""', "a: !!int x", "a: !!bool maybe", 'a: !!float ""', "a: " + "9" * 5000, "a: !!str [x]"),
        *("a: !!timestamp 2026-01-01", "a: !!binary aGk=", "a: !!set {x}", "a: !!python/object:os.system {}"),
        *("a: " + "[" * 200_000, "a:\n  " + "- " * 200_000, "{a: " * 100_000, "a: \n " + "? " * 200_000),
        "a: " + "x" * MAX_BYTES,
        "a: " + "ä" * (MAX_BYTES // 2),
    ],
    ids=lambda text: text[:20].encode("ascii", "backslashreplace").decode(),
)
def test_everything_but_one_plain_mapping_is_refused(text: str) -> None:
    with pytest.raises(CorruptArtifactError, match=r"expert\.yaml"):
        load_mapping(text, "expert.yaml")


def test_alias_bombs_end_at_once() -> None:
    levels = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10 if i else ['x'] * 10)}]" for i in range(12)]
    with pytest.raises(CorruptArtifactError, match="alias"):
        load_mapping("\n".join(levels), "x")


@given(st.text(max_size=60) | st.text(alphabet="ab:-?![]{}&*#|>'\"%@ \n\t0.", max_size=60))
@settings(deadline=None)
def test_no_text_ends_in_another_exception(text: str) -> None:
    with contextlib.suppress(CorruptArtifactError):
        assert isinstance(load_mapping(text, "x"), dict)


def test_reading_without_libyaml_gives_the_same() -> None:
    code = (
        "import sys, yaml\n"
        "del yaml.CSafeLoader, yaml.CSafeDumper\n"
        "from t2cli.errors import CorruptArtifactError\n"
        "from t2cli.registry import strict_yaml as s\n"
        "assert s.SafeLoader is yaml.SafeLoader\n"
        "d = {'a': [1.5, 1e-05], 'b': {'c': None, 'd': '2026-11-23T10:00:00Z'}}\n"
        "assert s.load_mapping(s.dump_mapping(d), 'x') == d\n"
        "for bad in ('a: &x 1\\nb: *x', 'a: ' + '['*5000, 'a: 1\\na: 2', 'a: !!int \"\"'):\n"
        "    try: s.load_mapping(bad, 'x')\n"
        "    except CorruptArtifactError: continue\n"
        "    sys.exit(bad)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
