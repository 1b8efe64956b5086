"""Server-sent events in a stream of bytes: cut where they end, and not a byte lost. Pure.

Chunks of a stream may end anywhere, also between a carriage return and its line feed. Source: WHATWG HTML, section
"Parsing an event stream".
"""

from __future__ import annotations

import re

from contracts.limits import EVENT_BYTES_MAX

__all__ = ["EventSplitter", "event_data"]

_LINE_END = rb"(?:\r\n|\n|\r(?!\n))"
_LINE_ENDS = re.compile(_LINE_END)
_EVENT_END = re.compile(_LINE_END + _LINE_END)
# A blank line that is cut in two leaves at most this much of it.
_CUT_END_BYTES = 3


class EventSplitter:
    """Cuts a stream into events. Joined, what it gives is what it was fed.

    Of what does not end within `EVENT_BYTES_MAX` it gives the pieces that it has.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes; return the events that are complete, each with the blank line that ends it."""
        held, events, start = self._held, [], 0
        held += data
        for end in _EVENT_END.finditer(held, self._searched):
            if end.end() == len(held) and held.endswith(b"\r"):
                break  # its line feed may still come
            events.append(bytes(held[start : end.end()]))
            start = end.end()
        del held[:start]
        self._searched = max(0, len(held) - _CUT_END_BYTES)
        if len(held) > EVENT_BYTES_MAX:
            events.append(self.rest())
        return events

    def rest(self) -> bytes:
        """Return what is held: an event without its end."""
        rest = bytes(self._held)
        self._held.clear()
        self._searched = 0
        return rest


def event_data(event: bytes) -> bytes:
    """Return the data of one event; empty for a comment or an event without any."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]  # the form in which nearly all come
    lines = [line[5:] for line in _LINE_ENDS.split(event) if line.startswith(b"data:")]
    return b"\n".join(line.removeprefix(b" ") for line in lines)
