"""The demo's books are good only when the pool and the chain say the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.demo.books import Books

GOOD = Books(
    calls=5,
    signed=20,
    spent=5,
    remaining=15,
    unknown=0,
    price_atomic=1000,
    seller_before_atomic=70,
    seller_after_atomic=5070,
    settlement_tx_hashes=["0x01", "0x02"],
    first_byte_ms=12.5,
)


def test_books_that_agree_are_told_in_full() -> None:
    document = GOOD.document({"rpc": "http://127.0.0.1:1"})
    assert document["ok"] is True
    assert document["seller_delta_atomic"] == 5000
    assert document["settlement_txs"] == 2
    assert document["worst_case_loss_atomic"] == 20_000
    assert document["addresses"] == {"rpc": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    "change",
    [
        {"seller_after_atomic": 5069},
        {"seller_after_atomic": 6070},
        {"unknown": 1},
        {"spent": 4},
        {"spent": 6},
        {"calls": 4},
        {"remaining": 16},
    ],
)
def test_books_that_disagree_in_any_place_are_not_ok(change: dict[str, Any]) -> None:
    assert replace(GOOD, **change).document({})["ok"] is False
