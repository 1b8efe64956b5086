"""What a seller says it charged for a stream by usage: read from the comment at its end, and taken out of it."""

from __future__ import annotations

from contracts.errors import MalformedMessage
from contracts.event_stream import EventSplitter
from contracts.fields import wire_uint256
from contracts.stream_receipts import read_receipt_comment
from contracts.wire import SettlementResponse

__all__ = ["StreamCharge"]


class StreamCharge:
    """Passes one stream on, event by event, without the seller's receipt. `ceiling_atomic` is what was signed."""

    def __init__(self, ceiling_atomic: int) -> None:
        self.charged_atomic: int | None = None
        self._ceiling_atomic = ceiling_atomic
        self._splitter = EventSplitter()

    def pass_on(self, chunk: bytes) -> bytes:
        """Take the next chunk, and return what of the stream may go on now."""
        return b"".join(event for event in self._splitter.feed(chunk) if not self._is_receipt(event))

    def rest(self) -> bytes:
        """Return what is left at the end of the stream."""
        rest = self._splitter.rest()
        return b"" if self._is_receipt(rest) else rest

    def _is_receipt(self, event: bytes) -> bool:
        receipt = read_receipt_comment(event)
        if receipt is None:
            return False
        charged_atomic = _amount(receipt)
        if charged_atomic is not None and charged_atomic <= self._ceiling_atomic:
            self.charged_atomic = charged_atomic
        return True


def _amount(receipt: SettlementResponse) -> int | None:
    if not receipt.success or receipt.amount is None:
        return None
    try:
        return wire_uint256(receipt.amount, "amount")
    except MalformedMessage:
        return None
