"""The part of `seller` that goes over sockets: one request to a priced route, beside the official SDKs' middlewares.

Every server is kept on one core; the other has the clients, the chain, the settlement worker and the facilitator. CPU
time is that of the server's whole process tree, read from the kernel's process clocks.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.harness import Plan, Samples, Slice, measure
from bench.http_load import Load, LoadGenerator
from bench.http_servers import HttpServer, PeerMissing, Place, Shop, offer_of, start
from bench.report import Row, Target, ratio_of, row
from bench.stacks import Chain
from bench.workload import BODY, PATH, sign_payments
from contracts.evm.devnet import Devnet
from contracts.offers import Offer
from contracts.signature import SigningKey

__all__ = ["Found", "compare"]

_CONNECTIONS = 64
_PLAN = Plan(rounds=7, slice_s=0.4)

BARE, ASYNC = "HTTP: bare Starlette app", "HTTP: Farebox on Starlette, async: paid"
AUTO = "HTTP: Farebox on Starlette, auto, known payer: paid"
BEFORE = "HTTP: Farebox on Starlette, before: paid"
UNPAID = "HTTP: Farebox on Starlette: 402"
BARE_FASTAPI = "HTTP: bare FastAPI app"
ASYNC_FASTAPI = "HTTP: Farebox on FastAPI, async: paid"
SDK, SDK_UNPAID = "HTTP: official SDK on FastAPI: paid", "HTTP: official SDK on FastAPI: 402"
EXPRESS, EXPRESS_UNPAID = "HTTP: @x402/express: paid", "HTTP: @x402/express: 402"
HONO, HONO_UNPAID = "HTTP: @x402/hono: paid", "HTTP: @x402/hono: 402"

_BARE, _ASYNC = Shop("nobody", "Starlette"), Shop("Farebox", "Starlette")
_SDK, _EXPRESS, _HONO = Shop("official SDK", "FastAPI"), Shop("@x402/express"), Shop("@x402/hono")
# Name, server, whether it is paid, and the peer its CPU is compared with.
_ROWS: list[tuple[str, Shop, bool, str | None]] = [
    (BARE, _BARE, False, None),
    (UNPAID, _ASYNC, False, BARE),
    (ASYNC, _ASYNC, True, BARE),
    (AUTO, Shop("Farebox", "Starlette", "auto"), True, BARE),
    (BEFORE, Shop("Farebox", "Starlette", "before"), True, BARE),
    (BARE_FASTAPI, Shop("nobody", "FastAPI"), False, None),
    (ASYNC_FASTAPI, Shop("Farebox", "FastAPI"), True, BARE_FASTAPI),
    (SDK_UNPAID, _SDK, False, UNPAID),
    (SDK, _SDK, True, ASYNC),
    (EXPRESS_UNPAID, _EXPRESS, False, UNPAID),
    (EXPRESS, _EXPRESS, True, ASYNC),
    (HONO_UNPAID, _HONO, False, UNPAID),
    (HONO, _HONO, True, ASYNC),
]
# What a smoke test measures: the others take seconds to start, or to wait for blocks.
_QUICK = (_BARE, _ASYNC)


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured."""

    rows: list[Row]
    targets: list[Target]
    notes: list[str]


def compare(plan: Plan, core: int, others_core: int, devnet: Devnet, chain: Chain) -> Found:
    """Measure every server that can run here."""
    plan = plan if plan.quick else _PLAN
    notes = [
        f"HTTP: {_CONNECTIONS} connections, each of which waits for its answer, and had one before the clock started;",
        "the server on one core. What is sold on credit (async, auto) settles later; before waits for a block of the",
        "local chain. The facilitator is a stand-in that answers at once.",
    ]
    if plan.quick:
        notes.append("HTTP: a smoke test leaves out what takes seconds to start.")
    with tempfile.TemporaryDirectory(prefix="farebox-bench-") as folder, ExitStack() as life:
        place = Place(Path(folder), core, others_core, devnet, chain)
        clients = life.enter_context(LoadGenerator(place.others_core))
        servers: dict[Shop, HttpServer] = {}
        for shop in dict.fromkeys(shop for _, shop, _, _ in _ROWS):
            if plan.quick and shop not in _QUICK:
                continue
            try:
                servers[shop] = life.enter_context(start(shop, place))
            except PeerMissing as error:
                notes.append(f"Not measured: {shop.seller}: {error}.")
        rows = [each for each in _ROWS if each[1] in servers]
        cases = [
            _Case(name, servers[shop], clients, place.chain, _status(shop, paid=paid)) for name, shop, paid, _ in rows
        ]
        for case, (_, shop, _, _) in zip(cases, rows, strict=True):
            if shop.settle == "auto":
                _make_known(case, place)
        samples = measure(cases, plan)
    return Found([row(name, samples, peer, rate=True) for name, _, _, peer in rows], _targets(samples), notes)


def _status(shop: Shop, *, paid: bool) -> int:
    return 200 if paid or shop.seller == "nobody" else 402


def _make_known(case: _Case, place: Place) -> None:
    """Let every payer pay once and be settled; later payments go on credit, and nobody settles those."""
    case.run(len(place.chain.payer_secrets))
    case.server.stop_settling()


@dataclass(slots=True)
class _Case:
    """One server under one kind of request."""

    name: str
    server: HttpServer
    clients: LoadGenerator
    chain: Chain
    status: int

    def run(self, count: int) -> Slice:
        """Send at least one request on every connection; they are signed before the clock starts."""
        count = max(count, _CONNECTIONS)
        requests = self._requests(_CONNECTIONS + count)
        first, measured = requests[:_CONNECTIONS], requests[_CONNECTIONS:]
        taken = self.clients.send(Load(self.server.port, self.server.tree, first, measured, self.status))
        return Slice(count, taken.cpu_s, taken.wall_s, taken.latencies_us)

    def _requests(self, count: int) -> list[bytes]:
        return (
            [_request(None)] * count if self.status == 402 else _paid_requests(self.chain, offer_of(self.chain), count)
        )


def _paid_requests(chain: Chain, offer: Offer, count: int) -> list[bytes]:
    payers = [SigningKey(secret) for secret in chain.payer_secrets]
    return [_request(payment.header) for payment in sign_payments(offer, payers, count)]


def _request(payment: str | None) -> bytes:
    lines = [
        f"POST {PATH} HTTP/1.1", "host: 127.0.0.1", "accept: application/json", "user-agent: bench",
        "content-type: application/json", f"content-length: {len(BODY)}",
    ]  # fmt: skip
    if payment is not None:
        lines.append(f"payment-signature: {payment}")
    return "\r\n".join([*lines, "", ""]).encode() + BODY


def _targets(samples: dict[str, Samples]) -> list[Target]:
    wanted = [
        ("paid requests/s over HTTP, times those of the official FastAPI middleware", 20, SDK, ASYNC),
        ("paid requests/s over HTTP, times those of @x402/hono", 12, HONO, ASYNC),
        ("402 answers/s over HTTP, times those of the official FastAPI middleware", 5, SDK_UNPAID, UNPAID),
    ]
    return [
        Target(promise, "at least", limit, ratio_of(samples[peer].wall_us, samples[ours].wall_us))
        for promise, limit, peer, ours in wanted
        if peer in samples
    ]
