"""How much memory this process has used at most."""

from __future__ import annotations

import sys


def peak_memory_bytes() -> int | None:
    """Return the peak resident memory in bytes, None where the platform does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
