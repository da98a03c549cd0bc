from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t2cli.errors import CorruptArtifactError
from t2cli.registry.zfile import check_finite, max_file_bytes, read_header

NO_TENSORS: list[object] = [None, [], 1, {}, {"dtype": "F32"}, {"dtype": "F32", "shape": [2]}]


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(begin: int = 0, end: int = 8, **changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end], **changes}


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9_.]{0,20}", fullmatch=True), st.integers(1, 9), min_size=1))
@settings(deadline=None)
def test_files_of_safetensors_are_read(ranks: dict[str, int]) -> None:
    ranks = {re.sub(r"\.+", ".", name): r for name, r in ranks.items()}
    blob = safetensors.numpy.save({name: numpy.ones(r, numpy.float32) for name, r in ranks.items()}, {"k": "v"})
    assert read_header(blob) == {name: (r,) for name, r in ranks.items()}
    check_finite(blob)
    assert len(blob) <= max_file_bytes(sum(ranks.values()))


def test_what_is_accepted_by_hand_is_read_by_safetensors(make_z: Callable[..., bytes]) -> None:
    blob = raw({"b": tensor(8, 12), "a": tensor(0, 8), "__metadata__": {"k": "v"}}, struct.pack("<3f", 1, 2, 3))
    assert list(read_header(blob).items()) == [("a", (2,)), ("b", (1,))]
    loaded = safetensors.numpy.load(blob)
    assert [loaded["a"].tolist(), loaded["b"].tolist()] == [[1, 2], [3]]


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "uint8"])
def test_other_types_are_refused(dtype: str) -> None:
    blob = safetensors.numpy.save({"w": numpy.ones(2, dtype)})
    with pytest.raises(CorruptArtifactError, match=r"w must be float32"):
        read_header(blob)


@pytest.mark.parametrize("shape", [(), (2, 2), (0,), (1, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    blob = safetensors.numpy.save({"w": numpy.ones(shape, numpy.float32)})
    with pytest.raises(CorruptArtifactError, match="one dimension"):
        read_header(blob)


@pytest.mark.parametrize(
    "blob",
    [
        *(b"", b"\x00" * 7, b"\x00" * 8, b"\xff" * 8, b"\xff" * 100, struct.pack("<Q", 1 << 40) + b"{}"),
        *(raw(b""), raw(b"{"), raw(b"\xff\xfe"), raw(b"[]"), raw(b"null"), raw(b"[" * 100_000), raw({})),
        raw({"__metadata__": {"k": "v"}}),
        raw({"w": tensor(), "__metadata__": {"k": 1}}, bytes(8)),
        raw({"w": tensor(), "__metadata__": []}, bytes(8)),
        raw(b'{"w": 1, "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
        *(raw({"w": entry}, bytes(8)) for entry in NO_TENSORS),
        *(raw({"w": tensor(dtype=bad)}, bytes(8)) for bad in ("F64", "", None, 3, ["F32"])),
        *(raw({"w": tensor(shape=bad)}, bytes(8)) for bad in ([3], [2.0], [True], ["2"], [-2], 2, None, [1, 2])),
        *(raw({"w": tensor(data_offsets=bad)}, bytes(8)) for bad in ([8, 0], [0], [0, 8, 9], [-8, 0], [4, 12], None)),
        raw({"w": tensor(extra=1)}, bytes(8)),
        raw({"w": tensor(data_offsets=[0, 10**30], shape=[10**30 // 4])}, bytes(8)),
        raw(b'{"w": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 8]}}', bytes(8)),
        *(raw({"w": tensor()}, bytes(n)) for n in (0, 4, 7, 9, 12)),
        raw({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)),
        raw({"a": tensor(0, 8), "b": tensor(12, 16)}, bytes(16)),
        raw({"a": tensor(0, 8), "b": tensor(0, 8)}, bytes(8)),
        *(raw({name: tensor()}, bytes(8)) for name in ("", "../w", "a/b", "a\nb", "a b", "wäight", "x" * 300, "\x1b[")),
    ],
)
def test_bad_headers_are_refused(blob: bytes) -> None:
    for check in (read_header, check_finite):
        with pytest.raises(CorruptArtifactError, match=r"^z\.safetensors") as caught:
            check(blob)
        assert caught.value.message.isprintable()
        assert caught.value.hint


def test_every_truncation_is_refused(z: bytes) -> None:
    for length in range(len(z)):
        with pytest.raises(CorruptArtifactError):
            read_header(z[:length])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("position", [0, 1, 4])
def test_numbers_that_are_not_finite_are_refused(value: float, position: int) -> None:
    second = numpy.full(5, 3.4e38, numpy.float32)
    second[position] = value
    blob = safetensors.numpy.save({"first": numpy.ones(3, numpy.float32), "second": second})
    with pytest.raises(CorruptArtifactError, match="second has numbers that are NaN or infinite"):
        check_finite(blob)
    assert read_header(blob)


def test_the_largest_finite_numbers_pass() -> None:
    check_finite(safetensors.numpy.save({"w": numpy.full(1000, 3.4028234e38, numpy.float32)}))


def test_infinities_of_both_signs_do_not_cancel() -> None:
    blob = safetensors.numpy.save({"w": numpy.array([numpy.inf, -numpy.inf], numpy.float32)})
    with pytest.raises(CorruptArtifactError):
        check_finite(blob)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=6,
)


@given(JSON, st.binary(max_size=8))
@settings(max_examples=300, deadline=None)
def test_any_other_json_ends_in_a_corrupt_artifact_error(header: Any, data: bytes) -> None:
    with pytest.raises(CorruptArtifactError):
        read_header(raw(header, data))


@given(st.sampled_from(["dtype", "shape", "data_offsets"]), JSON)
@settings(max_examples=300, deadline=None)
def test_junk_in_a_tensor_ends_in_a_corrupt_artifact_error(key: str, junk: Any) -> None:
    if (key, junk) in (("dtype", "F32"), ("shape", [2]), ("data_offsets", [0, 8])):
        return
    with pytest.raises(CorruptArtifactError):
        read_header(raw({"w": tensor(**{key: junk})}, bytes(8)))


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_bytes_end_in_a_corrupt_artifact_error(blob: bytes) -> None:
    with pytest.raises(CorruptArtifactError):
        read_header(blob)


@given(st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_passes_after_an_edit_is_a_file_safetensors_reads_too(z: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(z) - 1))
    edited = z[:position] + data.draw(st.binary(max_size=4)) + z[position + 1 :]
    try:
        shapes = read_header(edited)
    except CorruptArtifactError:
        return
    assert {name: tuple(w.shape) for name, w in safetensors.numpy.load(edited).items()} == shapes
