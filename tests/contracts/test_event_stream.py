"""Goal: events are cut where the standard ends them, wherever the chunks are cut, and no byte is lost or moved."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.event_stream import EventSplitter, event_data
from contracts.limits import EVENT_BYTES_MAX

EVENTS = (
    b"data: {}\n\n",
    b"event: x\r\ndata: 1\r\ndata: 2\r\n\r\n",
    b": a comment\n\n",
    b"data: old macintosh\r\r",
    b"id: 7\ndata:no space\r\n\n",
    b"data: [DONE]\n\n",
)


def _fed(chunks: list[bytes]) -> list[bytes]:
    splitter = EventSplitter()
    events = [event for chunk in chunks for event in splitter.feed(chunk)]
    rest = splitter.rest()
    return [*events, rest] if rest else events


@given(st.lists(st.sampled_from(EVENTS), max_size=12), st.data())
def test_events_are_the_same_however_the_stream_is_cut(events: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert _fed(chunks) == events


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_not_a_byte_is_lost_of_anything(chunks: list[bytes]) -> None:
    assert b"".join(_fed(chunks)) == b"".join(chunks)


@given(st.lists(st.sampled_from([b"\r", b"\n", b"data: x", b":"]), max_size=30))
def test_events_end_in_the_same_places_byte_by_byte_and_at_once(words: list[bytes]) -> None:
    stream = b"".join(words)
    assert _fed([stream]) == _fed([stream[place : place + 1] for place in range(len(stream))])


def test_an_event_without_end_is_passed_on_in_pieces() -> None:
    splitter = EventSplitter()
    endless = b"x" * EVENT_BYTES_MAX
    assert splitter.feed(endless) == []
    assert splitter.feed(b"yz") == [endless + b"yz"]
    assert splitter.rest() == b""


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (EVENTS[0], b"{}"),
        (EVENTS[1], b"1\n2"),
        (EVENTS[2], b""),
        (EVENTS[4], b"no space"),
        (b"data:  two spaces\n\n", b" two spaces"),
    ],
)
def test_data_is_what_the_standard_says(event: bytes, data: bytes) -> None:
    assert event_data(event) == data
