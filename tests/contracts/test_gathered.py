"""Questions of many to the chain, in one request."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from contracts.errors import ChainUnavailable
from contracts.evm.gathered import Gathered
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.limits import RPC_BATCH_MAX


class Chain:
    """A stand-in for an endpoint: it answers with what it was asked, and takes batches of `batch_max` calls."""

    def __init__(self, batch_max: int = RPC_BATCH_MAX) -> None:
        self.requests: list[list[str]] = []
        self._batch_max = batch_max

    def rpc(self) -> Rpc:
        return Rpc(["http://chain.test"], transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        asked: Any = json.loads(request.content)
        calls = asked if isinstance(asked, list) else [asked]
        self.requests.append([call["method"] for call in calls])
        if len(calls) > self._batch_max:
            return httpx.Response(429)
        return httpx.Response(200, json=[self._reply(call) for call in calls])

    @staticmethod
    def _reply(call: dict[str, Any]) -> dict[str, Any]:
        if call["method"] == "no":
            return {"id": call["id"], "error": {"code": 3, "message": "no"}}
        return {"id": call["id"], "result": [call["method"], *call["params"]]}


async def test_questions_of_one_turn_are_one_request_and_each_asker_gets_its_own_answers() -> None:
    chain = Chain()
    async with chain.rpc() as rpc:
        gathered = Gathered(rpc)
        one, two, three = await asyncio.gather(
            gathered.batch([("a", [1]), ("b", [2])]), gathered.call("c", 3), gathered.batch([("d", [])])
        )
        later = await gathered.call("e")
    assert (one, two, three, later) == ([["a", 1], ["b", 2]], ["c", 3], [["d"]], ["e"])
    assert chain.requests == [["a", "b", "c", "d"], ["e"]]


async def test_what_several_ask_alike_is_asked_once() -> None:
    chain = Chain()
    async with chain.rpc() as rpc:
        gathered = Gathered(rpc)
        answers = await asyncio.gather(*(gathered.call("head", "latest") for _ in range(5)), gathered.call("head", "1"))
    assert answers == [["head", "latest"]] * 5 + [["head", "1"]]
    assert chain.requests == [["head", "head"]]


async def test_a_refused_question_is_refused_to_its_asker_alone() -> None:
    async with Chain().rpc() as rpc:
        gathered = Gathered(rpc)
        answers = await asyncio.gather(gathered.call("yes"), gathered.call("no"), return_exceptions=True)
    assert answers[0] == ["yes"]
    assert isinstance(answers[1], RpcRefused)


async def test_where_long_batches_are_refused_everybody_asks_alone() -> None:
    chain = Chain(batch_max=2)
    async with chain.rpc() as rpc:
        gathered = Gathered(rpc)
        answers = await asyncio.gather(
            gathered.batch([("a", []), ("b", [])]),
            gathered.batch([("c", []), ("d", []), ("e", [])]),
            return_exceptions=True,
        )
    assert answers[0] == [["a"], ["b"]]
    assert isinstance(answers[1], ChainUnavailable)


async def test_more_than_a_batch_may_hold_is_asked_in_several_and_nobodys_questions_are_torn_apart() -> None:
    chain, askers = Chain(), RPC_BATCH_MAX // 2
    async with chain.rpc() as rpc:
        gathered = Gathered(rpc)
        await asyncio.gather(*(gathered.batch([(name, [number]) for name in "abc"]) for number in range(askers)))
    whole = RPC_BATCH_MAX // 3 * 3
    assert sorted(map(len, chain.requests)) == sorted((whole, askers * 3 - whole))


async def test_an_asker_that_leaves_takes_no_answer_from_the_others() -> None:
    chain = Chain()
    async with chain.rpc() as rpc:
        gathered = Gathered(rpc)
        leaving, staying = asyncio.ensure_future(gathered.call("a")), asyncio.ensure_future(gathered.call("b"))
        await asyncio.sleep(0)
        leaving.cancel()
        assert await staying == ["b"]
        with pytest.raises(asyncio.CancelledError):
            await leaving
