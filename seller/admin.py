"""The seller's own view of itself, on a port of its own: health, readiness, metrics, and the books."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from contracts.address import address_text
from contracts.admin_token import carries_token, read_admin_token
from contracts.errors import FareboxError
from seller.answers import price_text
from seller.limits import STATUS_ROWS_MAX
from seller.pricebook import Quote
from seller.service import Seller

__all__ = ["admin_app", "price_list", "status_document"]

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def admin_app(seller: Seller, listen_host: str) -> Starlette:
    """Return the admin application. It shows no key and changes nothing.

    On loopback it answers only to loopback names, so that a web page cannot read it through a name of its own. With
    `FAREBOX_ADMIN_TOKEN`, metrics and books want `Authorization: Bearer <token>`; health does not. Raises
    `ConfigInvalid` where a token must be set.
    """
    loopback = listen_host in _LOOPBACK
    allowed = ["127.0.0.1", "localhost", "[::1]", listen_host] if loopback else ["*"]
    token = read_admin_token(os.environ, setting="--admin-listen", address=listen_host, is_loopback=loopback)

    def guarded(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def serve(request: Request) -> Response:
            if token is not None and not carries_token(request.headers.raw, token):
                return PlainTextResponse("unauthorized\n", status_code=401, headers={"www-authenticate": "Bearer"})
            return await endpoint(request)

        return serve

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        problem = await seller.why_not_ready()
        if problem is None:
            return PlainTextResponse("ready\n")
        return PlainTextResponse(problem + "\n", status_code=503, headers={"retry-after": "5"})

    async def metrics(_: Request) -> Response:
        sums = await asyncio.to_thread(seller.ledger.sums)
        return Response(seller.metrics.expose(sums), media_type=_METRICS_TYPE)

    async def status(_: Request) -> Response:
        try:
            return JSONResponse(await asyncio.to_thread(status_document, seller), headers={"cache-control": "no-store"})
        except FareboxError as error:
            return JSONResponse({"error": {"code": error.code, "message": error.message}}, status_code=503)

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", guarded(metrics)),
            Route("/status", guarded(status)),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=allowed, www_redirect=False)],
    )


def status_document(seller: Seller) -> dict[str, Any]:
    """Return what `/status` shows: money in atomic units, as the ledger has it now.

    `unsettled_atomic` is all that is claimed and not yet settled; `exposure_atomic` is the part whose goods have left.
    `refusals` counts since this process started. `queue` is what `GET /status` on the selling port tells, or None where
    the settings state no capacity.
    """
    sums, config = seller.ledger.sums(), seller.config
    per_payer_atomic, total_atomic = config.exposure_atomic
    trouble = seller.counter.trouble()
    admission = seller.admission
    return {
        "network": config.chain.caip2,
        "asset": config.token.address_text,
        "symbol": config.token.symbol,
        "decimals": config.token.decimals,
        "pay_to": address_text(config.payee),
        "settle": config.settle,
        "settler": config.settler.kind,
        "earned_atomic": sums.earned_atomic,
        "unsettled_atomic": sums.outstanding_atomic,
        "exposure_atomic": sums.exposure_atomic,
        "exposure_caps_atomic": {"per_payer": per_payer_atomic, "total": total_atomic},
        "lost_atomic": sums.lost_atomic,
        "payments": sums.payments,
        "refusals": dict(seller.metrics.refusals),
        "settlement_txs": seller.ledger.transactions(STATUS_ROWS_MAX),
        "settlement_problem": None if trouble is None else f"{trouble.code}: {trouble.message}",
        "prices": price_list(seller),
        "queue": None if admission is None else msgspec.to_builtins(admission.status()),
    }


def price_list(seller: Seller) -> list[dict[str, Any]]:
    """Return every listed route with its list price, by tier where it has tiers.

    `model` None is every model that has no price of its own.
    """
    rows: list[dict[str, Any]] = []
    for route in seller.book.routes:
        if route.free:
            rows.append({"match": route.match, "model": None, "price_atomic": 0, "price": "free"})
        for quote in route.quotes:
            rows += [_price_row(tier, name) for name, tier in quote.tiers.items()] or [_price_row(quote, None)]
    return rows


def _price_row(quote: Quote, tier: str | None) -> dict[str, Any]:
    row = {
        "match": quote.route,
        "model": quote.model,
        "price_atomic": quote.price_atomic,
        "price": price_text(quote),
    }
    return row if tier is None else row | {"tier": tier}
