"""A hostile seller on a real chain: asks what it likes, answers what it likes, and cashes in all that it was sent."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from contracts.errors import FareboxError
from contracts.evm.devnet import Devnet
from contracts.headers import PAYMENT_REQUIRED, PAYMENT_SIGNATURE, X_PAYMENT, decode_payment, encode_header
from contracts.offers import Offer, requirements
from contracts.schemes.authorization import Authorization
from contracts.schemes.exact_eip3009 import decode_payload, transfer_call
from contracts.wire import PaymentRequired, Requirements
from tests.attacks.score import SCORE, Score
from tests.buyer.parts import call_token, serving

__all__ = ["Trap", "asking", "laid"]

Behaviour = Callable[["Trap", Any], Awaitable[None]]


async def respond(send: Any, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
    """Send one answer."""
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def asking(*offers: Offer | Requirements) -> dict[str, str]:
    """Return the header of a 402 with these offers."""
    accepts = [offer if isinstance(offer, Requirements) else requirements(offer) for offer in offers]
    required = PaymentRequired(x402_version=2, accepts=accepts)
    return {PAYMENT_REQUIRED: encode_header(required)}


@dataclass
class Trap:
    """`asks` answers a request without payment, `takes` one with. What it was sent is in `received`."""

    chain: Devnet
    payer: str
    asks: Behaviour
    takes: Behaviour
    requests: int = 0
    received: list[tuple[Authorization, bytes, str]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.requests += 1
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        for name in (PAYMENT_SIGNATURE, X_PAYMENT):
            if (header := headers.get(name.lower())) is not None:
                with contextlib.suppress(FareboxError):
                    told = hashlib.sha256(scope["path"].encode() + b"\0" + body).hexdigest()
                    self.received.append((*decode_payload(decode_payment(name, header).payload), told))
                await self.takes(self, send)
                return
        await self.asks(self, send)

    @property
    def nonces(self) -> set[bytes]:
        """Every authorization it was sent, once."""
        return {authorization.nonce for authorization, _, _ in self.received}

    def cash_in(self) -> int:
        """Submit everything it holds, and return what the buyer lost by it, in atomic units."""
        before = self.chain.balance_of(self.payer)
        for authorization, signature, _ in self.received:
            with contextlib.suppress(AssertionError, FareboxError):
                call_token(self.chain, self.chain.token, transfer_call(authorization, signature))
        return before - self.chain.balance_of(self.payer)


@contextmanager
def laid(trap: Trap, *, purchases: int, price_atomic: int = 1000) -> Iterator[str]:
    """Lay a trap for a buyer that agrees to so many purchases at that price; count what the trap got in the end."""
    with serving(trap) as url:
        yield url
    taken = trap.cash_in()
    digests: dict[bytes, set[str]] = {}
    for authorization, _, told in trap.received:
        digests.setdefault(authorization.nonce, set()).add(told)
    score = Score(
        extra_authorizations=max(0, len(trap.nonces) - purchases) + sum(len(each) - 1 for each in digests.values()),
        overcharges=int(taken > purchases * price_atomic),
        attacks=1,
        purchases=purchases,
        authorizations=len(trap.nonces),
    )
    SCORE.add(score)
    assert score.is_clean, f"{score}; the trap took {taken} from {trap.payer} of {purchases} x {price_atomic}"


def wallet(chain: Devnet, account: int) -> tuple[bytes, str]:
    """Fund one of the chain's accounts and return its key and address."""
    owner = chain.accounts[account]
    chain.mint(owner.address, 10_000_000)
    return owner.key, owner.address
