"""Parts for the buyer's tests: pools filled without a chain, a small x402 seller that really verifies, and the like."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import uvicorn

from buyer.flow import Incoming
from buyer.fresh import fresh_authorization
from buyer.home import Home
from buyer.journal import intend, store_signed
from buyer.nonces import draw_nonces
from buyer.pool import Pool
from buyer.purchase import Purchase, RefillPolicy, Terms, terms_from_wire
from buyer.rows import find_purchase, insert_purchase
from contracts.address import Address, address_text, parse_address
from contracts.errors import FareboxError
from contracts.evm.devnet import Devnet
from contracts.headers import PAYMENT_REQUIRED, PAYMENT_RESPONSE, PAYMENT_SIGNATURE, decode_payment, encode_header
from contracts.money import Asset
from contracts.networks import Network
from contracts.offers import Offer, match_offer, requirements
from contracts.schemes import rails
from contracts.schemes.authorization import Authorization
from contracts.schemes.rails import rail_of
from contracts.signature import SigningKey
from contracts.wire import PaymentPayload, PaymentRequired, Requirements, SettlementResponse
from gateway.demo.ports import free_ports
from tests.patience import PATIENCE_S

NOW_S = 1_800_000_000
KEY = SigningKey(bytes(range(1, 33)))
ASSET = Asset(parse_address("0x" + "11" * 20), "USDC", "2", 6, "USDC")
PAYEE = parse_address("0x" + "22" * 20)

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


def offer_of(
    price_atomic: int = 1000,
    *,
    asset: Asset = ASSET,
    pay_to: Address = PAYEE,
    chain_id: int = 31337,
    max_timeout_s: int = 60,
) -> Offer:
    return Offer("exact", Network(chain_id), asset, price_atomic, pay_to, max_timeout_s)


def terms_of(offer: Offer) -> Terms:
    return terms_from_wire(requirements(offer), decimals=offer.asset.decimals)


def add_purchase(
    pool: Pool,
    name: str = "p",
    *,
    offer: Offer | None = None,
    endpoint: str = "http://127.0.0.1:8402",
    refill: RefillPolicy | None = None,
    kind: str = "pool",
    payer: Address = KEY.address,
    rpc_urls: tuple[str, ...] = (),
) -> Purchase:
    """Put a purchase without authorizations into the pool."""

    def insert(connection: Any) -> Purchase:
        insert_purchase(
            connection,
            name=name,
            kind=kind,
            endpoint=endpoint,
            model="m",
            payer=payer,
            price_cap_atomic=10**6,
            ttl_s=86_400,
            refill=refill,
            rpc_urls=rpc_urls,
            terms=terms_of(offer or offer_of()),
            now_s=NOW_S,
        )
        return find_purchase(connection, name)

    return pool.database.transact(insert)


def add_signed(
    pool: Pool, purchase: Purchase, count: int, *, valid_before_s: int = NOW_S + 86_400, key: SigningKey | None = None
) -> list[Authorization]:
    """Put `count` authorizations into the pool; signed with `key`, or with bytes that only look like a signature."""
    offer = purchase.offer
    fresh: list[Authorization] = []

    def insert(connection: Any) -> None:
        nonces = draw_nonces(connection, purchase, count)
        fresh.extend(fresh_authorization(offer, purchase.payer, nonce, valid_before_s) for nonce in nonces)
        intents = intend(connection, purchase, fresh, balance_atomic=10**30, from_block=0, now_s=NOW_S)
        signatures = [b"\x01" * 65 if key is None else key.sign(rail_of(offer).digest(it, offer)) for it in fresh]
        store_signed(connection, list(zip(intents, signatures, strict=True)), NOW_S)

    pool.database.transact(insert)
    return fresh


def open_pool(home: Home, count: int = 3, **options: Any) -> tuple[Pool, Purchase]:
    """Return an open pool with one purchase of `count` authorizations."""
    pool = Pool.open(home)
    purchase = add_purchase(pool, **options)
    add_signed(pool, purchase, count)
    return pool, purchase


def answer(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Incoming:
    """Return an answer whose headers are looked up in any letter case, as HTTP libraries do."""
    return Incoming(status, _Headers({name.lower(): value for name, value in (headers or {}).items()}), body)


class _Headers(dict[str, str]):
    def get(self, key: str, default: Any = None) -> Any:
        return super().get(key.lower(), default)


def asks(*offers: Offer, error: str | None = None) -> Incoming:
    """Return a v2 402 with these offers."""
    required = PaymentRequired(x402_version=2, accepts=[requirements(offer) for offer in offers], error=error)
    return answer(402, {PAYMENT_REQUIRED: encode_header(required)})


def receipt(transaction: str = "0x" + "ab" * 32, *, success: bool = True, amount_atomic: int | None = None) -> str:
    amount = None if amount_atomic is None else str(amount_atomic)
    return encode_header(
        SettlementResponse(success=success, transaction=transaction, network="eip155:31337", amount=amount)
    )


@dataclass
class Shop:
    """A small x402 seller (a stand-in): verifies every payment, refuses a second use, settles when it has a chain.

    `accepts` replaces what it asks for, `status` what it answers to a paid request, `free` sells nothing.
    """

    offers: list[Offer]
    accepts: list[Requirements] | None = None
    raw_402: tuple[dict[str, str], bytes] | None = None
    status: int = 200
    # What is charged of a ceiling; None: all of it.
    charge_atomic: int | None = None
    extensions: dict[str, Any] | None = None
    free: bool = False
    routes: tuple[str, ...] = ("/v1/chat/completions", "/report")
    chain: Devnet | None = None
    redirect_to: str | None = None
    paid: list[Authorization] = field(default_factory=list)
    payments: list[PaymentPayload] = field(default_factory=list)
    served: set[bytes] = field(default_factory=set)
    unpaid: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        if self.redirect_to is not None:
            return await _respond(send, 307, {"location": self.redirect_to})
        if scope["path"] not in self.routes:
            return await _respond(send, 404, {}, b'{"error": {"message": "no such model"}}')
        if self.free:
            return await _respond(send, 200, {}, b"free")
        payment = headers.get(PAYMENT_SIGNATURE.lower())
        if payment is None:
            self.unpaid += 1
            return await self._ask(send, None)
        try:
            offer, authorization, signature = self._verified(payment)
        except FareboxError as error:
            return await self._ask(send, error.code)
        self.paid.append(authorization)
        if self.status != 200:
            return await _respond(send, self.status, {"x-farebox-charged": "false"}, b"busy")
        if authorization.nonce in self.served:
            return await self._ask(send, "payment_replayed")
        self.served.add(authorization.nonce)
        amount_atomic = self.charge_atomic
        said = receipt(amount_atomic=amount_atomic)
        if self.chain is not None:
            zero = amount_atomic == 0
            settled = "" if zero else settle(self.chain, authorization, signature, offer, amount_atomic)
            said = receipt(settled, amount_atomic=amount_atomic)
        return await _respond(send, 200, {PAYMENT_RESPONSE: said}, b"answer to " + body)

    def _verified(self, header: str) -> tuple[Offer, Authorization, bytes]:
        payment = decode_payment(PAYMENT_SIGNATURE, header)
        assert isinstance(payment, PaymentPayload)
        self.payments.append(payment)
        offer = match_offer(payment.accepted, self.offers)
        authorization, signature = rail_of(offer).decode_payload(payment.payload, offer)
        rails.check(authorization, signature, offer, int(time.time()), 6)
        return offer, authorization, signature

    async def _ask(self, send: Send, error: str | None) -> None:
        if self.raw_402 is not None:
            return await _respond(send, 402, *self.raw_402)
        accepts = self.accepts or [requirements(offer) for offer in self.offers]
        required = PaymentRequired(x402_version=2, accepts=accepts, error=error, extensions=self.extensions)
        return await _respond(send, 402, {PAYMENT_REQUIRED: encode_header(required)}, b"{}")


def settle(
    chain: Devnet, authorization: Authorization, signature: bytes, offer: Offer, amount_atomic: int | None = None
) -> str:
    """Put one payment on the local chain and return its transaction hash; of a ceiling, `amount_atomic` is charged."""
    charged_atomic = authorization.value_atomic if amount_atomic is None else amount_atomic
    call = rail_of(offer).settle_call(authorization, signature, offer.asset.address, charged_atomic)
    return call_token(chain, address_text(call.to), call.data)


def call_token(chain: Devnet, token: str, data: bytes) -> str:
    """Send a transaction from an account that is nobody's, wait until it is mined, and return its hash."""
    call = {"from": chain.accounts[9].address, "to": token, "data": "0x" + data.hex()}
    sent: str = chain.rpc("eth_sendTransaction", call)
    deadline = time.monotonic() + PATIENCE_S
    while (mined := chain.rpc("eth_getTransactionReceipt", sent)) is None:
        assert time.monotonic() < deadline, "never mined"
        time.sleep(0.01)
    assert mined["status"] == "0x1"
    return sent


