from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2cli.errors import UsageError
from t2cli.registry.reference import ExpertRef, check_name

HEX = "3fa91c02be11"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("math", ExpertRef("math")),
        (" math@3 ", ExpertRef("math", version=3)),
        (f"math@sha256:{HEX}", ExpertRef("math", digest=HEX)),
        (f"math@sha256:{HEX.upper()}", ExpertRef("math", digest=HEX)),
        ("hf://org/repo/math@2", ExpertRef("math", version=2, repo="org/repo")),
        ("hf://Org.x/re_po-1/math", ExpertRef("math", repo="Org.x/re_po-1")),
        (f"hf://org/repo/math@sha256:{'0' * 64}", ExpertRef("math", digest="0" * 64, repo="org/repo")),
    ],
)
def test_parse_reads_every_form(text: str, expected: ExpertRef) -> None:
    assert ExpertRef.parse(text) == expected
    assert ExpertRef.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "@", "Math", "-math", ".math", "..", "../math", "a/b", "a\\b", "math\n", "mäth", "a" * 65, "a b"),
        *("math@", "math@0", "math@-1", "math@01", "math@1.0", "math@1@2", "math@²", "math@" + "9" * 5000),
        *("math@sha256:", "math@sha256:abc", "math@sha256:" + "0" * 65, "math@sha256:zzzzzzzzzzzz", "math@md5:" + HEX),
        *("hf://math", "hf://org/math", "hf:///repo/math", "hf://org/../math", "hf://a/b/c/math", "hf://org/repo/"),
    ],
)
def test_parse_refuses_malformed_references(text: str) -> None:
    # The newline of "math\n" is trimmed by parse, so it is the name alone that must refuse it.
    with pytest.raises(UsageError) as caught:
        check_name(text) if text.endswith("\n") else ExpertRef.parse(text)
    assert caught.value.hint


def test_a_reference_has_a_version_or_a_digest() -> None:
    with pytest.raises(UsageError, match="not by both"):
        ExpertRef("math", version=1, digest=HEX)
    with pytest.raises(UsageError):
        ExpertRef("math", version=0)


@given(st.text(max_size=40))
@settings(deadline=None)
def test_parse_gives_a_canonical_reference_or_a_usage_error(text: str) -> None:
    try:
        ref = ExpertRef.parse(text)
    except UsageError:
        return
    assert ExpertRef.parse(str(ref)) == ref


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True))
@settings(deadline=None)
def test_every_documented_name_is_one_plain_folder(name: str) -> None:
    check_name(name)
    assert ExpertRef.parse(name) == ExpertRef(name)
    assert "/" not in name
    assert name not in (".", "..")
