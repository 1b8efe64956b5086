"""What claims and signatures cost: `pytest tests/buyer/test_speed.py --benchmark-only`. No test depends on figures."""

from __future__ import annotations

import itertools
import secrets
from typing import Any

from buyer.bounded import BoundedSigner, Bounds
from buyer.home import Home
from buyer.signers import KeySigner
from contracts.schemes.authorization import Authorization
from tests.buyer.parts import NOW_S, offer_of, open_pool

COUNT = 2000


def test_a_claim_and_its_lease(home: Home, benchmark: Any) -> None:
    pool, purchase = open_pool(home, COUNT)
    spender = pool.spender()
    numbers = itertools.count()
    benchmark.pedantic(lambda: spender.claim(purchase, f"r{next(numbers)}", NOW_S), rounds=COUNT // 2)
    assert pool.counts("p").claimed == next(numbers)
    spender.close()
    pool.close()


def test_a_claim_sent_and_served(home: Home, benchmark: Any) -> None:
    pool, purchase = open_pool(home, COUNT)
    spender = pool.spender()
    numbers = itertools.count()

    def call() -> None:
        claim = spender.claim(purchase, f"r{next(numbers)}", NOW_S)
        spender.sent(claim)
        spender.served(claim, status=200, receipt=None, latency_ms=1)

    benchmark.pedantic(call, rounds=COUNT // 2)
    assert pool.counts("p").spent == next(numbers)
    spender.close()
    pool.close()


def test_a_thousand_signatures_checked(benchmark: Any) -> None:
    signer, offer = KeySigner(bytes(range(1, 33))), offer_of()
    wanted = [
        Authorization(signer.address, offer.pay_to, offer.amount_atomic, 0, NOW_S + 600, secrets.token_bytes(32))
        for _ in range(1000)
    ]

    def sign() -> list[bytes]:
        return BoundedSigner(signer, Bounds(offer, 1000, offer.amount_atomic, NOW_S + 600)).sign_authorizations(
            wanted, offer
        )

    assert len(benchmark.pedantic(sign, rounds=3)) == 1000
