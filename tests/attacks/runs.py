"""Looks at every start of the application: is there, at that moment, a payment for it?

A run is paid for when, as it starts, its payment is in the store by a second connection, held by one claim whose work
is running; and the chain would settle it now, or shows it settled. A known payer may be on credit instead, inside its
cap.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from contracts.address import address_text
from contracts.evm.rpc import RpcRefused
from contracts.schemes.authorization import Authorization
from contracts.schemes.exact_eip3009 import decode_payload, transfer_call
from tests.patience import PATIENCE_S
from tests.seller.shop import Shop

__all__ = ["Key", "Run", "RunWatch"]

Key = tuple[bytes, bytes]
"""Payer and nonce of an authorization."""

Signed = tuple[Authorization, bytes]

# The payment of the request that this task serves, from its claim until its run begins.
_claimed: ContextVar[Signed | None] = ContextVar("claimed", default=None)


@dataclass
class Run:
    """One start of the application. `failed`: it gave no 2xx answer, so nothing was charged."""

    key: Key | None
    paid_for: bool
    on_credit: bool
    failed: bool = False
    ended: bool = False


class RunWatch:
    """Stands between a shop's middleware and its application. `is_paid` tells whether the chain shows a payment."""

    def __init__(self, shop: Shop, is_paid: Callable[[Key], bool]) -> None:
        self.runs: list[Run] = []
        self.free = 0
        self._shop, self._is_paid = shop, is_paid
        self._free_routes = {route.match for route in shop.seller.config.routes if route.free}
        self._follow_claims()
        shop.middleware.app = self.watched(shop.middleware.app)

    def _follow_claims(self) -> None:
        claim = self._shop.seller.claim

        async def claim_and_remember(payment: Any, *rest: Any) -> Any:
            claimed = await claim(payment, *rest)
            _claimed.set(decode_payload(payment.payload))
            return claimed

        self._shop.seller.claim = claim_and_remember  # type: ignore[method-assign, assignment]

    def watched(self, application: Any) -> Any:
        """Return `application` with every start of it looked at."""

        async def run(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http" or f"{scope['method']} {scope['path']}" in self._free_routes:
                self.free += scope["type"] == "http"
                await application(scope, receive, send)
                return
            seen = self._begin()

            async def look(message: Any) -> None:
                if message["type"] == "http.response.start":
                    seen.failed = not 200 <= message["status"] < 300
                await send(message)

            seen.failed = True
            try:
                await application(scope, receive, look)
            finally:
                seen.ended = True

        return run

    def _begin(self) -> Run:
        signed = _claimed.get()
        _claimed.set(None)
        if signed is None:
            run = Run(None, paid_for=False, on_credit=False)
        else:
            authorization, signature = signed
            key = bytes(authorization.payer), authorization.nonce
            mode = self._reserved_as(key)
            alone = not any(other.key == key and not other.ended for other in self.runs)
            settleable = self._would_settle(authorization, signature) or self._is_paid(key)
            on_credit = not settleable and mode == "async" and self._is_inside_cap(authorization)
            run = Run(key, paid_for=mode is not None and alone and (settleable or on_credit), on_credit=on_credit)
        self.runs.append(run)
        return run

    def _reserved_as(self, key: Key) -> str | None:
        """Return how a payment is held for work that has begun, or None when it is not."""
        rows = self._read(
            "SELECT mode FROM payments WHERE payer = ? AND nonce = ? AND owner IS NOT NULL AND work = 'running'"
            " AND money IN ('reserved', 'queued', 'submitted', 'settled')",
            key,
        )
        return str(rows[0][0]) if len(rows) == 1 else None

    def _is_inside_cap(self, authorization: Authorization) -> bool:
        rows = self._read(
            "SELECT value_atomic FROM payments WHERE payer = ? AND mode = 'async'"
            " AND money IN ('reserved', 'queued', 'submitted')",
            (bytes(authorization.payer),),
        )
        return sum(int(row[0]) for row in rows) <= self._shop.seller.config.exposure_atomic[0]

    def _read(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        store = self._shop.seller.config.store.removeprefix("sqlite:///")
        with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=PATIENCE_S)) as connection:
            return connection.execute(query, values).fetchall()

    def _would_settle(self, authorization: Authorization, signature: bytes) -> bool:
        token, data = self._shop.seller.config.token.address, transfer_call(authorization, signature)
        try:
            self._shop.chain.rpc("eth_call", {"to": address_text(token), "data": "0x" + data.hex()}, "pending")
        except RpcRefused:
            return False
        return True
