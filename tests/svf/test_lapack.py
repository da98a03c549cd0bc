"""The eigenvectors that numpy.linalg.eigh gives, bit for bit, in the memory of the matrix."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest
import torch
from threadpoolctl import threadpool_info

from t2cli.svf import basis, lapack
from t2cli.svf.basis import basis_of
from t2cli.svf.lapack import Floats, Routine, call, dsyevd_of, eigh_in_place

SIZES = [1, 2, 3, 17, 64, 300]
TORCH = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"


@pytest.fixture
def dsyevd() -> Routine:
    found = lapack._numpys_dsyevd()
    if found is None:
        pytest.skip("numpy is not linked to OpenBLAS here, or this is Windows")
    return found


@pytest.fixture
def without_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no name be known, as if numpy were linked to another library."""
    monkeypatch.setattr(lapack, "NAMES", ())
    lapack._numpys_dsyevd.cache_clear()
    yield
    lapack._numpys_dsyevd.cache_clear()


def gram(r: int, rank: int, seed: int = 0) -> Floats:
    X = numpy.random.default_rng(seed).standard_normal((rank, r))
    return X.T @ X


def special(r: int) -> dict[str, Floats]:
    """Return symmetric matrices (r, r) with eigenvalues that are zero, equal, negative, or far apart."""
    blocks = numpy.kron(numpy.eye(r), [[2.0, 1.0], [1.0, 2.0]])[:r, :r].copy()
    random = gram(r, r)
    return {
        "full rank": gram(r, r + 5),
        "half of the rank": gram(r, (r + 1) // 2),
        "zero": numpy.zeros((r, r)),
        "identity": 3 * numpy.eye(r),
        "two values, many times": blocks,
        "equal columns": numpy.ones((r, r)),
        "negative": random - 2 * r * numpy.eye(r),
        "tiny": random * 1e-200,
    }


@pytest.mark.parametrize("r", SIZES)
def test_is_numpys_bit_for_bit_in_the_memory_of_the_matrix(r: int, dsyevd: Routine) -> None:
    for name, A in special(r).items():
        wanted = numpy.linalg.eigh(A)
        found = eigh_in_place(A)
        assert found is not None
        assert numpy.array_equal(found[0], wanted.eigenvalues), name
        assert numpy.array_equal(found[1], wanted.eigenvectors), name
        assert numpy.shares_memory(found[1], A), name


def test_several_at_once_are_as_good_as_one(dsyevd: Routine) -> None:
    matrices = [gram(80, 90, seed) for seed in range(24)]
    wanted = [numpy.linalg.eigh(A) for A in matrices]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(eigh_in_place, matrices))
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        assert numpy.array_equal(one[0], other.eigenvalues)
        assert numpy.array_equal(one[1], other.eigenvectors)


def test_it_is_of_the_library_whose_threads_are_limited(dsyevd: Routine) -> None:
    libraries = [ctypes.CDLL(pool["filepath"]) for pool in threadpool_info() if pool["internal_api"] == "openblas"]
    places = [ctypes.cast(found, ctypes.c_void_p).value for library in libraries if (found := dsyevd_of(library))]
    assert isinstance(dsyevd, ctypes._CFuncPtr)
    assert ctypes.cast(dsyevd, ctypes.c_void_p).value in places


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the most memory used is read as Linux tells it")
def test_takes_two_matrices_besides_the_one_it_gets(dsyevd: Routine) -> None:
    program = """
import numpy
from t2cli.svf.lapack import eigh_in_place
most = lambda: next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
A = numpy.random.default_rng(0).standard_normal((1200, 1200))
for row in range(1200):
    A[row, :row] = A[:row, row]
eigh_in_place(A[:400, :400].copy())  # what the library keeps for itself
before = most()
eigh_in_place(A)
print((most() - before) / A.nbytes)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 3  # numpy.linalg.eigh: 4


@pytest.mark.parametrize("r", [3, 20])
def test_what_does_not_converge_is_numpys_error(r: int, dsyevd: Routine) -> None:
    A = numpy.full((r, r), numpy.nan)
    with pytest.raises(numpy.linalg.LinAlgError, match="did not converge"):
        numpy.linalg.eigh(A)
    with pytest.raises(numpy.linalg.LinAlgError, match="did not converge"):
        eigh_in_place(A)


@pytest.mark.parametrize(
    "A",
    [
        numpy.ones((2, 3)),
        numpy.ones(4),
        numpy.ones((0, 0)),
        numpy.ones((2, 2), numpy.float32),
        numpy.ones((4, 4))[::2, ::2],
        numpy.broadcast_to(1.0, (1, 1)),
    ],
    ids=["not square", "1-D", "empty", "float32", "with gaps", "read-only"],
)
def test_another_kind_of_array_is_refused(A: Floats) -> None:
    with pytest.raises(ValueError, match="expected a"):
        eigh_in_place(A)


def test_a_library_without_the_function_has_none() -> None:
    import _ctypes

    assert dsyevd_of(ctypes.CDLL(_ctypes.__file__)) is None


@pytest.mark.usefixtures("without_names")
def test_without_the_function_the_matrix_is_as_it_was() -> None:
    A = gram(5, 5)
    before = A.copy()
    assert eigh_in_place(A) is None
    assert numpy.array_equal(A, before)


@pytest.mark.parametrize("largest", [100, 10])  # numpy's, and torch's
@pytest.mark.parametrize(("m", "n"), [(1, 1), (24, 24), (40, 16), (16, 40)])
def test_the_basis_is_the_same_without_the_function(
    m: int, n: int, largest: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    W = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    wanted = basis_of(W)
    request.getfixturevalue("without_names")
    monkeypatch.setattr(basis, "LARGEST_FOR_NUMPY", largest)
    found = basis_of(W)
    assert torch.allclose(found.S, wanted.S, rtol=1e-9)
    assert torch.allclose(found.Q, wanted.Q, atol=1e-6)
    if largest > min(m, n):
        assert torch.equal(found.Q, wanted.Q)
        assert torch.equal(found.S, wanted.S)


@pytest.mark.parametrize("r", SIZES)
def test_a_library_with_integers_of_32_bits_is_called_alike(r: int) -> None:
    # torch's LAPACK is MKL, so it is not used; but it has such a function.
    try:
        narrow = ctypes.CDLL(str(TORCH)).dsyevd_
    except (OSError, AttributeError):
        pytest.skip("this build of torch shows no dsyevd_")
    narrow.restype = None
    A = gram(r, r + 5)
    V, w = A.copy(), numpy.empty(r)
    floats, integers = numpy.empty(1), numpy.zeros(1, numpy.int64)
    assert call(narrow, V, w, floats, integers, only_ask=True) == 0
    assert call(narrow, V, w, numpy.empty(int(floats[0])), numpy.empty(int(integers[0]), numpy.int64)) == 0
    assert numpy.allclose(w, numpy.linalg.eigvalsh(A), rtol=1e-9, atol=1e-9)
    assert numpy.allclose((V.T * w) @ V, A, atol=1e-9)
