"""`Client` and `AsyncClient`: httpx clients that pay when a server asks them to.

    with Client(pool=Pool.open(Home.open()), purchase="big-model") as client:
        client.post("/v1/chat/completions", json={...})

    async with AsyncClient(signer=open_signer("keyfile:wallet.key"), policy=SpendPolicy(max_price="0.01")) as client:
        await client.get("https://seller.example/report")

They are httpx clients in every other way, so `openai.OpenAI(http_client=Client(...))` works too. A paid request never
follows a redirect. An answered request returns its response, with the `Outcome` in `response.extensions["farebox"]`;
a refusal, by our policy or by the seller, and a lost answer raise the matching `FareboxError`. An answer longer than
`answer_bytes_max` (after decoding), or not over `answer_timeout_s` after its request, raises `AnswerOverLimit` where it
is read. Repeating a request whose answer was lost, broke off or was over a limit presents the same payment.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

import httpx

from buyer.answers import DECODED, AnswerLimits, AsyncBody, Body, Meter, until
from buyer.flow import (
    Incoming,
    Lost,
    NeverLeft,
    Outcome,
    Outgoing,
    PaymentFlow,
    advance,
    pay_when_asked,
    pay_with_pool,
    pay_with_signer,
)
from buyer.funds import SignerFunds, fingerprint
from buyer.http import async_transport as _async_transport
from buyer.http import defaults, not_sent, read_capped, read_capped_async
from buyer.http import transport as _transport
from buyer.limits import ANSWER_BYTES_MAX, ANSWER_TIMEOUT_S
from buyer.policy import SpendPolicy
from buyer.pool import Pool, Spender
from buyer.purchase import Purchase
from buyer.signers import Signer
from contracts.errors import OutcomeUnknown, StoreUnavailable, UsageError
from contracts.limits import BODY_402_BYTES_MAX

__all__ = ["AsyncClient", "Client"]

# Answers whose body tells what to pay, and is therefore read here.
_ASKS_FOR_PAYMENT = (402, 412)
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class _Wallet(Protocol):
    """Where the money of a client comes from."""

    blocking: bool

    def flow(self, request: Outgoing) -> PaymentFlow: ...

    def undelivered(self, outcome: Outcome) -> None: ...

    def delivered(self, outcome: Outcome) -> None: ...

    def close(self) -> None: ...


class _PoolWallet:
    """Pays from a pool: no key here. A step takes microseconds, so it runs on the event loop."""

    blocking = False

    def __init__(self, pool: Pool, purchase: Purchase) -> None:
        self._pool = pool
        self._purchase = purchase
        self._spender: Spender = pool.spender()

    def flow(self, request: Outgoing) -> PaymentFlow:
        name = fingerprint(request)
        key = (
            name
            if name.startswith("id:")
            else self._spender.unanswered(name, int(time.time())) or f"call:{uuid.uuid4().hex}"
        )
        paid = pay_with_pool(
            request,
            self._spender,
            self._pool.purchase(self._purchase.name),
            key,
            time.time,
            fingerprint=name,
            route=httpx.URL(request.url).path,
            tells_delivery=True,
        )
        # Reading may well be free, such as the list of models.
        return pay_when_asked(request, paid) if request.method in _SAFE_METHODS else paid

    def delivered(self, outcome: Outcome) -> None:
        if outcome.claim is not None:
            # Not noted, it is asked for again within its seller's hour: the answer was paid for either way.
            with contextlib.suppress(StoreUnavailable):
                self._spender.delivered(outcome.claim, int(time.time()))

    def undelivered(self, outcome: Outcome) -> None:
        if outcome.claim is not None:
            with contextlib.suppress(StoreUnavailable):
                self._spender.undelivered(outcome.claim)

    def close(self) -> None:
        self._spender.close()


class _SignerWallet:
    """Pays with a signer, which may be slow: its steps run in a thread."""

    blocking = True

    def __init__(self, signer: Signer, policy: SpendPolicy) -> None:
        self._funds = SignerFunds(signer, policy)

    def flow(self, request: Outgoing) -> PaymentFlow:
        return pay_with_signer(request, self._funds, time.time)

    def delivered(self, outcome: Outcome) -> None:
        """An identical request is a new purchase from now on."""

    def undelivered(self, outcome: Outcome) -> None:
        if outcome.payment is not None:
            self._funds.lost(outcome.payment)

    def close(self) -> None:
        self._funds.close()


class Client(httpx.Client):
    """A synchronous httpx client that pays: from `pool` for `purchase`, or with `signer` under `policy`.

    With a pool, `base_url` is the purchase's endpoint unless given. Other arguments are httpx's; `follow_redirects`,
    `mounts` and `trust_env` are refused. Raises `UsageError`.
    """

    def __init__(
        self,
        *,
        pool: Pool | None = None,
        purchase: str | Purchase | None = None,
        signer: Signer | None = None,
        policy: SpendPolicy | None = None,
        answer_bytes_max: int = ANSWER_BYTES_MAX,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        transport: httpx.BaseTransport | None = None,
        proxy: str | None = None,
        **options: Any,
    ) -> None:
        limits = AnswerLimits(answer_bytes_max, answer_timeout_s)
        wallet = _wallet(pool, purchase, signer, policy, options)
        self._close_wallet = _once(wallet.close)
        super().__init__(transport=_PayingTransport(transport or _transport(proxy), wallet, limits), **options)

    def close(self) -> None:
        """Close the connections and give unspent authorizations back."""
        super().close()
        self._close_wallet()

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Close."""
        super().__exit__(exc_type, exc_value, traceback)
        self._close_wallet()


