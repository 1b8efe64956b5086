"""A home of one's own for every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from buyer.home import Home
from tests.buyer.town import town

__all__ = ["home", "town"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A fresh FAREBOX_HOME; nothing of the user's own environment is seen."""
    for name in ("FAREBOX_SIGNER", "FAREBOX_RPC", "FAREBOX_KEYSTORE_PASSWORD_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FAREBOX_HOME", str(tmp_path / "home"))
    return Home.open()
