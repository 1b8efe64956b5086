"""What providers write when they refuse a request for logs, and what is made of it."""

from __future__ import annotations

import pytest

from contracts.evm.rpc import Rpc, RpcRefused
from registry.endpoints import Endpoint, NoWayOn, Pool, Refusal, endpoint_name, refusal_of
from registry.limits import GROW_AFTER_ANSWERS, WINDOW_BLOCKS

RANGE, SIZE, RATE, BEHIND, UNKNOWN = Refusal.RANGE, Refusal.SIZE, Refusal.RATE, Refusal.BEHIND, Refusal.UNKNOWN


@pytest.mark.parametrize(
    ("code", "message", "refusal", "allowed"),
    [
        (-32600, "You can make eth_getLogs requests with up to a 500 block range.", RANGE, 500),
        (-32602, "eth_getLogs is limited to a 10,000 range", RANGE, 10_000),
        (-32000, "exceed maximum block range: 50000", RANGE, 50_000),
        (35, "ranges over 10000 blocks are not supported on freetier", RANGE, 10_000),
        (-32000, "block range is too wide", RANGE, None),
        (-32001, "Block range limit exceeded", RANGE, None),
        (-32000, "query exceeds max block range 2000", RANGE, 2000),
        (-32000, "block range too large, the limit is 2k blocks", RANGE, 2000),
        (-32005, "query returned more than 10000 results", SIZE, None),
        (-32008, "Response is too big", SIZE, None),
        (-32602, "Log response size exceeded.", SIZE, None),
        (-32000, "query timeout exceeded", SIZE, None),
        (-32000, "context deadline exceeded", SIZE, None),
        (429, "Your app has exceeded its compute units per second capacity", RATE, None),
        (-32029, "whatever", RATE, None),
        (-32005, "daily request count exceeded, request rate limited", RATE, None),
        (-32016, "over rate limit", RATE, None),
        (-32000, "block not found", BEHIND, None),
        (-32000, "requested from block after last accepted block", BEHIND, None),
        (-32000, "block range extends beyond current head block", BEHIND, None),
        (-32603, "internal error", UNKNOWN, None),
        (0, "", UNKNOWN, None),
    ],
)
def test_a_refusal_is_understood(code: int, message: str, refusal: Refusal, allowed: int | None) -> None:
    assert refusal_of(RpcRefused(message, code)) == (refusal, allowed)


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint("e", Rpc(["http://127.0.0.1:9"]))


def test_a_window_is_halved_at_a_refusal_and_grows_again(endpoint: Endpoint) -> None:
    endpoint.shrink(WINDOW_BLOCKS, Refusal.SIZE)
    assert endpoint.window_blocks == WINDOW_BLOCKS // 2
    for _ in range(GROW_AFTER_ANSWERS):
        endpoint.grow()
    assert endpoint.window_blocks == WINDOW_BLOCKS // 2
    endpoint.grow()
    assert endpoint.window_blocks == WINDOW_BLOCKS


def test_a_named_range_is_taken_at_its_word_and_never_passed_again(endpoint: Endpoint) -> None:
    endpoint.shrink(WINDOW_BLOCKS, Refusal.RANGE, 500)
    for _ in range(20):
        endpoint.grow()
    assert endpoint.window_blocks == 500
    endpoint.shrink(500, Refusal.RANGE, 500)
    assert endpoint.window_blocks == 250, "it named a range and refuses it"


def test_a_window_never_becomes_empty(endpoint: Endpoint) -> None:
    for _ in range(40):
        endpoint.shrink(endpoint.window_blocks, Refusal.UNKNOWN)
    assert endpoint.window_blocks == 1


def test_the_first_endpoint_that_does_not_rest_is_asked_and_liars_last() -> None:
    liar, first, second = (
        Endpoint(name, Rpc(["http://127.0.0.1:9"]), lies=lies) for name, lies in (("l", 1), ("a", 0), ("b", 0))
    )
    now_s = 100.0
    pool = Pool([liar, first, second], lambda: now_s)
    assert pool.pick() == (first, 0.0)
    pool.rest(first)
    pool.rest(second)
    assert pool.pick() == (liar, 0.0)
    pool.rest(liar)
    pool.rest(liar)
    chosen, rest_s = pool.pick()
    assert chosen is first
    assert rest_s > 0
    for each in (liar, first, second):
        pool.drop(each)
    with pytest.raises(NoWayOn):
        pool.pick()


def test_a_name_shows_no_secret_and_tells_endpoints_apart() -> None:
    one, other = (endpoint_name(f"https://node.example/v3/{key}?k={key}") for key in ("s3cret", "s4cret"))
    assert one != other
    assert one.startswith("node.example#")
    assert "cret" not in one