async def _read(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def _respond(send: Send, status: int, headers: dict[str, str], body: bytes = b"") -> None:
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an ASGI application on loopback in a thread, and yield its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="critical", ws="none"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@contextlib.contextmanager
def talking(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve a port on which every connection's request is read and `talk` answers, until it fails or returns."""
    listener = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    talk(connection)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(PATIENCE_S)


def hanging_up() -> contextlib.AbstractContextManager[str]:
    """Serve a port that reads a request and closes the connection without an answer."""
    return talking(lambda _: None)


def funded_purchase(
    pool: Pool, chain: Devnet, count: int, *, life_s: int = 3600, rpc_urls: tuple[str, ...] = ()
) -> Purchase:
    """Return a purchase of `count` authorizations by a wallet that has the money, all signed."""
    account = chain.accounts[0]
    chain.mint(account.address, 10**6)
    offer = offer_of(asset=token_of(chain), pay_to=parse_address(chain.accounts[1].address))
    made = add_purchase(pool, offer=offer, payer=parse_address(account.address), rpc_urls=rpc_urls)
    add_signed(pool, made, count, valid_before_s=int(time.time()) + life_s, key=SigningKey(account.key))
    return made


def closed_port_url() -> str:
    """Return a URL on which nobody listens."""
    (port,) = free_ports(1)
    return f"http://127.0.0.1:{port}"


def token_at(address: str) -> Asset:
    return Asset(parse_address(address), "USDC", "2", 6, "USDC")


def token_of(chain: Devnet) -> Asset:
    return token_at(chain.token)


def json_body(document: Any) -> bytes:
    return msgspec.json.encode(document)
