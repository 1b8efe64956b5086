"""What a client asks for: read within limits, parsed strictly, forwarded byte for byte except its model."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from itertools import chain

import msgspec
from starlette.types import Message, Receive, Scope

from buyer.client_keys import ClientKey
from contracts.nesting import check_nesting
from gateway.client import ready
from gateway.envelope import Headers, Problem, Refused
from gateway.gate import KEY_BYTES
from gateway.limits import BODY_BYTES_MAX, BODY_TIMEOUT_S, HEADERS_BYTES_MAX, MODEL_CHARS_MAX, REQUEST_ID_CHARS_MAX
from gateway.models import ModelName, parse_model
from gateway.wishes import NO_WISHES, Wishes, parse_wishes

__all__ = ["Call", "ClientGone", "named_key", "parse_call", "read_body"]

# What a seller is told about the request. Authorization, cookies and addresses of the client stay here.
_TO_SELLER = frozenset((b"content-type", b"accept", b"anthropic-version", b"anthropic-beta", b"openai-beta"))
# What the fallback is told besides: it is the user's own server.
_TO_FALLBACK = _TO_SELLER | {
    b"authorization",
    b"x-api-key",
    b"api-key",
    b"openai-organization",
    b"openai-project",
    b"idempotency-key",
    b"user-agent",
    b"x-request-id",
    b"traceparent",
    b"tracestate",
}
_OURS = b"x-farebox-"

_Fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


class ClientGone(Exception):
    """The client left before its request was complete."""


class Call(msgspec.Struct, eq=False):
    """One request for a model.

    Equal `key`s are attempts at one logical request, or may be: a key is made of the client's own id (`has_id`), else
    of caller, route and body. `digest` is the request's own. `max_price` is the text of `x-farebox-max-price`. The
    caller came with `client_key`, if any. `wishes` say how soon and how urgently it wants its answer. `budget` is the
    text of `x-farebox-budget`, for a task that is delegated.
    """

    path: str
    query: bytes
    body: bytes
    fields: dict[str, msgspec.Raw]
    model: ModelName
    headers: Headers
    key: str
    digest: str
    has_id: bool
    max_price: str | None
    seller: str | None
    client_key: ClientKey | None = None
    wishes: Wishes = NO_WISHES
    budget: str | None = None

    @property
    def route(self) -> str:
        """The path with its query string, as the seller sees it."""
        return f"{self.path}?{self.query.decode('latin-1')}" if self.query else self.path

    def body_for(self, model: str) -> bytes:
        """Return the body with `model` in place of the client's; all other members keep their bytes."""
        return msgspec.json.encode({**self.fields, "model": model})

    def seller_headers(self) -> list[tuple[str, str]]:
        """Return the client's headers that a seller may see."""
        return _allowed(self.headers, _TO_SELLER)

    def fallback_headers(self, key: str | None) -> list[tuple[str, str]]:
        """Return the client's headers for the fallback; `key`, if any, stands in for its Authorization.

        A client key is between the client and us, and stays here.
        """
        allowed = _allowed([header for header in self.headers if KEY_BYTES not in header[1]], _TO_FALLBACK)
        if key is None:
            return allowed
        kept = [(name, value) for name, value in allowed if name not in ("authorization", "x-api-key", "api-key")]
        return [*kept, ("authorization", f"Bearer {key}")]


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """Return the request's body. Raises `Refused` (413 past the cap, 408 past the time), `ClientGone`."""
    for name, value in scope["headers"]:
        if name == b"content-length" and (not value.isdigit() or int(value) > BODY_BYTES_MAX):
            raise _too_large()
    message = ready(receive)
    if message is not None and message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        _check_size(body)
        return body
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read_body(receive, message)
    except TimeoutError:
        problem = Problem(408, "body_timed_out", f"body: it was not complete after {BODY_TIMEOUT_S:.0f} s")
        raise Refused(problem) from None


