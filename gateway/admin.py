"""Health, readiness, status and metrics. They tell counts and prices; there is no secret in this process to tell."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from contracts.errors import FareboxError
from gateway.desk import Desk

__all__ = ["HEALTH_PATHS", "admin_app", "health_routes", "readiness"]

HEALTH_PATHS = frozenset(("/healthz", "/readyz"))
_NO_STORE = {"cache-control": "no-store"}


async def readiness(desk: Desk) -> list[str]:
    """Return why the gateway cannot serve a paid call now; nothing when it can."""
    try:
        await desk.pool.database.check_writable()
        ready = await desk.in_store(lambda: {name: counts.ready for name, counts in desk.shelf.counts()})
    except FareboxError as error:
        return [error.message]
    if desk.stopping:
        return ["the gateway is stopping"]
    if not ready:
        return ["there is no purchase; run `farebox buy`"]
    if not any(ready.values()):
        return ["no purchase has an authorization left; run `farebox refill NAME`"]
    return []


def health_routes(desk: Desk) -> list[Route]:
    """Return `/healthz` (the process lives) and `/readyz` (a paid call would be served)."""

    async def healthz(_: Request) -> Response:
        return JSONResponse({"ok": True}, headers=_NO_STORE)

    async def readyz(_: Request) -> Response:
        reasons = await readiness(desk)
        return JSONResponse({"ok": not reasons, "reasons": reasons}, 503 if reasons else 200, headers=_NO_STORE)

    return [Route("/healthz", healthz), Route("/readyz", readyz)]


def admin_app(desk: Desk) -> Starlette:
    """Return the admin plane: health routes, `/status` (JSON) and `/metrics` (Prometheus)."""

    async def status(_: Request) -> Response:
        return JSONResponse(await _status(desk), headers=_NO_STORE)

    async def metrics(_: Request) -> Response:
        text = await desk.in_store(desk.metrics.text)
        return PlainTextResponse(text, headers=_NO_STORE, media_type="text/plain; version=0.0.4")

    async def unavailable(_: Request, error: Exception) -> Response:
        assert isinstance(error, FareboxError)
        return JSONResponse({"ok": False, "error": {"code": error.code, "message": error.message}}, error.http_status)

    return Starlette(
        routes=[*health_routes(desk), Route("/status", status), Route("/metrics", metrics)],
        exception_handlers={FareboxError: unavailable},
    )


async def _status(desk: Desk) -> dict[str, Any]:
    def look() -> list[dict[str, Any]]:
        desk.shelf.reload()
        return [desk.shelf.status(purchase) for purchase in desk.shelf.purchases]

    purchases = await desk.in_store(look)
    reasons = await readiness(desk)
    return {"ready": not reasons, "reasons": reasons, "purchases": purchases}
