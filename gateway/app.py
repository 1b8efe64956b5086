"""The gateway as an ASGI application: a hot path for paid routes, Starlette for the rest."""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from buyer.client_keys import ClientKey
from contracts.errors import FareboxError
from contracts.routes import INFERENCE_PATHS
from gateway.admin import HEALTH_PATHS, health_routes
from gateway.client import Client
from gateway.config import Listen
from gateway.delegator.model import DelegateModel
from gateway.desk import Desk
from gateway.envelope import Problem, Refused, error_body
from gateway.limits import BUSY_RETRY_AFTER_S, CONCURRENT_MAX, GOOD_HOSTS_MAX
from gateway.requests import ClientGone, parse_call, read_body
from gateway.shares import Shares

__all__ = ["PAID_ROUTES", "GatewayApp", "HostCheck"]

log = logging.getLogger("farebox.gateway")

PAID_ROUTES = frozenset(INFERENCE_PATHS)


class GatewayApp:
    """Paid routes are answered here, without a framework between; everything else by Starlette."""

    def __init__(
        self, desk: Desk, *, delegates: DelegateModel | None = None, concurrent_max: int = CONCURRENT_MAX
    ) -> None:
        self._desk = desk
        self._delegates = delegates
        self._concurrent_max = concurrent_max
        self._in_flight = 0
        self._shares = Shares(desk.config.calls_per_key, "calls")
        desk.metrics.in_flight.set_function(lambda: self._in_flight)
        self._rest = _rest_of_the_api(desk, delegates)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in PAID_ROUTES and scope["method"] == "POST":
            await self._serve(scope, receive, Client(receive, send))
        elif scope["type"] == "http" and scope["path"] not in HEALTH_PATHS:
            client = Client(receive, send)
            try:
                scope["farebox.client_key"] = await self._desk.caller(scope["headers"])
            except Refused as refused:
                await self._refuse(scope["path"], client, refused.problem)
            except FareboxError as error:
                await self._refuse(scope["path"], client, Problem.of(error))
            else:
                await self._rest(scope, receive, send)
        else:
            await self._rest(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, client: Client) -> None:
        if self._in_flight >= self._concurrent_max:
            busy = Problem(503, "busy", f"{self._concurrent_max} calls are in flight", BUSY_RETRY_AFTER_S)
            await self._refuse(scope["path"], client, busy)
            return
        self._in_flight += 1
        holder: str | None = None
        try:
            key = await self._desk.caller(scope["headers"])
            if key is not None:
                self._shares.take(key.name)
                holder = key.name
            call = parse_call(scope, await read_body(scope, receive), key)
            if self._delegates is not None and self._delegates.is_meant_by(call):
                await self._delegates.serve(call, client)
            else:
                await self._desk.serve(call, client)
        except ClientGone:
            pass
        except Refused as refused:
            await self._refuse(scope["path"], client, refused.problem)
        except FareboxError as error:
            await self._refuse(scope["path"], client, Problem.of(error))
        except Exception:
            log.exception("a defect of the gateway")
            await self._refuse(scope["path"], client, Problem(500, "internal_error", "a defect of the gateway"))
        finally:
            client.stop_watching()
            self._in_flight -= 1
            if holder is not None:
                self._shares.give_back(holder)

    async def _refuse(self, path: str, client: Client, problem: Problem) -> None:
        """Answer with an error; an answer that had begun is broken off instead, which the server does for us."""
        self._desk.metrics.refusals.labels(problem.code).inc()
        if not client.started:
            await client.problem(path, problem)


class HostCheck:
    """Refuses requests that a web page could have sent here: a foreign Host (DNS rebinding) or a foreign Origin.

    Only while listening on loopback; a gateway that others can reach has names we do not know.
    """

    def __init__(self, app: ASGIApp, listen: Listen) -> None:
        self._app = app
        self._allowed = {"localhost", "127.0.0.1", "::1", listen.host} if listen.is_loopback else None
        # Spellings of our own name that were found good; a client uses one.
        self._good_hosts: set[bytes] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._allowed is not None and scope["type"] == "http":
            problem = self._check(scope)
            if problem is not None:
                await Client(receive, send).problem(scope["path"], problem)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> Problem | None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self._is_good_host(hosts[0]):
            return Problem(421, "host_not_allowed", "host: this gateway answers to localhost only")
        for name, value in scope["headers"]:
            if name == b"origin" and not self._is_ours(value.decode("latin-1")):
                return Problem(403, "origin_not_allowed", "origin: web pages of other origins may not spend here")
        return None

    def _is_good_host(self, host: bytes) -> bool:
        if host in self._good_hosts:
            return True
        if not self._is_ours("//" + host.decode("latin-1")):
            return False
        if len(self._good_hosts) < GOOD_HOSTS_MAX:
            self._good_hosts.add(host)
        return True

    def _is_ours(self, url: str) -> bool:
        assert self._allowed is not None
        try:
            parts = urlsplit(url)
            return parts.hostname in self._allowed and parts.username is None
        except ValueError:
            return False


def _rest_of_the_api(desk: Desk, delegates: DelegateModel | None) -> Starlette:
    def entries(request: Request) -> list[dict[str, Any]]:
        key: ClientKey | None = request.scope["farebox.client_key"]
        allowed = None if key is None else key.models
        named = [] if delegates is None else [_named(each) for each in delegates.ids]
        return [entry for entry in [*desk.shelf.models(), *named] if allowed is None or entry["id"] in allowed]

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": entries(request)})

    async def model(request: Request) -> Response:
        name = request.path_params["model"].removeprefix("paid/")
        for entry in entries(request):
            if entry["id"] == name:
                return JSONResponse(entry)
        return _problem(request, Problem(404, "not_found", f"model: {name[:100]!r} is not for sale here"))

    async def missing(request: Request, _: Exception) -> Response:
        return _problem(request, Problem(404, "not_found", f"{request.url.path[:100]}: no such route"))

    async def wrong_method(request: Request, _: Exception) -> Response:
        return _problem(request, Problem(405, "method_not_allowed", f"{request.method} is not served here"))

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, FareboxError)
        return _problem(request, Problem.of(error))

    async def post_only(request: Request) -> Response:
        return _problem(request, Problem(405, "method_not_allowed", f"{request.url.path}: send a POST"))

    app = Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/models/{model:path}", model),
            *(Route(path, post_only, methods=["GET", "PUT", "PATCH", "DELETE"]) for path in sorted(PAID_ROUTES)),
            *health_routes(desk),
        ],
        exception_handlers={404: missing, 405: wrong_method, FareboxError: refused},
    )
    # A redirect would make clients send a paid request twice.
    app.router.redirect_slashes = False
    return app


def _named(model: str) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": 0, "owned_by": "farebox"}


def _problem(request: Request, problem: Problem) -> Response:
    headers: dict[str, Any] = {} if problem.retry_after_s is None else {"retry-after": str(problem.retry_after_s)}
    body = error_body(request.url.path, problem)
    return Response(body, problem.status, headers, media_type="application/json")
