"""How a buyer's pool grows: more authorizations in one purchase, and more purchases in one pool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.loader import fill_pool, fill_purchases, first_purchase
from bench.scale_parts import cpu_us, looked, memory_mb, timed_ms, wall_ms
from buyer.documents import purchase_document
from buyer.home import Home
from buyer.pool import Pool
from contracts.address import parse_address
from contracts.evm.devnet import Devnet
from contracts.money import Asset
from contracts.networks import Network
from contracts.offers import Offer
from contracts.storage import Connection
from gateway.shelf import Shelf

__all__ = ["grow_pool", "grow_purchases"]

# Claims of one measurement: some leases.
_CLAIMS = 1_024
# Payments whose outcome is open at every size, as a gateway has them after a bad minute.
_UNKNOWN = 16
_FEW_TIMES = 3


@dataclass(frozen=True, slots=True)
class _Look:
    """One measurement: of the pool in `folder`, with the chain at `rpc_url`."""

    folder: str
    rpc_url: str
    purchase: str
    size: int


def grow_pool(folder: Path, devnet: Devnet, sizes: Sequence[int], *, apart: bool = True) -> list[dict[str, Any]]:
    """Return times and memory at each number of authorizations, in milliseconds, microseconds of CPU, and MiB."""
    rows, present = [], 1
    with Pool.open(Home.open(folder)) as pool:
        purchase = first_purchase(pool, _offer(devnet))
        for size in sizes:
            fill_pool(pool, purchase, present, size)
            pool.database.transact(_leave_unknown)
            rows.append(looked(_look, _Look(str(folder), devnet.rpc_url, purchase.name, size), apart=apart))
            present = size
    return rows


def grow_purchases(
    folder: Path, devnet: Devnet, sizes: Sequence[int], authorizations: int, *, apart: bool = True
) -> list[dict[str, Any]]:
    """Return the same at each number of purchases; besides the one that is asked, they divide `authorizations`."""
    rows = []
    for size in sizes:
        home = folder / str(size)
        with Pool.open(Home.open(home)) as pool:
            purchase = first_purchase(pool, _offer(devnet))
            fill_pool(pool, purchase, 1, 4 * _CLAIMS)
            fill_purchases(pool, purchase, size, authorizations=authorizations)
            pool.database.transact(_leave_unknown)
        rows.append(looked(_look, _Look(str(home), devnet.rpc_url, purchase.name, size), apart=apart))
    return rows


def _look(look: _Look) -> dict[str, Any]:
    """Measure one pool. Runs in a process of its own, as a gateway does."""
    home = Home.open(Path(look.folder))

    def start() -> None:
        with Pool.open(home) as pool:
            Shelf(pool)
            pool.spender().close()

    start_ms, start_cpu_ms = timed_ms(start)
    now_s = int(time.time())
    with Pool.open(home) as pool:
        purchase, shelf = pool.purchase(look.purchase), Shelf(pool)
        claims = min(_CLAIMS, pool.spendable(purchase, now_s) // 2)
        spender = pool.spender()

        def claim(index: int) -> None:
            (chosen, *_) = shelf.find(purchase.model, None)
            spender.sent(spender.claim(chosen, f"{look.size} {index}", now_s))

        before_s = time.perf_counter()
        claim(-1)
        first_ms = (time.perf_counter() - before_s) * 1000
        claim_us = cpu_us(claim, claims)
        spender.close()
        pool.database.transact(_leave_unknown)
        reconcile = partial(pool.reconcile, purchase.name, [look.rpc_url])
        row = {
            "size": look.size,
            "start_ms": start_ms,
            "start_cpu_ms": start_cpu_ms,
            "claim_cpu_us": claim_us,
            "first_claim_ms": first_ms,
            "list_ms": wall_ms(lambda: [purchase_document(pool, one, now_s) for one in pool.purchases()], _FEW_TIMES),
            "receipts_ms": wall_ms(pool.receipts, _FEW_TIMES),
            "reconcile_ms": wall_ms(lambda: asyncio.run(reconcile()), _FEW_TIMES),
        }
    return {**row, "memory_mb": memory_mb()}


def _leave_unknown(connection: Connection) -> None:
    """Let as many outcomes be open as there always are; what else was claimed is spent."""
    unknown = connection.execute("SELECT id FROM authorizations WHERE state = 'unknown' ORDER BY id").fetchall()
    connection.executemany("UPDATE authorizations SET state = 'spent' WHERE id = ?", [(row[0],) for row in unknown])
    spent = connection.execute("SELECT id FROM authorizations WHERE state = 'spent' LIMIT ?", (_UNKNOWN,)).fetchall()
    connection.executemany("UPDATE authorizations SET state = 'unknown' WHERE id = ?", [(row[0],) for row in spent])


def _offer(devnet: Devnet) -> Offer:
    dollar = Asset(parse_address(devnet.token), "USDC", "2", 6, "USDC")
    payee = parse_address(devnet.accounts[3].address)
    return Offer("exact", Network(devnet.chain_id), dollar, 1_000, payee, max_timeout_s=300)
