"""Questions of many to the chain, in one request.

Requests that arrive together each ask about their own payer. An HTTP request costs a millisecond of CPU, a question
inside one some ten microseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from contracts.errors import ChainUnavailable
from contracts.evm.rpc import Call, Rpc, RpcRefused
from contracts.limits import RPC_BATCH_MAX

__all__ = ["Gathered"]


class Gathered:
    """Asks `rpc` what is asked in one turn of the event loop in one request; what several ask alike, once.

    Where such a request fails, each asker's questions go by themselves: an endpoint may refuse long batches, and nobody
    shall suffer for somebody else's question. Raises as `Rpc` does.
    """

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self._waiting: list[_Asked] = []
        self._asking: set[asyncio.Task[None]] = set()

    async def call(self, method: str, *params: Any) -> Any:
        """See `Rpc.call`."""
        (result,) = await self.batch([(method, params)])
        if isinstance(result, RpcRefused):
            raise result
        return result

    async def batch(self, calls: Sequence[Call]) -> list[Any]:
        """See `Rpc.batch`."""
        loop = asyncio.get_running_loop()
        asked = _Asked(calls, loop.create_future())
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.append(asked)
        return await asked.answer

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for together in _loads(waiting):
            task = asyncio.ensure_future(self._ask(together))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _ask(self, together: list[_Asked]) -> None:
        # By their spelling, because a call's parameters have no hash.
        calls = {msgspec.json.encode(call): call for asked in together for call in asked.calls}
        try:
            results = dict(zip(calls, await self._rpc.batch(list(calls.values())), strict=True))
        except ChainUnavailable as error:
            if len(together) > 1:
                await asyncio.gather(*(self._ask([asked]) for asked in together if not asked.answer.done()))
            else:
                _tell(together, error)
        except Exception as error:  # noqa: BLE001 - whoever asked hears of it
            _tell(together, error)
        else:
            for asked in together:
                if not asked.answer.done():
                    asked.answer.set_result([results[msgspec.json.encode(call)] for call in asked.calls])


class _Asked(msgspec.Struct):
    calls: Sequence[Call]
    answer: asyncio.Future[list[Any]]


def _loads(waiting: Sequence[_Asked]) -> Iterator[list[_Asked]]:
    """Yield what goes into one request each; nobody's questions are torn apart."""
    load: list[_Asked] = []
    calls = 0
    for asked in waiting:
        if load and calls + len(asked.calls) > RPC_BATCH_MAX:
            yield load
            load, calls = [], 0
        load.append(asked)
        calls += len(asked.calls)
    yield load


def _tell(together: Sequence[_Asked], error: Exception) -> None:
    for asked in together:
        if not asked.answer.done():
            asked.answer.set_exception(error)
