"""The receipt of a stream whose price is known only at its end: a comment after the last event.

Headers leave before the first token, so for a price by usage they cannot say what was charged. A client that asks with
`STREAM_RECEIPT: 1` finds the receipt in a last comment line, which is Farebox's own convention; readers of event
streams skip comments. Everybody else learns it by sending the same payment again.
"""

from __future__ import annotations

from typing import Final

from contracts.errors import MalformedMessage
from contracts.headers import decode_settlement_response, encode_header
from contracts.wire import SettlementResponse

__all__ = ["STREAM_RECEIPT", "read_receipt_comment", "receipt_comment"]

STREAM_RECEIPT: Final = "x-farebox-stream-receipt"

_MARK = b": x-farebox-receipt "


def receipt_comment(receipt: SettlementResponse) -> bytes:
    """Return the comment that carries `receipt`, with the blank line that ends it."""
    return _MARK + encode_header(receipt).encode() + b"\n\n"


def read_receipt_comment(event: bytes) -> SettlementResponse | None:
    """Return the receipt in one event of a stream; None for any other event, and for a receipt that does not parse."""
    if not event.startswith(_MARK):
        return None
    try:
        return decode_settlement_response(event[len(_MARK) :].strip())
    except MalformedMessage:
        return None
