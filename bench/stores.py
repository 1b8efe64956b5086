"""`python -m bench.stores`: claims of a buyer and reservations of a seller per second, on each kind of store.

The PostgreSQL is one of its own, on this machine's disk and reached through a socket, or that of FAREBOX_POSTGRES_URL.
Figures of one run: they tell the stores apart, not one release from another.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.workload import an_offer, presign
from buyer.home import Home
from buyer.pool import Pool
from buyer.signers import KeySigner
from contracts.console import print_document
from seller.ledger import Ledger
from seller.policy import Caps
from seller.verify import VerifiedPayment
from tests.paying import authorize
from tests.stores.servers import URL_VARIABLE, Server, own_server

__all__ = ["postgres"]

_SECRET = b"\x01" * 32
_AT_ONCE = 64


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m bench.stores", description=__doc__)
    parser.add_argument("--count", type=int, default=2_000, help="claims and reservations of each measurement")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="farebox-bench-") as folder, postgres() as server:
        for kind, url in (("SQLite", f"sqlite:///{folder}/books.db"), ("PostgreSQL", server.new_database())):
            rows += _measured(kind, Path(folder) / kind, url, arguments.count)
    document = {"cores": os.cpu_count(), "count": arguments.count, "rows": rows}
    print_document(document, as_json=arguments.json, human=lambda: print("\n".join(_line(row) for row in rows)))


@contextmanager
def postgres() -> Iterator[Server]:
    """Run a PostgreSQL of one's own, or use that of FAREBOX_POSTGRES_URL, where what was made goes again."""
    given = os.environ.get(URL_VARIABLE)
    if given:
        server = Server(given)
        try:
            yield server
        finally:
            server.drop_databases()
        return
    with own_server() as own:
        yield own


def _measured(kind: str, home: Path, url: str, count: int) -> list[dict[str, Any]]:
    claims = url.replace("books.db", "buyer.db")
    one, many = _claims(home, claims, count)
    reserved_one, reserved_many = asyncio.run(_reservations(url, count))
    return [
        {"store": kind, "what": "claim and sent, one after another", "per_s": one},
        {"store": kind, "what": f"claim and sent, {_AT_ONCE} threads", "per_s": many},
        {"store": kind, "what": "reserve, one after another", "per_s": reserved_one},
        {"store": kind, "what": f"reserve, {_AT_ONCE} at once", "per_s": reserved_many},
    ]


def _claims(home: Path, url: str, count: int) -> tuple[float, float]:
    with Pool.open(Home.open(home, store=url)) as pool:
        purchase = presign(pool, an_offer(), KeySigner(_SECRET), 2 * count)
        spender, now_s = pool.spender(), int(time.time())

        def claim(index: int) -> None:
            spender.sent(spender.claim(purchase, f"request {index}", now_s))

        def all_at_once() -> None:
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                list(threads.map(claim, range(count, 2 * count)))

        def each() -> None:
            for index in range(count):
                claim(index)

        one = _rate(count, each)
        many = _rate(count, all_at_once)
        spender.close()
        return one, many


async def _reservations(url: str, count: int) -> tuple[float, float]:
    offer = an_offer()
    ledger = Ledger(url, offer.network.chain_id, offer.asset.address)
    payments = [
        VerifiedPayment(*authorize(_SECRET, offer, nonce=number.to_bytes(32, "big")), offer, 2)
        for number in range(2 * count)
    ]

    async def reserve(payment: VerifiedPayment) -> None:
        await ledger.reserve(
            payment,
            bytes(32),
            "POST /v1/chat/completions",
            setting="async",
            caps=Caps(10**30, 10**30),
            balance_atomic=lambda _: 10**30,
            since_block=0,
            now_s=int(time.time()),
        )

    async def each_of(some: list[VerifiedPayment]) -> None:
        for payment in some:
            await reserve(payment)

    try:
        started_s = time.perf_counter()
        await each_of(payments[:count])
        between_s = time.perf_counter()
        await asyncio.gather(*(each_of(payments[count + start :: _AT_ONCE]) for start in range(_AT_ONCE)))
        ended_s = time.perf_counter()
    finally:
        ledger.close()
    return round(count / (between_s - started_s)), round(count / (ended_s - between_s))


def _rate(count: int, work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return round(count / (time.perf_counter() - started_s))


def _line(row: dict[str, Any]) -> str:
    return f"{row['store']:<11} {row['what']:<36} {row['per_s']:>8,} /s"


if __name__ == "__main__":
    main()
