"""The facilitator's HTTP interface: POST /verify, POST /settle, GET /supported (x402 specification v2, section 7).

Whatever is wrong with a payment is told in a 200; other statuses are for what is no facilitator request at all (400,
413), and for failures of ours (503).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from contracts.errors import FareboxError, MalformedMessage
from contracts.wire import FacilitatorRequest, decode_json, encode_json
from seller.answers import failure_answer
from seller.facilitate.service import Facilitator
from seller.limits import FACILITATE_BODY_BYTES_MAX

__all__ = ["facilitator_app"]

_log = logging.getLogger("farebox.facilitator")


class _TooLarge(MalformedMessage):
    code, http_status = "body_too_large", 413
    remedy = f"send at most {FACILITATE_BODY_BYTES_MAX} bytes"


def facilitator_app(facilitator: Facilitator) -> Starlette:
    """Return the application that serves an open `facilitator`."""

    def endpoint(answer: Callable[[FacilitatorRequest], Awaitable[msgspec.Struct]]) -> Any:
        async def serve(request: Request) -> Response:
            try:
                message = decode_json(await _body(request), FacilitatorRequest, "body")
                document = encode_json(await answer(message))
            except ClientDisconnect:
                return Response(status_code=400)
            except FareboxError as error:
                if error.http_status >= 500:
                    _log.warning("%s: %s: %s (%s)", request.url.path, error.code, error.message, error.advice)
                failed = failure_answer(error, request.url.path)
                headers = {name.decode(): value.decode() for name, value in failed.headers}
                return Response(failed.body, failed.status, headers)
            return Response(document, media_type="application/json", headers={"cache-control": "no-store"})

        return serve

    async def supported(_: Request) -> Response:
        return Response(encode_json(facilitator.supported()), media_type="application/json")

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        problem = await facilitator.why_not_ready()
        if problem is None:
            return PlainTextResponse("ready\n")
        return JSONResponse({"problem": problem}, status_code=503, headers={"retry-after": "5"})

    return Starlette(
        routes=[
            Route("/verify", endpoint(facilitator.verify), methods=["POST"]),
            Route("/settle", endpoint(facilitator.settle), methods=["POST"]),
            Route("/supported", supported),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
        ]
    )


async def _body(request: Request) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > FACILITATE_BODY_BYTES_MAX:
            raise _TooLarge(f"body: at most {FACILITATE_BODY_BYTES_MAX} bytes are read")
    return bytes(data)
