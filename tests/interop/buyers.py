"""The four clients, each buying a chat completion whole or as a stream."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from types import TracebackType
from typing import Any, Protocol, Self

import httpx
from typer.testing import CliRunner
from x402.http.utils import decode_payment_response_header

from buyer import Client as OurClient
from buyer import SpendPolicy, open_signer
from contracts.evm.devnet import DevAccount
from gateway.cli import app as farebox
from gateway.demo.ports import free_ports
from tests.conformance.sdk_peers import paying_client
from tests.interop.cells import Client, Rail
from tests.interop.goods import CHAT, MODEL, Bought, Receipt, offered_atomic
from tests.interop.node import PeerFailed
from tests.interop.sellers import OpenStall
from tests.interop.street import Street
from tests.patience import PATIENCE_S
from tests.processes import farebox_process

__all__ = ["Buyers", "Purse"]

# Above the dearest call of the matrix, in units of a token.
_MAX_PRICE = "0.1"
_POOL_COUNT = 3


class Purse(Protocol):
    """A client that buys at one stall with the money of one account."""

    def buy(self, body: dict[str, Any], release: str | None) -> Bought:
        """Buy once. With `release`, post there when the first piece of the answer has come, and read the rest after."""


class Buyers:
    """Opens the clients of the matrix; those that are processes of their own are started once.

    Official clients that `read_chain` see when Permit2 must be approved, and sign an approval where a seller takes one.
    """

    def __init__(self, street: Street, *, read_chain: bool = False) -> None:
        self._street, self._read_chain = street, read_chain
        self._stack = ExitStack()
        self._kinds: dict[Client, Callable[[OpenStall, DevAccount], Purse]] = {
            Client.OURS: self._ours,
            Client.GATEWAY: self._through_the_gateway,
            Client.PYTHON: self._official_python,
            Client.FETCH: self._official_fetch,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def open(self, client: Client, stall: OpenStall, payer: DevAccount) -> Purse:
        """Return `client`, ready to buy at `stall` with the money of `payer`."""
        return self._kinds[client](stall, payer)

    def _ours(self, stall: OpenStall, payer: DevAccount) -> Purse:
        return _OurPurse(stall, f"keyfile:{self._street.key_file(payer)}")

    def _official_python(self, stall: OpenStall, payer: DevAccount) -> Purse:
        return _PythonPurse(self._street, stall, payer, self._runner, self._read_chain)

    def _official_fetch(self, stall: OpenStall, payer: DevAccount) -> Purse:
        return _FetchPurse(self._street, stall, payer, self._read_chain)

    def _through_the_gateway(self, stall: OpenStall, payer: DevAccount) -> Purse:
        gateway = self._gateway
        gateway.sign_a_pool(stall, self._street.key_file(payer), self._street.chain.rpc_url)
        return _GatewayPurse(gateway.url, stall.stall.slug)

    @cached_property
    def _runner(self) -> asyncio.Runner:
        return self._stack.enter_context(asyncio.Runner())

    @cached_property
    def _gateway(self) -> _Gateway:
        gateway = _Gateway(self._street)
        self._stack.callback(gateway.stop)
        return gateway


class _OurPurse:
    def __init__(self, stall: OpenStall, signer: str) -> None:
        self._url, self._signer = stall.url, signer
        self._policy = SpendPolicy(max_price_atomic=offered_atomic(stall.stall.rail), schemes=("exact", "upto"))

    def buy(self, body: dict[str, Any], release: str | None) -> Bought:
        with (
            OurClient(signer=open_signer(self._signer), policy=self._policy, timeout=PATIENCE_S) as client,
            client.stream("POST", self._url + CHAT, json=body) as answer,
        ):
            text, flowed = _read(answer.iter_bytes(), release)
            outcome = answer.extensions["farebox"]
        told = outcome.receipt
        receipt = None if told is None else Receipt(told.success, told.payer or "", told.transaction)
        return Bought(answer.status_code, text, _told(answer.headers), receipt, flowed)


class _GatewayPurse:
    def __init__(self, url: str, purchase: str) -> None:
        self._url, self._purchase = url, purchase

    def buy(self, body: dict[str, Any], release: str | None) -> Bought:
        asked = {**body, "model": f"paid/{body['model']}@{self._purchase}"}
        with (
            httpx.Client(trust_env=False, timeout=PATIENCE_S) as client,
            client.stream("POST", self._url + CHAT, json=asked) as answer,
        ):
            text, flowed = _read(answer.iter_bytes(), release)
        return Bought(answer.status_code, text, _told(answer.headers), _receipt(answer.headers), flowed)


class _PythonPurse:
    def __init__(
        self, street: Street, stall: OpenStall, payer: DevAccount, runner: asyncio.Runner, reads_chain: bool
    ) -> None:
        self._stall, self._runner = stall, runner
        self._open = functools.partial(
            paying_client,
            street.chain,
            payer,
            token=stall.token,
            cap_atomic=offered_atomic(stall.stall.rail),
            reads_chain=reads_chain,
        )

    def buy(self, body: dict[str, Any], release: str | None) -> Bought:
        return self._runner.run(self._buy(body, release))

    async def _buy(self, body: dict[str, Any], release: str | None) -> Bought:
        async with self._open() as client, client.stream("POST", self._stall.url + CHAT, json=body) as answer:
            text, flowed = await _read_async(answer.aiter_bytes(), release)
        return Bought(answer.status_code, text, _told(answer.headers), _receipt(answer.headers), flowed)


class _FetchPurse:
    def __init__(self, street: Street, stall: OpenStall, payer: DevAccount, reads_chain: bool) -> None:
        self._street, self._stall, self._payer = street, stall, payer
        self._rpc_url = street.chain.rpc_url if reads_chain else None

    def buy(self, body: dict[str, Any], release: str | None) -> Bought:
        answer = self._street.node.call(
            "buy",
            url=self._stall.url + CHAT,
            body=body,
            key="0x" + self._payer.key.hex(),
            network=self._street.chain.network,
            assets=[{"asset": self._stall.token, "cap": str(offered_atomic(self._stall.stall.rail))}],
            release=release,
            rpcUrl=self._rpc_url,
        )
        told = answer["decoded"]
        receipt = None if told is None else Receipt(told["success"], told["payer"], told["transaction"])
        return Bought(answer["status"], answer["body"], answer["told"], receipt, answer["flowed"])


class _Gateway:
    """`farebox serve` as a process, whose pool `farebox buy` fills from outside. No key is in its home."""

    def __init__(self, street: Street) -> None:
        folder = street.folder_of("gateway")
        self._home = folder / "home"
        self._stack = ExitStack()
        listen, admin = (f"127.0.0.1:{port}" for port in free_ports(2))
        (folder / "gateway.yaml").write_text(json.dumps({"listen": listen, "admin_listen": admin}))
        self._stack.enter_context(farebox_process(folder, "serve", "--config", "gateway.yaml"))
        self.url = f"http://{listen}"

    def sign_a_pool(self, stall: OpenStall, key_file: str, rpc_url: str) -> None:
        where = ["--endpoint", stall.url, "--model", MODEL, "--rpc", rpc_url, "--signer", f"keyfile:{key_file}"]
        limits = ["--count", str(_POOL_COUNT), "--max-price", _MAX_PRICE, "--yes", "--json"]
        if stall.stall.rail is Rail.UPTO:
            limits += ["--scheme", "upto"]
        words = ["buy", stall.stall.slug, *where, *limits]
        done = CliRunner().invoke(farebox, words, env={"FAREBOX_HOME": str(self._home)})
        if done.exit_code != 0:
            raise PeerFailed(f"farebox {' '.join(words[:2])}: {done.output}") from done.exception

    def stop(self) -> None:
        self._stack.close()


def _read(pieces: Iterator[bytes], release: str | None) -> tuple[str, bool | None]:
    whole, flowed = b"", None
    for piece in pieces:
        whole += piece
        if release is not None and flowed is None:
            flowed = httpx.post(release, trust_env=False).status_code == 204
    return whole.decode(), flowed


async def _read_async(pieces: AsyncIterator[bytes], release: str | None) -> tuple[str, bool | None]:
    whole, flowed = b"", None
    async for piece in pieces:
        whole += piece
        if release is not None and flowed is None:
            async with httpx.AsyncClient(trust_env=False) as client:
                flowed = (await client.post(release)).status_code == 204
    return whole.decode(), flowed


def _told(headers: httpx.Headers) -> str:
    told: str = headers.get("PAYMENT-RESPONSE") or headers.get("PAYMENT-REQUIRED", "")
    return told


def _receipt(headers: httpx.Headers) -> Receipt | None:
    """Return the receipt as the official Python SDK reads it."""
    header = headers.get("PAYMENT-RESPONSE")
    if header is None:
        return None
    told = decode_payment_response_header(header)
    return Receipt(told.success, told.payer or "", told.transaction)
