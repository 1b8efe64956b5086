"""A web of strangers on loopback (a stand-in): hosts by name, whatever they answer, and a record of who was asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from registry.fetch import Fetcher
from registry.guard import NetworkPolicy

Page = Callable[["Request"], Awaitable[None]]


@dataclass
class Request:
    """One request, and the connection to answer it on, byte by byte if need be."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    writer: asyncio.StreamWriter

    @property
    def host(self) -> str:
        return self.headers.get("host", "").partition(":")[0]

    async def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        fields = {"content-length": str(len(body)), **{name.replace("_", "-"): text for name, text in headers.items()}}
        lines = [f"HTTP/1.1 {status} x", *(f"{name}: {text}" for name, text in fields.items()), "connection: close"]
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await self.writer.drain()


@dataclass
class Web:
    """All strangers share one port; the Host header tells them apart. `asked` is every request that arrived."""

    port: int = 0
    pages: dict[str, Page] = field(default_factory=dict)
    asked: list[Request] = field(default_factory=list)
    resolved: list[str] = field(default_factory=list)

    def url(self, host: str, path: str = "/") -> str:
        return f"http://{host}:{self.port}{path}"

    def page(self, host: str, path: str, body: bytes, status: int = 200, **headers: str) -> str:
        """Publish `body` and return its URL."""

        async def serve(request: Request) -> None:
            await request.answer(status, body, **headers)

        self.pages[host + path] = serve
        return self.url(host, path)

    def fetcher(self, *, allow_private: bool = True) -> Fetcher:
        """Return a fetcher to which every name is this machine."""
        return Fetcher(NetworkPolicy(allow_private=allow_private), resolver=self.resolve)

    async def resolve(self, host: str, port: int) -> list[str]:
        self.resolved.append(host)
        return ["127.0.0.1"]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, path, _ = head[0].split(" ", 2)
            headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in head[1:-2])}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            request = Request(method, path, headers, body, writer)
            self.asked.append(request)
            page = self.pages.get(request.host + path) or self.pages.get(request.host + path.partition("?")[0])
            if page is None:
                await request.answer(404)
            else:
                await page(request)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def strangers() -> AsyncIterator[Web]:
    """Give a web of strangers, and end it."""
    web = Web()
    server = await asyncio.start_server(web.serve, "127.0.0.1", 0)
    web.port = server.sockets[0].getsockname()[1]
    async with server:
        yield web