async def _read_body(receive: Receive, message: Message | None) -> bytes:
    """Read on from `message`, which has come already."""
    body = bytearray()
    while (message := message or await receive())["type"] == "http.request":
        body += message.get("body", b"")
        _check_size(body)
        if not message.get("more_body"):
            return bytes(body)
        message = None
    raise ClientGone


def _check_size(body: bytes | bytearray) -> None:
    if len(body) > BODY_BYTES_MAX:
        raise _too_large()


def parse_call(scope: Scope, body: bytes, client_key: ClientKey | None = None) -> Call:
    """Return the call in an ASGI scope and its body. Raises `Refused` naming the header or field that is wrong."""
    headers: Headers = scope["headers"]
    if sum(map(len, chain.from_iterable(headers))) > HEADERS_BYTES_MAX:
        raise Refused(Problem(431, "headers_too_large", f"headers: at most {HEADERS_BYTES_MAX} bytes are read"))
    ours = _our_headers(headers)
    fields = _parse_fields(headers, body)
    model = _parse_model(fields)
    request_id = ours.get("request-id")
    caller = _caller(headers)
    path, query = scope["path"], scope.get("query_string", b"")
    digest = _digest((path.encode(), query, body))
    if request_id is None:
        address = (scope.get("client") or ("", 0))[0].encode()
        key = "body:" + _digest((caller, address, digest.encode(), ours.get("seller", "").encode()))
    else:
        key = named_key(path, request_id, caller)
    return Call(
        path=path,
        query=query,
        body=body,
        fields=fields,
        model=model,
        headers=headers,
        key=key,
        digest=digest,
        has_id=request_id is not None,
        max_price=ours.get("max-price"),
        seller=ours.get("seller"),
        client_key=client_key,
        wishes=parse_wishes(ours),
        budget=ours.get("budget"),
    )


def named_key(path: str, request_id: str, caller: bytes = b"") -> str:
    """Return the pool's name of a request that has an id of its own."""
    return "id:" + _digest((caller, path.encode(), request_id.encode()))


def _our_headers(headers: Headers) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in headers:
        if not name.startswith(_OURS):
            continue
        text, word = value.decode("latin-1").strip(), name[len(_OURS) :].decode("latin-1")
        if word in found:
            raise Refused(_bad(f"x-farebox-{word}: sent twice"))
        if not (text.isascii() and text.isprintable() and 0 < len(text) <= REQUEST_ID_CHARS_MAX):
            raise Refused(_bad(f"x-farebox-{word}: expected 1 to {REQUEST_ID_CHARS_MAX} printable ASCII characters"))
        found[word] = text
    return found


def _parse_fields(headers: Headers, body: bytes) -> dict[str, msgspec.Raw]:
    for name, value in headers:
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise Refused(Problem(415, "unsupported_encoding", "content-encoding: send the body uncompressed"))
    try:
        check_nesting(body)
        return _Fields.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(_bad(f"body: expected a JSON object: {error}")) from None
    except RecursionError:
        raise Refused(_bad("body: nested too deeply")) from None


def _parse_model(fields: dict[str, msgspec.Raw]) -> ModelName:
    raw = fields.get("model")
    if raw is None:
        raise Refused(_bad("model: is missing"))
    try:
        text = msgspec.json.decode(raw, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refused(_bad("model: expected a string")) from None
    if not 0 < len(text) <= MODEL_CHARS_MAX:
        raise Refused(_bad(f"model: expected 1 to {MODEL_CHARS_MAX} characters"))
    return parse_model(text)


def _caller(headers: Headers) -> bytes:
    """Return what tells callers apart: the credential they call us with, whatever it is."""
    return b"\n".join(value for name, value in headers if name in (b"authorization", b"x-api-key"))


def _digest(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join([len(part).to_bytes(8, "big") + part for part in parts])).hexdigest()


def _allowed(headers: Headers, names: frozenset[bytes]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers if name in names]


def _bad(message: str) -> Problem:
    return Problem(400, "invalid_request", message)


def _too_large() -> Refused:
    return Refused(Problem(413, "body_too_large", f"body: at most {BODY_BYTES_MAX} bytes are accepted"))
