"""What the fault suite shares: a chain of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from contracts.evm.devnet import Devnet


@pytest.fixture(scope="session")
def world() -> Iterator[Devnet]:
    """A chain for towns that live longer than one test; nothing on it is ever taken back."""
    with Devnet() as running:
        yield running
