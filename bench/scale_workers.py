"""How many processes one store carries: gateways that claim, sellers that reserve, and both at once."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Literal

from bench.loader import fill_pool, first_purchase
from bench.scale_ledger import a_ledger, reserve
from bench.workload import an_offer, keys, sign_payments
from buyer.home import Home
from buyer.pool import Pool

__all__ = ["share_store"]

_AT_ONCE = 64
_START_TIMEOUT_S = 120.0

_start: Barrier | threading.Barrier


@dataclass(frozen=True, slots=True)
class _Worker:
    """One process of a team: does `count` operations on the store at `url`."""

    role: Literal["gateway", "seller"]
    url: str
    home: str
    count: int


@dataclass(frozen=True, slots=True)
class _Done:
    role: str
    per_second: float
    latencies_ms: list[float]


def share_store(
    store: str,
    folder: Path,
    urls: tuple[str, str],
    *,
    teams: Sequence[tuple[int, int]],
    claims: int,
    reservations: int,
    apart: bool = True,
) -> list[dict[str, Any]]:
    """Return what each team of (gateways, sellers) did on one store: operations/s of all its processes, and their p99.

    `urls` are those of the gateways' and the sellers' books; each process does as many operations as is said.
    """
    home = folder / store
    with Pool.open(Home.open(home, store=urls[0])) as pool:
        wanted = 2 * claims * sum(gateways for gateways, _ in teams)
        fill_pool(pool, first_purchase(pool), 1, wanted + 1024)
    a_ledger(urls[1]).close()
    rows = []
    for gateways, sellers in teams:
        jobs = [_Worker("gateway", urls[0], str(home), claims)] * gateways
        jobs += [_Worker("seller", urls[1], "", reservations)] * sellers
        done = _together(jobs, apart=apart)
        rows.append({"store": store, "gateways": gateways, "sellers": sellers, **_sum(done)})
    return rows


def _sum(done: Sequence[_Done]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for role, what in (("gateway", "claim"), ("seller", "reserve")):
        theirs = [each for each in done if each.role == role]
        latencies = sorted(latency for each in theirs for latency in each.latencies_ms)
        found[f"{what}_per_s"] = sum(each.per_second for each in theirs) if theirs else None
        found[f"{what}_p99_ms"] = latencies[len(latencies) * 99 // 100] if theirs else None
    return found


def _together(jobs: Sequence[_Worker], *, apart: bool) -> list[_Done]:
    """Do every job in a process of its own, or at least in a thread, all beginning at the same moment."""
    if not apart:
        with ThreadPoolExecutor(len(jobs), initializer=_wait_at, initargs=(threading.Barrier(len(jobs)),)) as threads:
            return list(threads.map(_work, jobs))
    context = get_context("spawn")
    start = context.Barrier(len(jobs))
    with ProcessPoolExecutor(len(jobs), mp_context=context, initializer=_wait_at, initargs=(start,)) as processes:
        return list(processes.map(_work, jobs))


def _wait_at(start: Barrier | threading.Barrier) -> None:
    global _start  # noqa: PLW0603 - one a process
    _start = start


def _work(worker: _Worker) -> _Done:
    if worker.role == "gateway":
        return _claim(worker)
    return asyncio.run(_reserve(worker))


def _claim(worker: _Worker) -> _Done:
    with Pool.open(Home.open(Path(worker.home), store=worker.url)) as pool:
        (purchase,) = pool.purchases()
        spender, now_s, run = pool.spender(), int(time.time()), secrets.token_hex(8)

        def claim(index: int) -> float:
            before_s = time.perf_counter()
            spender.sent(spender.claim(purchase, f"{run} {index}", now_s))
            return (time.perf_counter() - before_s) * 1000

        # As the gateway does it: in its event loop where a write takes microseconds, else in threads.
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            _start.wait(_START_TIMEOUT_S)
            began_s = time.perf_counter()
            latencies_ms = list((map if pool.database.is_local else threads.map)(claim, range(worker.count)))
            took_s = time.perf_counter() - began_s
        spender.close()
    return _Done(worker.role, worker.count / took_s, latencies_ms)


async def _reserve(worker: _Worker) -> _Done:
    ledger, now_s = a_ledger(worker.url), int(time.time())
    # The same payers at every seller: those who share a store share the view of whom they trust.
    signed = sign_payments(an_offer(), keys(_AT_ONCE), worker.count)
    waiting = iter(signed)
    latencies_ms = []

    async def client() -> None:
        for payment in waiting:
            before_s = time.perf_counter()
            await reserve(ledger, payment.header.encode(), now_s)
            latencies_ms.append((time.perf_counter() - before_s) * 1000)

    try:
        _start.wait(_START_TIMEOUT_S)
        began_s = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(_AT_ONCE)))
        took_s = time.perf_counter() - began_s
    finally:
        ledger.close()
    return _Done(worker.role, worker.count / took_s, latencies_ms)
