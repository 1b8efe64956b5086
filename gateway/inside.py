"""A call at this process's own desk: no socket, the same payment, the same answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Message

from buyer.budgets import budget_units
from buyer.client_keys import ClientKey
from buyer.receipts import Receipt
from contracts.console import printable
from contracts.errors import FareboxError
from contracts.nesting import check_nesting
from gateway.client import Client
from gateway.desk import Desk
from gateway.envelope import Headers, Problem, Refused
from gateway.requests import parse_call

__all__ = ["CHAT", "LATER", "Reply", "ask_inside", "cost_units"]

CHAT = "/v1/chat/completions"
LATER = (408, 409, 425, 429, 502, 503, 504)
"""Answers that may be another one soon: the request is being paid for, or its seller or our own store is busy."""


@dataclass(slots=True)
class Reply:
    """One HTTP answer of the desk. `is_whole` is False where it broke off in the middle."""

    status: int = 0
    is_whole: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)

    async def receive(self, message: Message) -> None:
        """Take one ASGI message."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
        else:
            self.body += message.get("body", b"")
            self.is_whole = not message.get("more_body", False)

    def text(self) -> str | None:
        """Return the text of a chat answer, or None where there is none. It can be written down as UTF-8."""
        with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
            text = self._document()["choices"][0]["message"]["content"]
            if isinstance(text, str) and text.strip():
                return _encodable(text)
        return None

    def error(self) -> Mapping[str, Any]:
        """Return code and message of an error answer, which may be a seller's own: words that any store can hold."""
        with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
            error = self._document()["error"]
            return {"code": error["code"], "message": printable(str(error["message"]))}
        return {"code": None, "message": f"HTTP {self.status}" if self.is_whole else "the answer broke off"}

    def _document(self) -> Any:
        check_nesting(bytes(self.body))
        return json.loads(self.body)


def _encodable(text: str) -> str:
    """Return `text` with half characters, which JSON can spell and UTF-8 cannot, replaced."""
    return text.encode("utf-8", "replace").decode()


async def ask_inside(
    desk: Desk, headers: Headers, body: bytes, reply: Reply, client_key: ClientKey | None = None
) -> None:
    """Make one call of `CHAT`, and let `reply` have the answer: also where it is a refusal, or breaks off."""
    client = Client(_never, reply.receive)
    scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "headers": headers}
    try:
        await desk.serve(parse_call(scope, body, client_key), client)
    except Refused as refused:
        await client.problem(CHAT, refused.problem)
    except FareboxError as error:
        await client.problem(CHAT, Problem.of(error))
    finally:
        client.stop_watching()


async def cost_units(desk: Desk, receipt: Receipt | None) -> int:
    """Return what a receipt's call costs, or at most will have cost, in units. Raises `StoreUnavailable`."""
    if receipt is None:
        return 0
    amount_atomic = receipt.price_atomic if receipt.charged_atomic is None else receipt.charged_atomic
    assets = await desk.in_store(desk.pool.assets)
    return budget_units(amount_atomic, assets[receipt.network, receipt.asset])


async def _never() -> Message:
    """Stand for a client that stays."""
    await asyncio.Event().wait()
    raise AssertionError("a client that stays does not leave")