class AsyncClient(httpx.AsyncClient):
    """An asynchronous httpx client that pays: from `pool` for `purchase`, or with `signer` under `policy`.

    Arguments and errors as in `Client`.
    """

    def __init__(
        self,
        *,
        pool: Pool | None = None,
        purchase: str | Purchase | None = None,
        signer: Signer | None = None,
        policy: SpendPolicy | None = None,
        answer_bytes_max: int = ANSWER_BYTES_MAX,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        transport: httpx.AsyncBaseTransport | None = None,
        proxy: str | None = None,
        **options: Any,
    ) -> None:
        limits = AnswerLimits(answer_bytes_max, answer_timeout_s)
        wallet = _wallet(pool, purchase, signer, policy, options)
        self._close_wallet = _once(wallet.close)
        inner = transport or _async_transport(proxy)
        super().__init__(transport=_AsyncPayingTransport(inner, wallet, limits), **options)

    async def aclose(self) -> None:
        """Close the connections and give unspent authorizations back."""
        await super().aclose()
        self._close_wallet()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Close."""
        await super().__aexit__(exc_type, exc_value, traceback)
        self._close_wallet()


class _PayingTransport(httpx.BaseTransport):
    """Drives the flow over another transport."""

    def __init__(self, inner: httpx.BaseTransport, wallet: _Wallet, limits: AnswerLimits) -> None:
        self._inner = inner
        self._wallet = wallet
        self._limits = limits

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        flow = self._wallet.flow(_outgoing(request, request.read()))
        response: httpx.Response | None = None
        deadline_s = 0.0
        with contextlib.closing(flow):
            step = advance(flow, None)
            while isinstance(step, Outgoing):
                happened: Incoming | NeverLeft | Lost
                deadline_s = self._limits.deadline_s()
                try:
                    with until(deadline_s):
                        response = self._inner.handle_request(_request(step, request))
                        happened = _incoming(response, self._body(response))
                except httpx.TransportError as error:
                    response, happened = None, _failure(error)
                step = advance(flow, happened)
        answer = _answer(step, response)
        assert isinstance(answer.stream, httpx.SyncByteStream)
        answer.stream = Body(answer.stream, _meter(answer, step, self._wallet, self._limits, deadline_s))
        return answer

    def close(self) -> None:
        self._inner.close()

    def _body(self, response: httpx.Response) -> bytes:
        if response.status_code not in _ASKS_FOR_PAYMENT:
            return b""
        assert isinstance(response.stream, httpx.SyncByteStream)
        with contextlib.closing(response.stream):
            body = read_capped(response.stream, response.headers.get("content-encoding", ""), BODY_402_BYTES_MAX)
        return body or b""


class _AsyncPayingTransport(httpx.AsyncBaseTransport):
    """Drives the flow over another transport."""

    def __init__(self, inner: httpx.AsyncBaseTransport, wallet: _Wallet, limits: AnswerLimits) -> None:
        self._inner = inner
        self._wallet = wallet
        self._limits = limits

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        flow = self._wallet.flow(_outgoing(request, await request.aread()))
        response: httpx.Response | None = None
        deadline_s = 0.0
        try:
            step = await self._advance(flow, None)
            while isinstance(step, Outgoing):
                happened: Incoming | NeverLeft | Lost
                deadline_s = self._limits.deadline_s()
                try:
                    async with asyncio.timeout(self._limits.answer_timeout_s):
                        response = await self._inner.handle_async_request(_request(step, request))
                        happened = _incoming(response, await self._body(response))
                except (httpx.TransportError, TimeoutError) as error:
                    response, happened = None, _failure(error)
                step = await self._advance(flow, happened)
        finally:
            flow.close()
        answer = _answer(step, response)
        assert isinstance(answer.stream, httpx.AsyncByteStream)
        answer.stream = AsyncBody(answer.stream, _meter(answer, step, self._wallet, self._limits, deadline_s))
        return answer

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _advance(self, flow: PaymentFlow, happened: Incoming | NeverLeft | Lost | None) -> Outgoing | Outcome:
        if not self._wallet.blocking:
            return advance(flow, happened)
        step = asyncio.ensure_future(asyncio.to_thread(advance, flow, happened))
        try:
            return await asyncio.shield(step)
        except asyncio.CancelledError:
            # A running generator cannot be closed; the signer's own time-out bounds this wait.
            await asyncio.wait([step])
            raise

    async def _body(self, response: httpx.Response) -> bytes:
        if response.status_code not in _ASKS_FOR_PAYMENT:
            return b""
        assert isinstance(response.stream, httpx.AsyncByteStream)
        try:
            encoding = response.headers.get("content-encoding", "")
            body = await read_capped_async(response.stream, encoding, BODY_402_BYTES_MAX)
        finally:
            await response.stream.aclose()
        return body or b""


def _wallet(
    pool: Pool | None,
    purchase: str | Purchase | None,
    signer: Signer | None,
    policy: SpendPolicy | None,
    options: dict[str, Any],
) -> _Wallet:
    """Return the client's money, and complete its httpx `options`."""
    for name in ("follow_redirects", "mounts", "trust_env"):
        if options.get(name):
            raise UsageError(f"{name}: a client that pays does not take it", remedy="leave it out")
    options["trust_env"] = False
    for name, value in defaults().items():
        options.setdefault(name, value)
    if pool is not None and purchase is not None and signer is None and policy is None:
        found = pool.purchase(purchase) if isinstance(purchase, str) else purchase
        options.setdefault("base_url", found.endpoint)
        return _PoolWallet(pool, found)
    if signer is not None and policy is not None and pool is None and purchase is None:
        return _SignerWallet(signer, policy)
    raise UsageError("a client is funded by pool= and purchase=, or by signer= and policy=")


