"""The fast reader of t2's own YAML: what it reads means the same to the full one, and it reads what t2 writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2cli.errors import CorruptArtifactError
from t2cli.paths import shipped_registry
from t2cli.registry import strict_yaml
from t2cli.registry.manifest import ExpertManifest
from t2cli.registry.own_yaml import read_own
from t2cli.registry.strict_yaml import dump_mapping

EXAMPLES = [300, pytest.param(10_000, marks=pytest.mark.slow)]

KEYS = st.sampled_from(["a", "b.c", "spectrum", "null", "1", "a b", "-", "é"])
WORDS = KEYS | st.text("abnoyet NULtrue.01-_:/'\"#,[]{}&*!|>%@`?=~+()é\n", max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS | st.text(max_size=8)
DOCUMENTS = st.dictionaries(
    KEYS,
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
        max_leaves=12,
    ),
    max_size=5,
)


def own(text: str) -> dict[str, object] | None:
    return read_own(text, strict_yaml._StrictLoader.yaml_implicit_resolvers)


def full(text: str) -> dict[str, object] | None:
    """Return what the full parser reads, None where it refuses the text."""
    try:
        return strict_yaml._load_any(text, "x")
    except CorruptArtifactError:
        return None


def assert_same(text: str) -> bool:
    """Assert that the fast reader agrees or declines, types and order included; tell whether it read the text."""
    read = own(text)
    if read is not None:
        assert repr(read) == repr(full(text)), text
    return read is not None


def test_it_reads_the_manifests_that_ship_and_that_are_written(manifest: ExpertManifest) -> None:
    texts = [path.read_text() for path in shipped_registry().rglob("expert.yaml")]
    assert texts
    assert all(assert_same(text) for text in [*texts, manifest.to_yaml()])


@pytest.mark.parametrize("count", EXAMPLES)
def test_it_agrees_or_declines_on_what_is_dumped(count: int) -> None:
    read = 0

    def check(document: dict[str, object]) -> None:
        nonlocal read
        read += assert_same(dump_mapping(document))

    settings(max_examples=count, deadline=None, database=None)(given(DOCUMENTS)(check))()
    assert read  # most random texts are quoted or escaped in ways that are declined


@pytest.mark.parametrize("count", EXAMPLES)
def test_it_agrees_or_declines_on_edited_manifests(count: int, make: Callable[..., ExpertManifest]) -> None:
    text = make(examples=("What is 1 + 2?", "it's 'quoted' and long enough to be wrapped " * 3)).to_yaml()
    pieces = st.sampled_from(PIECES)
    edits = st.lists(
        st.tuples(st.integers(0, len(text)), st.integers(0, 40), pieces | st.just("")), min_size=1, max_size=3
    )
    read = 0

    def check(changes: list[tuple[int, int, str]]) -> None:
        nonlocal read
        edited = text
        for begin, length, inserted in changes:
            edited = edited[:begin] + inserted + edited[begin + length :]
        read += assert_same(edited)

    settings(max_examples=count, deadline=None, database=None)(given(edits)(check))()
    assert read > count / 50


PIECES = [*"null ~ yes 1:30 e+5 a &a *a !!str ? é << : - , [ ] { } ' '' .5 0x1 #".split(), '"', " ", "  ", "\t"]  # noqa: SIM905
PIECES += ["\n", "\n  ", "\n    ", ": ", " #", "- ", ", ", "? ", "---\n", "...\n"]
LINES = ["a: b", "a: 1", "- a: b", "- b", "b:", "  b: c", "  b:", "  - a: b", "    c: d", "- [a, b]", "c: [a,", "  b]"]
LINES += ["c: {a: 1,", "  b: 2}", "d: 'x", "  y'", "d: x", "  y", "   z: w", "", "# no", "- {a: b}", "e: []", "f: {}"]


@pytest.mark.parametrize("count", EXAMPLES)
def test_it_agrees_or_declines_on_any_order_of_lines(count: int) -> None:
    def check(lines: list[str]) -> None:
        assert_same("".join(f"{line}\n" for line in lines))

    lines = st.lists(st.sampled_from(LINES), min_size=1, max_size=7)
    settings(max_examples=count, deadline=None, database=None)(given(lines)(check))()


DECLINED = ["a: b", "a: b\n\n", "a: &x b\n", "a: b\na: c\n", "a: yes\n", "a: 1_0\n", "a:\n", "- a\n", "a: [b, ]\n"]
DECLINED += ['a: "b"\n', f"a: {'[' * 20}{']' * 20}\n", "a: é\n", "a: b #c\n", "a: {b: 1, b: 2}\n", f"a: {'1' * 20}\n"]


@pytest.mark.parametrize("text", DECLINED)
def test_what_is_declined(text: str) -> None:
    assert own(text) is None


def test_declining_does_not_take_longer_than_reading(tmp_path: Path) -> None:
    import time

    started = time.process_time()
    for text in ("a: " + "x " * 100_000 + ": \n", "a: [" + "1, " * 200_000 + "\n", "a: '" + "''" * 200_000 + "\n"):
        assert own(text) is None
    assert own("".join(f"a{i}: b\n  c\n" for i in range(20_000))) is not None
    assert own("a: b\n" + "  c\n" * 40_000) is not None
    assert time.process_time() - started < 20
