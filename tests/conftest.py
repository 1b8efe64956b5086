"""Fixtures every room shares: the local chain."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from contracts.evm.devnet import Devnet

# A run in the background of a shell starts with interrupts ignored, and every process it starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def devnet() -> Iterator[Devnet]:
    """One anvil for the whole run. Take `chain` instead where a test changes anything on it."""
    with Devnet() as running:
        yield running


@pytest.fixture
def chain(devnet: Devnet) -> Iterator[Devnet]:
    """The shared local chain, put back to where it was when the test ends."""
    before = devnet.snapshot()
    yield devnet
    devnet.revert(before)


@pytest.fixture
def own_chain() -> Iterator[Devnet]:
    """A chain for one test: anvil re-organises a chain that was put back before onto a state that never was."""
    with Devnet() as running:
        yield running
