"""Fixtures of the conformance tests: fresh accounts on the local chain, and no proxy between peers on one machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from eth_account import Account

from contracts.evm.devnet import DevAccount, Devnet


@pytest.fixture(scope="session", autouse=True)
def no_proxy() -> Iterator[None]:
    """Keep the SDK's own HTTP clients on loopback where the machine has a proxy configured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        yield


@pytest.fixture
def payer(chain: Devnet) -> DevAccount:
    """A fresh account with one test dollar and no gas."""
    account = Account.create()
    chain.mint(account.address, 1_000_000)
    return DevAccount(account.address, bytes(account.key))


@pytest.fixture
def pay_to() -> str:
    """A fresh address that owns nothing."""
    address: str = Account.create().address
    return address
