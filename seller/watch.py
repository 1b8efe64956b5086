"""The client's side of a request whose body was read ahead: replay of the body, and whether anybody still listens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Self

__all__ = ["ClientWatch"]


class ClientWatch:
    """Gives the application the whole body as one message, then waits for the client to leave, once for all.

    Use as an async context manager: leaving it ends the wait.
    """

    def __init__(self, receive: Callable[[], Awaitable[Any]], body: bytes) -> None:
        self._receive = receive
        self._body: bytes | None = body
        self._leaving: asyncio.Task[Any] | None = None

    async def __aenter__(self) -> Self:
        self._leaving = asyncio.ensure_future(self._wait())
        # One turn of the loop lets a server that knows of the end already say so.
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._leaving is not None
        self._leaving.cancel()
        await asyncio.wait([self._leaving])

    async def receive(self) -> dict[str, Any]:
        """Be the application's `receive`."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        assert self._leaving is not None
        await asyncio.wait([self._leaving])
        return {"type": "http.disconnect"}

    @property
    def client_is_gone(self) -> bool:
        """Whether the client closed the connection, as far as the server has told."""
        return self._leaving is not None and self._leaving.done()

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
