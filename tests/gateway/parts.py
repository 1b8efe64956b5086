"""Parts for the gateway's tests: a real pool with real signatures, the real gateway, and a stand-in for a seller.

Both servers run on sockets in a thread each, so that clients, disconnects and chunk boundaries are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from buyer.home import Home
from buyer.journal import intend, store_signed
from buyer.pool import Counts, Pool
from buyer.purchase import Purchase, terms_from_wire
from buyer.rows import find_purchase, insert_purchase
from contracts.address import parse_address
from contracts.errors import FareboxError
from contracts.headers import PAYMENT_REQUIRED, PAYMENT_RESPONSE, decode_payment, encode_header
from contracts.money import Asset
from contracts.networks import Network
from contracts.offers import Offer, match_offer, requirements
from contracts.schemes import exact_eip3009, rails
from contracts.schemes.authorization import Authorization
from contracts.signature import SigningKey
from contracts.wire import PaymentPayload, PaymentRequired, SettlementResponse
from gateway.admin import admin_app
from gateway.app import GatewayApp, HostCheck
from gateway.config import GatewayConfig, Listen
from gateway.delegator.delegation import delegator_at
from gateway.delegator.model import DelegateModel
from gateway.demo.model_server import model_server_app
from gateway.desk import Desk
from gateway.upstream import Upstream
from tests.patience import PATIENCE_S

T = TypeVar("T")

MODEL = "demo-model"
PRICE_ATOMIC = 1000
KEY = SigningKey(bytes(range(1, 33)))
ASSET = Asset(parse_address("0x" + "11" * 20), "USDC", "2", 6, "USDC")
PAY_TO = parse_address("0x" + "22" * 20)
TRANSACTION = "0x" + "ab" * 32


def offer_at(price_atomic: int = PRICE_ATOMIC, asset: Asset = ASSET) -> Offer:
    return Offer("exact", Network(31337), asset, price_atomic, PAY_TO, 60)


class Listening:
    """An ASGI application on a free port of loopback, in a thread with a loop of its own."""

    def __init__(self, app: ASGIApp, lifespan: Literal["off", "on"] = "off") -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = uvicorn.Server(
            uvicorn.Config(app, lifespan=lifespan, log_level="critical", ws="none", timeout_graceful_shutdown=1)
        )

    async def serve(self) -> None:
        await self._server.serve(sockets=[self.socket])

    def stop(self) -> None:
        self._server.should_exit = True


@contextmanager
def in_thread(main: Callable[[], Awaitable[None]]) -> Iterator[None]:
    """Run a coroutine in a thread until the block ends; what it raised is raised here."""
    done: Future[None] = Future()

    async def run() -> None:
        await main()

    def work() -> None:
        try:
            asyncio.run(run())
            done.set_result(None)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            done.set_exception(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE_S)
        done.result(timeout=0)


@contextmanager
def listening(app: ASGIApp, lifespan: Literal["off", "on"] = "off") -> Iterator[Listening]:
    server = Listening(app, lifespan)
    with in_thread(server.serve):
        try:
            yield server
        finally:
            server.stop()


@dataclass
class StandInSeller:
    """A stand-in for a seller: verifies payments as one must, serves the model behind it, settles nothing.

    It keeps what was presented, refuses a payment whose answer was delivered (or gives that answer once more, when it
    `keeps_answers`), and can be told to change its price, redirect, or hang up.
    """

    app: ASGIApp = field(default_factory=lambda: model_server_app((MODEL, "org/big:8b", "@cf/meta/m")))
    price_atomic: int = PRICE_ATOMIC
    asset: Asset = ASSET
    send_receipt: bool = True
    redirect_to: str | None = None
    keeps_answers: bool = False
    kept: dict[bytes, bytes] = field(default_factory=dict)
    presented: list[tuple[bytes, bytes]] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    delivered: set[bytes] = field(default_factory=set)

    @property
    def nonces(self) -> list[bytes]:
        """The nonce of every payment that was presented, in order."""
        return [nonce for nonce, _ in self.presented]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        if scope["path"].startswith("/test/"):
            await self.app(scope, receive, send)
            return
        self.requests.append((scope["path"] + "?" + scope["query_string"].decode(), headers))
        body = await _body(receive)
        if self.redirect_to is not None:
            await _answer(send, 307, [(b"location", self.redirect_to.encode())], b"")
        elif (header := headers.get("payment-signature")) is None:
            await self._ask(send, "pay first")
        else:
            await self._serve(scope, body, header, send)

    async def _serve(self, scope: Scope, body: bytes, header: str, send: Send) -> None:
        try:
            payment = decode_payment("PAYMENT-SIGNATURE", header)
            assert isinstance(payment, PaymentPayload)
            offer = match_offer(payment.accepted, [offer_at(self.price_atomic, self.asset)])
            authorization, signature = exact_eip3009.decode_payload(payment.payload)
            rails.check(authorization, signature, offer, int(time.time()), 6)
        except FareboxError as error:
            await self._ask(send, error.code)
            return
        self.presented.append((authorization.nonce, body))
        if authorization.nonce in self.delivered and self.keeps_answers:
            await _answer(send, 200, [(b"x-farebox-replayed", b"true")], self.kept[authorization.nonce])
            return
        if authorization.nonce in self.delivered:
            await _answer(send, 409, [], b'{"error": {"message": "used", "code": "payment_replayed"}}')
            return
        started = False

        async def receive_again() -> Message:
            nonlocal started
            if started:
                await asyncio.Event().wait()
            started = True
            return {"type": "http.request", "body": body}

        async def pass_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self._outcome(message, authorization)]}
            else:
                known = self.kept.get(authorization.nonce, b"")
                self.kept[authorization.nonce] = known + message.get("body", b"")
            await send(message)

        await self.app(scope, receive_again, pass_on)

    def _outcome(self, message: Message, authorization: Authorization) -> list[tuple[bytes, bytes]]:
        if message["status"] >= 400:
            return [(b"x-farebox-charged", b"false")]
        self.delivered.add(authorization.nonce)
        if not self.send_receipt:
            return []
        receipt = SettlementResponse(success=True, transaction=TRANSACTION, network="eip155:31337")
        return [(PAYMENT_RESPONSE.lower().encode(), encode_header(receipt).encode()), (b"set-cookie", b"track=1")]

    async def _ask(self, send: Send, reason: str) -> None:
        asked = PaymentRequired(x402_version=2, error=reason, accepts=[requirements(offer_at(self.price_atomic))])
        await _answer(send, 402, [(PAYMENT_REQUIRED.lower().encode(), encode_header(asked).encode())], b"{}")


async def _body(receive: Receive) -> bytes:
    parts, more = bytearray(), True
    while more:
        message = await receive()
        parts += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(parts)


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    headers = [*headers, (b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def sign_pool(
    pool: Pool,
    endpoint: str,
    count: int,
    *,
    name: str = "chat",
    model: str = MODEL,
    price_atomic: int = PRICE_ATOMIC,
    valid_s: int = 86_400,
    asset: Asset = ASSET,
    rpc_urls: tuple[str, ...] = (),
    tier: str | None = None,
) -> None:
    """Sign `count` authorizations into the pool as `farebox buy` does, without a chain to ask first."""
    now_s = int(time.time())
    offer = replace(offer_at(price_atomic, asset), extra={} if tier is None else {"tier": tier})

    def authorization() -> Authorization:
        return Authorization(KEY.address, PAY_TO, price_atomic, 0, now_s + valid_s, secrets.token_bytes(32))

    def write(connection: Any) -> None:
        try:
            purchase: Purchase = find_purchase(connection, name)
        except FareboxError:
            insert_purchase(
                connection,
                name=name,
                kind="pool",
                endpoint=endpoint,
                model=model,
                payer=KEY.address,
                price_cap_atomic=price_atomic,
                ttl_s=valid_s,
                refill=None,
                rpc_urls=rpc_urls,
                terms=terms_from_wire(requirements(offer), decimals=asset.decimals),
                now_s=now_s,
            )
            purchase = find_purchase(connection, name)
        wanted = [authorization() for _ in range(count)]
        intents = intend(connection, purchase, wanted, balance_atomic=10**30, from_block=0, now_s=now_s)
        signed = [(one, KEY.sign(exact_eip3009.transfer_digest(one.authorization, offer.domain))) for one in intents]
        store_signed(connection, signed, now_s)

    pool.database.transact(write)


class Gateway:
    """The real gateway over the pool in `home`, with both of its listeners."""

    def __init__(self, home: Path, config: GatewayConfig, concurrent_max: int) -> None:
        self.home = Home.open(home)
        self._config, self._concurrent_max = config, concurrent_max
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._servers: list[Listening] = []
        self.desk: Desk | None = None

    @property
    def url(self) -> str:
        return self._servers[0].url

    @property
    def admin_url(self) -> str:
        return self._servers[1].url

    def counts(self, name: str = "chat") -> Counts:
        pool = Pool.open(self.home)
        try:
            return pool.counts(name)
        finally:
            pool.close()

    def top_up(self, endpoint: str, count: int, **purchase: Any) -> None:
        """Sign more, as another process would, and let the gateway see it."""
        pool = Pool.open(self.home)
        try:
            sign_pool(pool, endpoint, count, **purchase)
        finally:
            pool.close()
        self.call(lambda desk: desk.shelf.reload())

    def call(self, work: Callable[[Desk], T]) -> T:
        """Run `work` on the gateway's own loop."""

        async def run(desk: Desk) -> T:
            return work(desk)

        return self.run(run)

    def end_calls(self) -> None:
        """Let the time of every call that is being answered be over, which no clock tells."""

        def expire(desk: Desk) -> None:
            for deadline in tuple(desk._deadlines._running):
                deadline.expire()

        self.call(expire)

    def run(self, work: Callable[[Desk], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on the gateway's own loop."""
        assert self._loop is not None
        assert self.desk is not None
        return asyncio.run_coroutine_threadsafe(work(self.desk), self._loop).result(PATIENCE_S)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        pool = Pool.open(self.home)
        try:
            async with contextlib.AsyncExitStack() as stack:
                upstream = await stack.enter_async_context(Upstream())
                self.desk = Desk(self._config, pool, upstream)
                delegates = None
                if self._config.delegate is not None:
                    delegator = await stack.enter_async_context(delegator_at(self.desk, self._config.delegate))
                    delegates = DelegateModel(delegator)
                listen = Listen(host="127.0.0.1", port=0)
                app = GatewayApp(self.desk, delegates=delegates, concurrent_max=self._concurrent_max)
                self._servers = [Listening(HostCheck(app, listen)), Listening(HostCheck(admin_app(self.desk), listen))]
                self._ready.set()
                await asyncio.gather(*(server.serve() for server in self._servers))
                self.desk.close()
        finally:
            self._ready.set()
            pool.close()

    @contextmanager
    def running(self) -> Iterator[Gateway]:
        self._ready.clear()
        with in_thread(self._main):
            self._ready.wait(PATIENCE_S)
            try:
                yield self
            finally:
                for server in self._servers:
                    server.stop()


@contextmanager
def gateway(home: Path, config: GatewayConfig | None = None, *, concurrent_max: int = 64) -> Iterator[Gateway]:
    with Gateway(home, config or GatewayConfig(), concurrent_max).running() as running:
        yield running


class RawCall:
    """A request on a socket of its own, which the client may drop at any moment."""

    def __init__(self, server_url: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        host, port = server_url.removeprefix("http://").split(":")
        self._socket = socket.create_connection((host, int(port)), PATIENCE_S)
        lines = {"host": f"{host}:{port}", "content-type": "application/json", "content-length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in {**lines, **(headers or {})}.items())
        self._socket.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n" + head.encode() + b"\r\n" + body)

    def read_until(self, mark: bytes) -> bytes:
        """Return what arrived up to and including `mark`."""
        seen = bytearray()
        while mark not in seen:
            part = self._socket.recv(65536)
            assert part, f"the connection ended before {mark!r}: {bytes(seen)!r}"
            seen += part
        return bytes(seen)

    def leave(self) -> None:
        """Close the connection, as a client that gave up does."""
        self._socket.close()
