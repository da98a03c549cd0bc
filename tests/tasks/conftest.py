"""What tests of tasks share: the Hub of the tests in place of the real one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import Hub

from t2cli.registry import hub_client


@pytest.fixture
def hub_of_tests(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """Return the server that everything asks which asks the Hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(hub_client, "FIRST_PAUSE", 0.01)
    return hub
