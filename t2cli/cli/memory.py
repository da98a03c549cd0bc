"""How much memory this process has used at most."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path


def peak_memory_bytes() -> int | None:
    """Return the peak resident memory in bytes, None where the platform does not tell."""
    with contextlib.suppress(OSError, ValueError, StopIteration):  # Linux: getrusage also counts the parent's peak
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