def _once(close: Callable[[], None]) -> Callable[[], None]:
    """Return `close` for those who may call it twice, as users of context managers do."""
    stack = contextlib.ExitStack()
    stack.callback(close)
    return stack.close


def _outgoing(request: httpx.Request, body: bytes) -> Outgoing:
    dropped = {"transfer-encoding"}
    if request.headers.get("accept-encoding", "").strip().lower() != "identity":
        dropped.add("accept-encoding")
    headers = [(name, value) for name, value in request.headers.multi_items() if name not in dropped]
    if "accept-encoding" in dropped:
        headers.append(("accept-encoding", DECODED))
    return Outgoing(request.method, str(request.url), headers, body)


def _request(step: Outgoing, original: httpx.Request) -> httpx.Request:
    return httpx.Request(step.method, step.url, headers=step.headers, content=step.body, extensions=original.extensions)


def _incoming(response: httpx.Response, body: bytes) -> Incoming:
    return Incoming(response.status_code, response.headers, body)


def _failure(error: httpx.TransportError | TimeoutError) -> NeverLeft | Lost:
    if isinstance(error, TimeoutError):
        return Lost("the time for the whole answer, answer_timeout_s, is over")
    described = f"{type(error).__name__}: {error}"
    return NeverLeft(described) if not_sent(error) else Lost(described)


def _meter(answer: httpx.Response, outcome: Outcome, wallet: _Wallet, limits: AnswerLimits, deadline_s: float) -> Meter:
    """Return the meter of an answer's body; the wallet hears once how it ended."""

    def ended(whole: bool) -> None:
        if outcome.kind == "served":
            (wallet.delivered if whole else wallet.undelivered)(outcome)

    meter = Meter(answer.headers, limits, deadline_s, outcome.receipt, ended)
    if answer.is_closed:
        meter.end(whole=True)  # a transport that had read it before it gave it to us
    return meter


def _answer(outcome: Outcome, response: httpx.Response | None) -> httpx.Response:
    """Return the answer of the seller, or raise why there is none."""
    if response is not None and outcome.incoming is not None:
        unread = response.status_code not in _ASKS_FOR_PAYMENT
        if outcome.kind in ("free", "served") or (outcome.kind == "unknown" and unread):
            response.extensions["farebox"] = outcome
            return response
    raise outcome.error or OutcomeUnknown("the payment flow ended without an answer")
