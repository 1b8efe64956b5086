"""What the fault suite shares: a warm process to fork from, and a chain of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from contracts.evm.devnet import Devnet
from tests.faults.town import clean_environment
from tests.faults.warm import Warm


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    with Warm(clean_environment()) as running:
        yield running


@pytest.fixture(scope="session")
def world() -> Iterator[Devnet]:
    """A chain for towns that live longer than one test; nothing on it is ever taken back."""
    with Devnet() as running:
        yield running
