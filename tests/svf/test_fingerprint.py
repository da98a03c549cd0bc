"""The fingerprint depends on the weights' values and on nothing else."""

from __future__ import annotations

import hashlib
import struct

import pytest
import torch

from t2cli.svf.fingerprint import (
    BLOCK_ROWS,
    PROBES,
    kind_of,
    probe_sums,
    signs,
    spectrum_drift,
    spectrum_sketch,
    tensor_digest,
    tensor_probes,
    weights_digest,
)


def random_matrix(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))


def test_digest_is_that_of_the_little_endian_float32_bytes() -> None:
    W = torch.tensor([[1.5, -2.0], [0.0, 3.25]])
    assert tensor_digest(W) == hashlib.sha256(struct.pack("<4f", 1.5, -2.0, 0.0, 3.25)).hexdigest()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_digest_does_not_depend_on_the_stored_precision(dtype: torch.dtype) -> None:
    W = random_matrix().to(dtype)
    assert tensor_digest(W) == tensor_digest(W.float()) == tensor_digest(W.double())
    assert tensor_digest(W) != tensor_digest(random_matrix())


def test_digest_does_not_depend_on_layout_or_on_the_sign_of_zero() -> None:
    W = random_matrix()
    assert tensor_digest(W.T.contiguous().T) == tensor_digest(W)
    assert tensor_digest(torch.tensor([[-0.0]])) == tensor_digest(torch.tensor([[0.0]]))


def test_digest_sees_one_changed_bit() -> None:
    W = random_matrix()
    changed = W.clone()
    changed[5, 3] = torch.nextafter(changed[5, 3], torch.tensor(9.0))
    assert tensor_digest(changed) != tensor_digest(W)


def test_total_digest_sees_names_shapes_and_values_but_no_order() -> None:
    one = {"a": ((2, 3), "x"), "b": ((3, 2), "y")}
    assert weights_digest(one) == weights_digest(dict(reversed(one.items())))
    others = [
        {"a": ((2, 3), "x"), "c": ((3, 2), "y")},
        {"a": ((3, 2), "x"), "b": ((3, 2), "y")},
        {"a": ((2, 3), "z"), "b": ((3, 2), "y")},
        {"a": ((2, 3), "y"), "b": ((3, 2), "x")},
        {"a": ((2, 3), "x")},
    ]
    assert len({weights_digest(tensors) for tensors in [one, *others]}) == 6


def test_signs_are_the_bits_of_shake_whatever_the_library() -> None:
    R = signs("l.q.weight", "rows", 19)
    assert R.shape == (19, PROBES)
    for index in range(PROBES):
        stream = hashlib.shake_128(f"t2.probe/1\0l.q.weight\0rows\0{index}".encode()).digest(3)
        bits = [stream[i // 8] >> i % 8 & 1 for i in range(19)]
        assert R[:, index].tolist() == [1.0 - 2.0 * bit for bit in bits]


def test_signs_are_others_for_each_weight_side_and_probe() -> None:
    R = signs("a", "rows", 512)
    others = [signs("b", "rows", 512), signs("a", "columns", 512), R.roll(1, dims=1)]
    for other in others:
        overlap = (R * other).mean(dim=0).abs()  # 0 for independent signs, with a standard error of 0.044
        assert float(overlap.max()) < 0.2
    assert float(R.mean(dim=0).abs().max()) < 0.2


@pytest.mark.parametrize("m", [6, BLOCK_ROWS + 3])
def test_probes_by_hand_for_any_number_of_blocks(m: int) -> None:
    W = torch.randn(m, 5, generator=torch.Generator().manual_seed(m))
    R1, R2 = signs("a", "rows", m), signs("a", "columns", 5)
    by_hand = torch.stack([R1[:, k] @ W.double() @ R2[:, k] for k in range(PROBES)])
    assert torch.allclose(tensor_probes("a", W), by_hand, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probes_do_not_depend_on_the_stored_precision(dtype: torch.dtype) -> None:
    W = random_matrix().to(dtype)
    assert torch.equal(tensor_probes("a", W), tensor_probes("a", W.float()))


def test_the_mean_square_of_the_probes_is_the_squared_norm() -> None:
    W = torch.randn(24, 16, generator=torch.Generator().manual_seed(3))
    squares = torch.stack([tensor_probes(f"w{i}", W).square() for i in range(200)])
    assert float(squares.mean() / W.double().square().sum()) == pytest.approx(1, abs=0.1)  # standard error 0.03


def test_probe_sums_add_the_layers_of_a_kind_in_any_order() -> None:
    parts = {f"layers.{i}.{kind}.weight": torch.full((2,), 10.0**i) for i in range(3) for kind in "qk"}
    parts["layers.0.k.weight"] = torch.tensor([0.123456789, -2.0])
    found = probe_sums(parts)
    assert found == {"k": [110.123, 108.0], "q": [111.0, 111.0]}
    assert probe_sums(dict(reversed(parts.items()))) == found


def test_kind_of() -> None:
    assert kind_of("model.layers.3.mlp.up_proj.weight") == "up_proj"
    assert kind_of("model.layers.3.mlp.experts.gate_up_proj.12") == "gate_up_proj"
    assert kind_of("7") == "7"
    assert kind_of("fc.weight") == "fc"


def test_sketch_by_hand() -> None:
    spectra = {
        "layers.0.q.weight": torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]),
        "layers.1.q.weight": torch.tensor([1.0, 4.0, 3.0, 2.0, 7.0]),
        "layers.0.k.weight": torch.tensor([2.0]),
    }
    assert spectrum_sketch(spectra) == {
        "k": [2.0] * 5,
        "q": [3.606, 4.0, 3.0, 2.0, 5.0],  # the first is the root of (25 + 1) / 2, the last of (1 + 49) / 2
    }


def sketch(scale: float = 1.0) -> dict[str, list[float]]:
    return spectrum_sketch({"l.q.weight": scale * torch.linspace(4, 1, 9), "l.k.weight": scale * torch.ones(3)})


def test_drift_is_zero_for_itself_symmetric_and_grows() -> None:
    assert spectrum_drift(sketch(), sketch()) == 0
    near, far = spectrum_drift(sketch(), sketch(1.05)), spectrum_drift(sketch(), sketch(3))
    assert near is not None
    assert far is not None
    assert 0 < near < 0.06 < far < 1
    assert spectrum_drift(sketch(1.05), sketch()) == near


def test_drift_of_another_precision_is_small() -> None:
    W = random_matrix()
    spectra = [{"l.q.weight": torch.linalg.svdvals(V.double())} for V in (W, W.bfloat16())]
    found = spectrum_drift(*map(spectrum_sketch, spectra))
    assert found is not None
    assert found < 0.01


def test_drift_of_other_kinds_of_matrices_is_unknown() -> None:
    assert spectrum_drift(sketch(), {"q": [1.0] * 5}) is None
    assert spectrum_drift({}, {}) is None
    assert spectrum_drift({"q": [1.0] * 5}, {"q": [1.0] * 4}) is None


def test_drift_of_zero_spectra_is_finite() -> None:
    assert spectrum_drift({"q": [0.0] * 5}, {"q": [0.0] * 5}) == 0
    assert spectrum_drift({"q": [0.0] * 5}, {"q": [1.0] * 5}) == 1
