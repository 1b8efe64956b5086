"""Counts what one answer uses while it passes, and takes out of it what its client did not ask for. Pure.

The figures of the model server decide. Where they never come, because the client left or the server broke off, the
pieces of output that passed count as one token each, which is never more than were made, and the prompt as the least
that it can be. An answer that ended well and told no usage costs the minimum.
"""

from __future__ import annotations

from typing import Any

from contracts.errors import MalformedMessage
from contracts.event_stream import EventSplitter, event_data
from contracts.wire import decode_json
from seller.bounds import BoundedRequest
from seller.pricing import Usage, UsagePrice
from seller.usage import Dialect, is_usage_only, merged

__all__ = ["Meter"]


class Meter:
    """The meter of one answer. Feed it a stream chunk by chunk, or a document at once; then ask for the charge."""

    def __init__(self, dialect: Dialect, price: UsagePrice, request: BoundedRequest) -> None:
        self.price = price
        self.usage = Usage()
        self.deltas = 0
        self._dialect = dialect
        self._hides_usage = request.adds_usage
        self._input_tokens_least = request.input_tokens_least
        self._splitter = EventSplitter()

    def read_document(self, body: bytes) -> None:
        """Take a whole answer that is no stream."""
        self._note(body)

    def pass_on(self, chunk: bytes, *, last: bool = False) -> bytes:
        """Take the next chunk of a stream, and return what of it goes to the client now.

        That is every byte as it came, unless there is an event to be taken out: then an event waits for its end.
        """
        events = self._splitter.feed(chunk)
        if last and (rest := self._splitter.rest()):
            events.append(rest)
        shown = [event for event in events if not self._note(event_data(event)) or not self._hides_usage]
        return b"".join(shown) if self._hides_usage else chunk

    def charge_atomic(self, *, whole: bool) -> int:
        """Return what the answer costs: as far as it got, or, once its server ended it, as a `whole`."""
        told = self.usage
        input_tokens, output_tokens = (0, 0) if whole else (self._input_tokens_least, self.deltas)
        if told.input_tokens is not None:
            input_tokens = told.input_tokens
        if told.output_tokens is not None:
            output_tokens = told.output_tokens
        return self.price.charge_atomic(input_tokens, output_tokens)

    @property
    def was_told(self) -> bool:
        """Whether the model server said anything about usage."""
        return self.usage != Usage()

    def _note(self, data: bytes) -> bool:
        """Count one document or event; tell whether it says nothing but the usage."""
        if not data.lstrip().startswith(b"{"):
            return False
        try:
            document = decode_json(data, dict[str, Any], "event")
        except MalformedMessage:
            return False
        self.usage = merged(self.usage, self._dialect.usage_of(document))
        self.deltas += self._dialect.deltas_of(document)
        return is_usage_only(document)
