"""Requests byte by byte over a socket: what no HTTP client would send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from contracts.evm.devnet import Devnet
from seller.proxy import ReverseProxy
from tests.attacks.parts import Till, attacked
from tests.patience import PATIENCE_S
from tests.seller.shop import BODY, Shop
from tests.seller.test_streams import listening

__all__ = ["Wire", "behind_proxy"]


class Wire:
    """One seller's port, and the till that sees what comes out of it."""

    def __init__(self, url: str, till: Till) -> None:
        self.url = url
        self._till = till

    async def send(
        self,
        method: str,
        target: str,
        headers: list[tuple[str, str]] | None = None,
        body: bytes = BODY,
        *,
        raw: bytes | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request line and headers as they are, with Host and Content-Length unless given; or `raw` bytes.

        Return status (0 where the server hung up), headers and body.
        """
        given = headers or []
        names = {name.lower() for name, _ in given}
        lines = [("Host", "shop"), ("Content-Length", str(len(body))), ("Connection", "close")]
        all_headers = [pair for pair in lines if pair[0].lower() not in names] + given
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in all_headers)
        parts = urlsplit(self.url)
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            try:
                writer.write(raw if raw is not None else head.encode("latin-1") + b"\r\n" + body)
                await writer.drain()
                answer = await reader.read()
            except ConnectionError:
                answer = b""
            finally:
                writer.close()
        status, answered, content = _parsed(answer)
        if status:
            seen = httpx.Request(
                "POST", self.url + "/", headers=[p for p in given if p[0].lower() != "host"], content=body
            )
            self._till.see(seen, status, answered, content)
        return status, answered, content

    def expect_failed_run(self) -> None:
        """Expect one run that failed, and so was not charged."""
        self._till.expect(failed_runs=1)


def _parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if not answer:
        return 0, {}, b""
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, body


@asynccontextmanager
async def behind_proxy(chain: Devnet, folder: Path, **changed: Any) -> AsyncIterator[tuple[Shop, Wire]]:
    """Open a shop as `farebox sell` has it: middleware, reverse proxy and upstream, each on a socket."""
    async with attacked(chain, folder, **changed) as (shop, till), listening(shop.app) as upstream:
        proxy = ReverseProxy(upstream)
        assert till.run_watch is not None
        shop.middleware.app = till.run_watch.watched(proxy)
        async with listening(shop.middleware) as url:
            yield shop, Wire(url, till)
            await shop.settled()
        await proxy.close()
