"""Where bubblewrap does not work, tests of what runs in it are skipped, with the reason t2 itself gives."""

from __future__ import annotations

import pytest

from t2cli.errors import T2Error
from t2cli.tasks.sandbox import require_sandbox


def why_not() -> str:
    """Return what keeps model-written code from being run here; "" for nothing."""
    try:
        require_sandbox()
    except T2Error as error:
        return error.message
    return ""


needs_sandbox = pytest.mark.skipif(bool(why_not()), reason=why_not() or "bubblewrap works")
