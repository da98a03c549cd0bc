"""Eigenvectors of a symmetric matrix in place, by the function that numpy.linalg.eigh itself calls: LAPACK's dsyevd.

Notation: A (r, r) symmetric, A = V diag(w) V^T.

numpy holds five matrices (r, r) at once: A, the copy of it that becomes V, two of work, and V again in C's order.
Here they are three, and w and V the same bit for bit: the same function computes them from the same numbers.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache

import numpy
from numpy.typing import NDArray

# What builds of OpenBLAS have before and after the names of their functions; numpy's wheels have the first.
NAMES = (("scipy_", "64_"), ("", "64_"), ("scipy_", ""), ("", ""))

Floats = NDArray[numpy.float64]
Integers = NDArray[numpy.int64]
Routine = Callable[..., object]


def eigh_in_place(A: Floats) -> tuple[Floats, Floats] | None:
    """Return w (r,), ascending, and V (r, r), in columns, of a symmetric A (r, r); None where numpy has no OpenBLAS.

    Consumes A, in whose memory V is; it must be in C's order and symmetric to the last bit. Where None is returned A
    is as it was. Takes two more matrices (r, r) meanwhile, and lets other threads run.
    Raises ValueError for another kind of array, and LinAlgError, which is one, where eigenvalues do not converge.
    """
    if A.ndim != 2 or A.shape[0] != A.shape[1] or A.size == 0 or A.dtype != numpy.float64:
        raise ValueError(f"expected a non-empty square matrix of float64, got {A.dtype} of shape {A.shape}")
    if not (A.flags.c_contiguous and A.flags.writeable):
        raise ValueError("expected a matrix in C's order that may be written to")
    dsyevd = _numpys_dsyevd()
    if dsyevd is None:
        return None
    w = numpy.empty(len(A))
    floats, integers = numpy.empty(1), numpy.zeros(1, numpy.int64)
    call(dsyevd, A, w, floats, integers, only_ask=True)
    if floats[0] < A.size:  # it needs 2 r^2: integers of 32 bits have overflowed
        return None
    if call(dsyevd, A, w, numpy.empty(int(floats[0])), numpy.empty(int(integers[0]), numpy.int64)):
        raise numpy.linalg.LinAlgError("Eigenvalues did not converge")
    return w, A.T  # Fortran's columns are C's rows


def call(dsyevd: Routine, A: Floats, w: Floats, floats: Floats, integers: Integers, *, only_ask: bool = False) -> int:
    """Compute w and V^T, in A, with workspace `floats` and `integers`; 0 if all went well.

    With `only_ask` nothing but the lengths that workspace needs is computed; they are in its first places.
    Integers have 64 bits, also where the library's have 32: it then reads and writes their lower half, which comes
    first on little-endian machines, and `integers` is merely longer than it needs.
    """
    numbers = (len(A), -1 if only_ask else len(floats), -1 if only_ask else len(integers), 0)
    r, lwork, liwork, info = (ctypes.c_int64(number) for number in numbers)
    at = [array.ctypes.data_as(ctypes.c_void_p) for array in (A, w, floats, integers)]
    by, length = ctypes.byref, ctypes.c_size_t(1)
    # V: also vectors. L: the lower triangle, as numpy, for the upper one rounds otherwise; to Fortran A is A^T = A.
    first = (b"V", b"L", by(r), at[0], by(r), at[1])
    # Fortran takes the lengths of strings after all else.
    dsyevd(*first, at[2], by(lwork), at[3], by(liwork), by(info), length, length)
    return info.value


@cache
def _numpys_dsyevd() -> Routine | None:
    """Return the dsyevd that numpy calls if it is OpenBLAS's, the only one whose names are known here.

    Names are looked for in numpy's own module and what that is linked to, so that of several copies in one process
    it is numpy's that is found, wherever it lies. Windows looks into the module alone and finds none.
    """
    try:
        from numpy.linalg import _umath_linalg

        library = ctypes.CDLL(_umath_linalg.__file__)
    except (ImportError, AttributeError, TypeError, OSError):  # no part of what numpy promises to keep
        return None
    return dsyevd_of(library)


def dsyevd_of(library: ctypes.CDLL) -> Routine | None:
    """Return the dsyevd of OpenBLAS if `library`, or what it is linked to, is that."""
    for before, after in NAMES if sys.byteorder == "little" else ():
        if hasattr(library, f"{before}openblas_get_config{after}") and hasattr(library, f"{before}dsyevd_{after}"):
            found: ctypes._NamedFuncPointer = getattr(library, f"{before}dsyevd_{after}")
            found.restype = None
            return found
    return None
