"""Whether two bases are the same, close relatives or foreign, from plain numbers."""

from __future__ import annotations

import math

import pytest
import torch

from t2cli.svf.fingerprint import probe_sums, tensor_probes
from t2cli.svf.relation import RELATIVE_BELOW, Fingerprint, drift, relation

OURS = {"q": [3.0, 0.0], "k": [0.0, 4.0]}


def scaled(factor: float) -> dict[str, list[float]]:
    return {kind: [factor * number for number in numbers] for kind, numbers in OURS.items()}


def test_drift_by_hand() -> None:
    assert drift(OURS, OURS) == 0
    assert drift(OURS, {"k": [3.0, 4.0], "q": [3.0, 0.0]}) == pytest.approx(3 / math.sqrt(34))
    assert drift(OURS, scaled(1.1)) == pytest.approx(0.1 / 1.1)
    assert drift(OURS, scaled(-1)) == pytest.approx(2)


def test_drift_is_symmetric_and_finite_for_zeros() -> None:
    assert drift(OURS, scaled(1.3)) == drift(scaled(1.3), OURS)
    assert drift(scaled(0), scaled(0)) == 0
    assert drift(scaled(0), OURS) == 1


@pytest.mark.parametrize(
    "theirs", [{}, {"q": [3.0, 0.0]}, {"q": [3.0], "k": [0.0, 4.0]}, {"q": [3.0, 0.0], "v": [0.0, 4.0]}]
)
def test_drift_is_unknown_where_the_probes_are_others(theirs: dict[str, list[float]]) -> None:
    assert drift(OURS, theirs) is None
    assert drift(theirs, OURS) is None


def test_drift_estimates_the_relative_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    names = [f"layers.{i}.{kind}.weight" for i in range(6) for kind in ("q", "k", "v", "o", "up", "down")]
    W = {name: torch.randn(20, 12, generator=generator) for name in names}
    ours = probe_sums({name: tensor_probes(name, tensor) for name, tensor in W.items()})
    for size in (1e-4, 1e-2, 0.15):
        V = {name: tensor + size * torch.randn(20, 12, generator=generator) for name, tensor in W.items()}
        theirs = probe_sums({name: tensor_probes(name, tensor) for name, tensor in V.items()})
        assert drift(ours, theirs) == pytest.approx(size, rel=0.3)  # a standard error of 1 / sqrt(96)


def test_relation_of_equal_digests_needs_no_probes() -> None:
    how = relation(Fingerprint("a"), Fingerprint("a", OURS))
    assert (how.kind, how.drift, how.close) == ("same", 0.0, True)


@pytest.mark.parametrize(
    ("factor", "kind"),
    [(1, "relative"), (1 + RELATIVE_BELOW, "relative"), (1 / (1 - 1.01 * RELATIVE_BELOW), "foreign"), (-1, "foreign")],
)
def test_relation_of_other_digests_is_decided_by_the_drift(factor: float, kind: str) -> None:
    how = relation(Fingerprint("a", OURS), Fingerprint("b", scaled(factor)))
    assert how.kind == kind
    assert how.close == (kind == "relative")
    assert how.drift == drift(OURS, scaled(factor))


def test_relation_without_probes_is_unknown_and_with_others_foreign() -> None:
    assert relation(Fingerprint("a", OURS), Fingerprint("b")).kind == "unknown"
    assert relation(Fingerprint("a"), Fingerprint("b", OURS)).kind == "unknown"
    how = relation(Fingerprint("a", OURS), Fingerprint("b", {"x": [1.0]}))
    assert (how.kind, how.drift, how.close) == ("foreign", None, False)
