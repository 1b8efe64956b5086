"""Fixtures of the interop tests: the street and its buyers, opened once a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from contracts.evm.devnet import Devnet
from tests.interop.buyers import Buyers
from tests.interop.street import Street


@pytest.fixture(scope="module")
def no_proxy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        yield


@pytest.fixture(scope="module")
def street(devnet: Devnet, no_proxy: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    before = devnet.snapshot()
    with Street(tmp_path_factory.mktemp("street"), devnet) as street:
        yield street
    devnet.revert(before)


@pytest.fixture(scope="module")
def buyers(street: Street) -> Iterator[Buyers]:
    with Buyers(street) as buyers:
        yield buyers
