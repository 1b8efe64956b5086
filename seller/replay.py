"""Gives a kept answer once more: to a client that hung up, or lost what it had."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from contracts.crash import checkpoint
from seller.answers import RawHeaders, error_document
from seller.claims import Replay
from seller.ledger import Ledger
from seller.receipts import receipt_headers
from seller.spool import State

__all__ = ["send_replay"]

_REPLAYED = (b"x-farebox-replayed", b"true")
_BROKE_OFF = "the model server broke off here; this is all there is of the answer"


async def send_replay(ledger: Ledger, replay: Replay, path: str, send: Callable[[Any], Awaitable[None]]) -> None:
    """Send the answer from its beginning, with what became of its payment by now.

    An event stream that broke off ends with an event that says so. Raises `StoreUnavailable` before anything is sent.
    """
    answer = replay.answer
    await ledger.count_replay(answer.payment_id)
    checkpoint("seller.replaying")
    receipts = receipt_headers(replay.claim, replay.claim.transaction_hash)
    headers = [*_headers_of(replay), *receipts, _REPLAYED]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": True})
    position = 0
    while (body := ledger.recorded(answer.payment_id, position)) is not None:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        position += 1
    last = b"" if answer.state is State.WHOLE else _closing_event(path)
    await send({"type": "http.response.body", "body": last})


def _headers_of(replay: Replay) -> RawHeaders:
    if replay.answer.state is State.WHOLE:
        return replay.answer.headers
    return [(name, value) for name, value in replay.answer.headers if name != b"content-length"]


def _closing_event(path: str) -> bytes:
    """Return a last server-sent event, after a line end for a piece that may have stopped in the middle."""
    document = msgspec.json.encode(error_document(path, 502, "answer_incomplete", _BROKE_OFF))
    return b"\n\nevent: error\ndata: " + document + b"\n\n"
