"""A stand-in for a model server: OpenAI-compatible, deterministic, and no model behind it.

The demo and the tests sell it; a real seller puts Ollama, vLLM or llama.cpp in its place. Only the embeddings can be
real (see `gateway.demo.minilm`).

Knobs, for tests. Each is a request header, or a string of the same name in the body's `metadata` object, which also
passes through proxies that forward no unknown header:

    x-test-status: 503                answer this status with an OpenAI error (429 and 503 carry Retry-After: 1)
    x-test-delay-ms: 50               wait this long before the answer, and before every frame of a stream
    x-test-die-after-chunks: 2        break the connection after the status line and that many frames of the body
    x-test-hold: NAME                 wait until `POST /test/release/NAME`
    x-test-hold-after-chunks: 2       take that hold after so many frames of a stream, not before the status line

`app.state.calls` counts the calls that reached a handler; `GET /test/calls` tells the same to other processes, as
`{"calls": 3, "by_prompt": {"<text>": 1, …}}`.

Run it alone: `python -m gateway.demo.model_server --port 9000`.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gateway.demo.dialects import DIALECTS, Answer, BadRequest, embeddings_document, hash_vectors, models_document

__all__ = ["Embedder", "model_server_app"]

Embedder = Callable[[Sequence[str]], Sequence[Sequence[float]]]

_WAIT_S_MAX = 60.0
_PROMPTS_KEPT_MAX = 10_000
_BODY_BYTES_MAX = 32 * 1024 * 1024


class Died(ConnectionError):
    """The stand-in was told to die in mid-answer."""


@dataclass(frozen=True, slots=True)
class _Knobs:
    status: int | None
    delay_s: float
    die_after_chunks: int | None
    hold: str | None
    hold_after_chunks: int | None

    @classmethod
    def of(cls, request: Request, body: dict[str, Any]) -> _Knobs:
        metadata = body.get("metadata")

        def text(name: str) -> str | None:
            value = request.headers.get(name)
            if value is None and isinstance(metadata, dict):
                value = metadata.get(name)
            return str(value) if value is not None else None

        def number(name: str) -> int | None:
            value = text(name)
            if value is None:
                return None
            if not (value.isascii() and value.isdigit() and len(value) < 7):
                raise BadRequest(f"{name}: expected a small whole number, got {value[:20]!r}")
            return int(value)

        return cls(
            status=number("x-test-status"),
            delay_s=min((number("x-test-delay-ms") or 0) / 1000, _WAIT_S_MAX),
            die_after_chunks=number("x-test-die-after-chunks"),
            hold=text("x-test-hold"),
            hold_after_chunks=number("x-test-hold-after-chunks"),
        )


@dataclass(slots=True)
class _Server:
    app: Starlette = field(init=False)
    models: tuple[str, ...]
    embed: Embedder
    count_tokens: Callable[[str], int]
    by_prompt: Counter[str] = field(default_factory=Counter)
    holds: dict[str, asyncio.Event] = field(default_factory=dict)

    async def generate(self, request: Request) -> Response:
        body = await _json_body(request)
        knobs = _Knobs.of(request, body)
        self._check_model(body)
        answer = DIALECTS[request.url.path](body)
        self._count(_prompt_text(body))
        if (refusal := await self._before(knobs)) is not None:
            return refusal
        if body.get("stream") is True:
            return StreamingResponse(self._frames(answer, knobs), media_type="text/event-stream")
        return self._document(answer.document, knobs)

    async def embeddings(self, request: Request) -> Response:
        body = await _json_body(request)
        knobs = _Knobs.of(request, body)
        self._check_model(body)
        document = await asyncio.to_thread(embeddings_document, body, self.embed, self.count_tokens)
        self._count(_prompt_text(body))
        return await self._before(knobs) or self._document(document, knobs)

    async def paid(self, request: Request) -> Response:
        knobs = _Knobs.of(request, {})
        self._count("GET /paid")
        return await self._before(knobs) or self._document({"paid": True, "by": "stand-in"}, knobs)

    async def list_models(self, _: Request) -> Response:
        return JSONResponse(models_document(self.models))

    async def calls(self, _: Request) -> Response:
        return JSONResponse({"calls": self.app.state.calls, "by_prompt": dict(self.by_prompt)})

    async def release(self, request: Request) -> Response:
        self._hold(request.path_params["name"]).set()
        return Response(status_code=204)

    def _check_model(self, body: dict[str, Any]) -> None:
        if body.get("model") not in self.models:
            raise _ModelUnknown(str(body.get("model")))

    def _count(self, prompt: str) -> None:
        self.app.state.calls += 1
        if prompt in self.by_prompt or len(self.by_prompt) < _PROMPTS_KEPT_MAX:
            self.by_prompt[prompt] += 1

    def _hold(self, name: str) -> asyncio.Event:
        return self.holds.setdefault(name, asyncio.Event())

    async def _before(self, knobs: _Knobs) -> Response | None:
        if knobs.hold is not None and knobs.hold_after_chunks is None:
            await asyncio.wait_for(self._hold(knobs.hold).wait(), _WAIT_S_MAX)
        await asyncio.sleep(knobs.delay_s)
        if knobs.status is None or knobs.status < 400:
            return None
        headers = {"retry-after": "1"} if knobs.status in (429, 503) else None
        return _error(knobs.status, f"the stand-in was told to answer {knobs.status}", "stand_in_failure", headers)

    def _document(self, document: dict[str, Any], knobs: _Knobs) -> Response:
        body = msgspec.json.encode(document)
        if knobs.die_after_chunks is None:
            return Response(body, media_type="application/json")
        headers = {"content-length": str(len(body))}
        return StreamingResponse(_dying(body, knobs.die_after_chunks), headers=headers, media_type="application/json")

    async def _frames(self, answer: Answer, knobs: _Knobs) -> AsyncIterator[bytes]:
        for number, frame in enumerate(answer.frames):
            if number == knobs.die_after_chunks:
                raise Died
            if knobs.hold is not None and number == knobs.hold_after_chunks:
                await asyncio.wait_for(self._hold(knobs.hold).wait(), _WAIT_S_MAX)
            if number:
                await asyncio.sleep(knobs.delay_s)
            yield frame


def model_server_app(
    models: Sequence[str] = ("demo-model",),
    *,
    embeddings: Embedder | None = None,
    count_tokens: Callable[[str], int] = lambda text: len(text.split()),
) -> Starlette:
    """Return the stand-in as an ASGI app that answers for `models`.

    `embeddings` turns texts into vectors (default: unit vectors out of a hash, which mean nothing).
    """
    server = _Server(tuple(models), embeddings or hash_vectors, count_tokens)
    routes = [Route(path, server.generate, methods=["POST"]) for path in DIALECTS]
    routes += [
        Route("/v1/embeddings", server.embeddings, methods=["POST"]),
        Route("/v1/models", server.list_models),
        Route("/paid", server.paid),
        Route("/healthz", lambda _: JSONResponse({"ok": True})),
        Route("/test/calls", server.calls),
        Route("/test/release/{name}", server.release, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {BadRequest: _bad_request, _ModelUnknown: _model_unknown}
    server.app = Starlette(routes=routes, exception_handlers=handlers)
    server.app.state.calls = 0
    return server.app


class _ModelUnknown(Exception):
    """No such model here."""


async def _json_body(request: Request) -> dict[str, Any]:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > _BODY_BYTES_MAX:
            raise BadRequest(f"body: larger than {_BODY_BYTES_MAX} bytes")
    try:
        body = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise BadRequest(f"body: not JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest("body: expected a JSON object")
    return body


def _prompt_text(body: dict[str, Any]) -> str:
    """Return what the counter by prompt files a call under."""
    asked = body.get("messages") or body.get("prompt") or body.get("input")
    if isinstance(asked, list) and isinstance(asked[-1], dict):
        asked = asked[-1].get("content")
    return (asked if isinstance(asked, str) else msgspec.json.encode(asked).decode())[:500]


async def _dying(body: bytes, chunks: int) -> AsyncIterator[bytes]:
    for start in range(min(chunks, len(body) - 1)):
        yield body[start : start + 1]
    raise Died


async def _bad_request(_: Request, error: Exception) -> Response:
    return _error(400, str(error), "invalid_request")


async def _model_unknown(_: Request, error: Exception) -> Response:
    return _error(404, f"model: no model {str(error)[:100]!r} here", "model_not_found")


def _error(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse(
        {"error": {"message": message, "type": kind, "code": code, "param": None}}, status, headers=headers
    )


def main() -> None:
    """Serve the stand-in on loopback and say where on stdout; `--port 0` takes a free port."""
    parser = argparse.ArgumentParser(prog="python -m gateway.demo.model_server", description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=9000, help="0 takes a free port (default: 9000)")
    parser.add_argument("--model", action="append", dest="models", help="a model id to answer for; may be repeated")
    parser.add_argument("--minilm", action="store_true", help="answer /v1/embeddings with the real MiniLM model")
    options = parser.parse_args()
    app = _minilm_app(options.models) if options.minilm else model_server_app(options.models or ("demo-model",))
    listener = socket.create_server(("127.0.0.1", options.port))
    # Accepted connections inherit it; without it, small writes wait for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sys.stdout.write(f"listening on http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


def _minilm_app(models: Sequence[str] | None) -> Starlette:
    from contracts.console import exit_on_error
    from gateway.demo.minilm import MODEL_NAME, MiniLM

    with exit_on_error(as_json=False):
        minilm = MiniLM.load()
    return model_server_app(models or (MODEL_NAME,), embeddings=minilm.embed, count_tokens=minilm.count_tokens)


if __name__ == "__main__":
    main()
