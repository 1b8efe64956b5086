"""A seller that drips, floods or bends its answers costs bounded time, bounded memory and no money."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

import buyer.probe
from buyer.flow import Lost, Outgoing
from buyer.http import open_client, send
from buyer.probe import probe_url
from contracts.errors import SellerUnreachable
from tests.buyer.parts import talking
from tests.patience import PATIENCE_S

TIME_S = 0.6


def drip(head: bytes, drop: bytes, stopped: threading.Event) -> Callable[[socket.socket], None]:
    """Return a talk that sends `head`, and then `drop` again and again, each well within any idle time."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(head)
        while not stopped.wait(0.02):
            connection.sendall(drop)

    return talk


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"HTTP/1.1 402 Payment Required\r\n", b"x"),
        (b"HTTP/1.1 402 Payment Required\r\ncontent-length: 60000\r\n\r\n", b" "),
        (b"HTTP/1.1 402 Payment Required\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["head", "body", "chunks"],
)
def test_a_seller_that_drips_for_ever_is_given_up_after_the_whole_time(
    head: bytes, drop: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buyer.probe, "PROBE_TIMEOUT_S", TIME_S)
    stopped = threading.Event()
    with talking(drip(head, drop, stopped)) as url:
        try:
            with pytest.raises(SellerUnreachable, match="no answer"):
                probe_url(url + "/report")
        finally:
            stopped.set()


def test_an_endless_head_is_refused_before_it_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buyer.probe, "PROBE_TIMEOUT_S", PATIENCE_S)
    sent = 0

    def flood(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 402 Payment Required\r\n")
        while True:
            sent += connection.send(b"x-fill: " + b"y" * 8000 + b"\r\n")

    with talking(flood) as url, pytest.raises(SellerUnreachable):
        probe_url(url + "/report")
    assert sent < 8 * 1024 * 1024, "what the kernel buffers on both sides, and no more"


def test_the_time_of_an_exchange_is_for_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = threading.Event()
    with talking(drip(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n", b"z", stopped)) as url:
        try:
            with open_client(TIME_S) as client, pytest.raises(Lost):
                send(client, Outgoing("GET", url), 10_000)
            with open_client(0.0) as client, pytest.raises(Exception, match="over"):
                send(client, Outgoing("GET", url), 10_000)
        finally:
            stopped.set()
