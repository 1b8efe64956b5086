"""How a seller's ledger grows: more settled payments in one SQLite file."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.loader import fill_ledger
from bench.scale_parts import looked, memory_mb, timed_ms, wall_ms
from bench.workload import an_offer, keys, sign_payments
from contracts.headers import PAYMENT_SIGNATURE, decode_payment
from contracts.limits import EXPIRY_MARGIN_S
from seller.claims import Claim
from seller.ledger import Ledger
from seller.limits import BATCH_MAX, STATUS_ROWS_MAX
from seller.policy import Caps
from seller.settlement.outbox import Outbox
from seller.verify import verify

__all__ = ["a_ledger", "grow_ledger", "reserve"]

# Payments of one measurement, and how many are on their way at every size.
_PAYMENTS = 128
_QUEUED = 64
_FEW_TIMES = 3


@dataclass(frozen=True, slots=True)
class _Look:
    """One measurement: of the ledger at `url`."""

    url: str
    size: int


def grow_ledger(folder: Path, sizes: Sequence[int], *, apart: bool = True) -> list[dict[str, Any]]:
    """Return times and memory at each number of payments, in milliseconds, microseconds of CPU, and MiB."""
    url, rows, present = f"sqlite:///{folder}/seller.db", [], 1
    ledger = a_ledger(url)
    try:
        asyncio.run(_make_first(ledger))
        for size in sizes:
            fill_ledger(ledger, present, size)
            rows.append(looked(_look, _Look(url, size), apart=apart))
            present = size
    finally:
        ledger.close()
    return rows


def a_ledger(url: str) -> Ledger:
    """Open the ledger of the offer that all payments here are of."""
    offer = an_offer()
    return Ledger(url, offer.network.chain_id, offer.asset.address)


async def reserve(ledger: Ledger, header: bytes, now_s: int) -> Claim:
    """Do for one payment what a seller does between its header and the work: verify, look it up, reserve it."""
    payment = verify(decode_payment(PAYMENT_SIGNATURE, header), [an_offer()], now_s, EXPIRY_MARGIN_S)
    claim = await ledger.reserve(
        payment,
        bytes(32),
        "POST /v1/chat/completions",
        setting="async",
        caps=Caps(10**30, 10**30),
        balance_atomic=lambda _: 10**30,
        since_block=0,
        now_s=now_s,
    )
    assert isinstance(claim, Claim)
    return claim


async def _make_first(ledger: Ledger) -> None:
    (payment,) = sign_payments(an_offer(), keys(1), 1)
    await reserve(ledger, payment.header.encode(), int(time.time()))


def _look(look: _Look) -> dict[str, Any]:
    """Measure one ledger. Runs in a process of its own, as a seller does."""
    start_ms, start_cpu_ms = timed_ms(lambda: a_ledger(look.url).close())
    ledger = a_ledger(look.url)
    try:
        row = {"size": look.size, "start_ms": start_ms, "start_cpu_ms": start_cpu_ms, **asyncio.run(_ask(ledger))}
        return {**row, "memory_mb": memory_mb()}
    finally:
        ledger.close()


async def _ask(ledger: Ledger) -> dict[str, float]:
    offer, now_s = an_offer(), int(time.time())
    # Payers that were never here, and the same ones again.
    signed = sign_payments(offer, keys(_PAYMENTS // 2), _PAYMENTS)
    cpu_s = time.process_time()
    claims = [await reserve(ledger, payment.header.encode(), now_s) for payment in signed]
    verify_cpu_us = (time.process_time() - cpu_s) / _PAYMENTS * 1e6
    for claim in claims[:_QUEUED]:
        await ledger.owe(claim)
    outbox = Outbox(ledger.database, ledger.chain_id, ledger.token, secrets.token_hex(4))
    asked = claims[0].payment
    found = {
        "verify_cpu_us": verify_cpu_us,
        "look_up_ms": wall_ms(lambda: ledger.find(asked)),
        "due_ms": wall_ms(lambda: outbox.due(BATCH_MAX)),
        "list_ms": wall_ms(lambda: (ledger.sums(), ledger.transactions(STATUS_ROWS_MAX)), _FEW_TIMES),
    }
    for claim in claims:
        await ledger.give_up(claim, "a bench asked")
    first = min(claim.id for claim in claims)
    ledger.database.transact(
        lambda connection: connection.execute("DELETE FROM payments WHERE id >= ?", (first,)), durable=False
    )
    return found
