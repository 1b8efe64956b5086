"""`farebox demo`: five paid calls, and books that agree with the chain."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.e2e.parts import run_demo


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return run_demo()


def test_the_demo_makes_five_paid_calls_and_its_books_equal_the_chain(document: dict[str, Any]) -> None:
    assert document["ok"] is True
    assert document["calls"] == 5
    assert document["signed"] == 20
    assert document["spent"] == 5
    assert document["remaining"] == 15
    assert document["unknown"] == 0
    assert document["price_atomic"] == 1000
    assert document["seller_delta_atomic"] == 5 * 1000
    assert document["worst_case_loss_atomic"] == 20 * 1000
    assert 1 <= document["settlement_txs"] == len(set(document["settlement_tx_hashes"])) <= 5
    assert document["first_byte_ms"] > 0


def test_nothing_of_the_demo_is_left_running(document: dict[str, Any]) -> None:
    for name in ("rpc", "seller", "gateway", "model_server"):
        with pytest.raises(httpx.ConnectError):
            httpx.get(document["addresses"][name])
