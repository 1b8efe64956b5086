"""The client's end of one exchange: is it still there, and what has it been sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Message, Receive, Send

from gateway.envelope import Headers, Problem, error_body

__all__ = ["Client", "problem_answer", "ready"]


def ready(receive: Receive) -> Message | None:
    """Return the server's next message, or None where one would have to wait for it."""
    asking = receive().__await__()
    try:
        next(asking)
    except StopIteration as answered:
        message: Message = answered.value
        return message
    finally:
        asking.close()
    return None


class Client:
    """Writes one HTTP answer. Once the client is gone, writing goes on silently: the rest is for the books.

    `started` tells whether its status line has left, `delivered` whether all of it went to somebody who was there.
    """

    __slots__ = ("_has_ended", "_is_gone", "_on_gone", "_receive", "_send", "_watch", "delivered", "started")

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._watch: asyncio.Task[None] | None = None
        self._on_gone: Callable[[], None] = lambda: None
        self._is_gone = self._has_ended = False
        self.started = False
        self.delivered = False

    @property
    def gone(self) -> bool:
        """Whether the client has left. The request's body must have been read."""
        if not self._is_gone and not self._has_ended and self._watch is None:
            # No task waits for that message in every call.
            message = ready(self._receive)
            self._is_gone = message is not None and message["type"] == "http.disconnect"
        return self._is_gone

    def watch(self) -> None:
        """Notice at once when the client leaves, from now on."""
        if self._watch is None:
            self._watch = asyncio.create_task(self._wait_until_gone())

    def stop_watching(self) -> None:
        """End what `watch` began."""
        if self._watch is not None:
            self._watch.cancel()

    async def _wait_until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True
        self._on_gone()

    def when_gone(self, act: Callable[[], None]) -> None:
        """Do `act` when the client has left; at once, if it has."""
        self._on_gone = act
        if self.gone:
            act()
        else:
            self.watch()

    async def start(self, status: int, headers: Headers) -> None:
        """Send the status line and headers."""
        if not self._is_gone:
            self.started = True
            await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def body(self, chunk: bytes) -> None:
        """Send a part of the body, now."""
        if not self._is_gone:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    def body_at_once(self, chunk: bytes) -> bool:
        """Send a part of the body, and tell so; False, and nothing sent, where that has to wait for the client."""
        if self._is_gone:
            return True
        sending = self._send({"type": "http.response.body", "body": chunk, "more_body": True}).__await__()
        try:
            # The server waits, where it has to, before it writes.
            next(sending)
        except StopIteration:
            return True
        finally:
            sending.close()
        return False

    async def end(self, chunk: bytes = b"") -> None:
        """Send the last part of the body; `delivered` then tells whether somebody was there to take all of it."""
        gone = self.gone
        self._has_ended = True
        if not gone:
            await self._send({"type": "http.response.body", "body": chunk})
        self.delivered = not gone

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer."""
        await self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self.end(body)

    async def problem(self, path: str, problem: Problem) -> None:
        """Send an error in the dialect of `path`."""
        status, headers, body = problem_answer(path, problem)
        await self.answer(status, headers, body)


def problem_answer(path: str, problem: Problem) -> tuple[int, Headers, bytes]:
    """Return status, headers and body of an error answer."""
    headers: Headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store"), *problem.headers]
    if problem.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % problem.retry_after_s))
    return problem.status, headers, error_body(path, problem)
