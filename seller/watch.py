"""The client's side of a request whose body was read ahead: replay of the body, and whether anybody still listens.

The work for a client that has left goes on for a while, because its answer is kept: the application is told only after
`LINGER_S`, or when the answer cannot be kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Self

from seller.limits import LINGER_S

__all__ = ["ClientWatch"]


class ClientWatch:
    """Gives the application the whole body as one message, then waits for the client to leave, once for all.

    The wait begins when somebody asks: most answers are there at once, and nobody does. Use as an async context
    manager: leaving it ends the wait.
    """

    def __init__(self, receive: Callable[[], Awaitable[Any]], body: bytes) -> None:
        self._receive = receive
        self._body: bytes | None = body
        self._leaving: asyncio.Task[None] | None = None
        self._given_up = asyncio.Event()
        self._linger_s = LINGER_S
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._leaving is not None:
            self._leaving.cancel()
            await asyncio.wait([self._leaving])

    def start(self) -> asyncio.Task[None]:
        """Begin to wait for the client to leave, if that has not begun."""
        if self._leaving is None:
            self._leaving = asyncio.ensure_future(self._wait())
        return self._leaving

    async def receive(self) -> dict[str, Any]:
        """Be the application's `receive`."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        self.start()
        await self._given_up.wait()
        return {"type": "http.disconnect"}

    @property
    def client_is_gone(self) -> bool:
        """Whether the client closed the connection, as far as the server was asked and has told."""
        return self._leaving is not None and self._leaving.done()

    @property
    def is_given_up(self) -> bool:
        """Whether the application was told that its client has left."""
        return self._given_up.is_set()

    async def wait_for(self, future: asyncio.Future[None], timeout_s: float) -> bool:
        """Wait for `future` as long as the client does; tell whether it came."""
        await asyncio.wait({future, self.start()}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return future.done()

    def give_up(self) -> None:
        """Stop the work as soon as the client has left: what it makes then is of no use to anybody."""
        if self.start().done():
            self._given_up.set()
        else:
            self._linger_s = 0.0

    def stop(self) -> None:
        """Stop the work now, whoever listens."""
        self._given_up.set()

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._timer = asyncio.get_running_loop().call_later(self._linger_s, self._given_up.set)
