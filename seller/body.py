"""Request bodies: read once within a bound, asked for their `model`, and replayed to the application unchanged.

What decides the price must be what the model server will read. So a body in which two parsers could find two models
(a key twice, a key in another letter case, a second form field) is refused rather than priced.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from contracts.errors import LocalError, MalformedMessage
from contracts.nesting import check_nesting
from seller.form import check_charset, check_no_form, form_model, is_form
from seller.limits import (
    MODEL_NAME_CHARS_MAX,
    REQUEST_BODIES_BYTES_MAX,
    REQUEST_BODY_BYTES_MAX,
)

__all__ = ["BodyBudget", "BodyReader", "BodyTooLarge", "Busy", "ClientGone", "model_of"]

Receive = Callable[[], Awaitable[Any]]
Headers = Iterable[tuple[bytes, bytes]]


class BodyTooLarge(MalformedMessage):
    """The request is larger than we hold in memory."""

    code, http_status = "body_too_large", 413
    remedy = f"send at most {REQUEST_BODY_BYTES_MAX} bytes"


class ClientGone(Exception):
    """The client closed the connection before its request was complete; there is nobody to answer."""


class Busy(LocalError):
    """The bodies of other requests fill the memory set aside for them."""

    code, http_status, retry_after_s = "busy", 503, 1
    remedy = "send the request again in a moment"


class BodyReader:
    """Reads one request's body out of a memory budget that all requests share; `close` gives its share back."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._taken = 0

    async def read(self, receive: Receive, headers: Headers) -> bytes:
        """Return the whole body. Raises `BodyTooLarge` before more than the cap is held, `Busy`, or `ClientGone`."""
        for name, value in headers:
            if name == b"content-length" and (not value.isdigit() or int(value[:20]) > REQUEST_BODY_BYTES_MAX):
                raise BodyTooLarge(f"body: at most {REQUEST_BODY_BYTES_MAX} bytes are read")
        chunks: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            self._take(len(chunk))
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks) if len(chunks) > 1 else chunk

    def close(self) -> None:
        """Give back what was taken."""
        self._budget.held_bytes -= self._taken
        self._taken = 0

    def _take(self, size: int) -> None:
        if self._taken + size > REQUEST_BODY_BYTES_MAX:
            raise BodyTooLarge(f"body: at most {REQUEST_BODY_BYTES_MAX} bytes are read")
        if self._budget.held_bytes + size > self._budget.bytes_max:
            raise Busy("too many large requests at once")
        self._taken += size
        self._budget.held_bytes += size


class BodyBudget:
    """How many bytes of bodies are held at this moment, by all requests together."""

    def __init__(self, bytes_max: int = REQUEST_BODIES_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self.held_bytes = 0


def model_of(headers: Headers, body: bytes) -> str | None:
    """Return the `model` named by a JSON object or a multipart form, or None when it names none.

    Raises `MalformedMessage` for a body that is neither, that is compressed, or that can be read in two ways.
    """
    stated: list[str] = []
    for name, value in headers:
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise MalformedMessage("content-encoding: send the body uncompressed; its model decides the price")
        if name == b"content-type":
            stated.append(value.decode("latin-1"))
    if len(stated) > 1:
        raise MalformedMessage("content-type: is sent twice")
    content_type = stated[0] if stated else ""
    check_charset(content_type)
    if is_form(content_type):
        model: object = form_model(content_type, body)
    else:
        check_no_form(content_type, body)
        model = _json_model(body) if body else None
    if model is None:
        return None
    if not isinstance(model, str) or not 0 < len(model) <= MODEL_NAME_CHARS_MAX:
        raise MalformedMessage(f"model: expected a name of at most {MODEL_NAME_CHARS_MAX} characters")
    return model


def _json_model(body: bytes) -> object:
    try:
        check_nesting(body)
        members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        if any(key != "model" and key.casefold() == "model" for key in members):
            raise MalformedMessage("model: is spelled in another letter case; write `model`")
        if body.count(b'"model"') > 1 or b"\\u00" in body:
            _refuse_second_model(body)
        return None if (raw := members.get("model")) is None else msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedMessage("body: expected a JSON object") from None


def _refuse_second_model(body: bytes) -> None:
    """The quick decoder keeps the last of equal keys; others keep the first."""
    levels: list[list[str]] = []

    def remember(pairs: list[tuple[str, Any]]) -> None:
        # Objects close from the inside out: the last list is the outermost object's.
        levels.append([key for key, _ in pairs])

    try:
        json.loads(body, object_pairs_hook=remember)
    except (ValueError, RecursionError):
        raise MalformedMessage("body: expected a JSON object") from None
    if levels[-1].count("model") > 1:
        raise MalformedMessage("model: is set twice")
