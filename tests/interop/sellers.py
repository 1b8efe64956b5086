"""The five servers, each selling the same chat completions in front of the same model server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from gateway.demo.ports import free_ports
from seller import PaymentMiddleware, SellerConfig
from seller.service import Seller
from tests.conformance.sdk_peers import serving
from tests.interop.cells import Rail, Server, Settlement, Stall
from tests.interop.goods import CHAT, INPUT_ATOMIC, MAX_INPUT_TOKENS, MAX_OUTPUT_TOKENS, OUTPUT_ATOMIC, offered_atomic
from tests.interop.node import PeerFailed
from tests.interop.official import forwarding_app, sell_with_the_sdk
from tests.interop.street import Street
from tests.processes import farebox_process

__all__ = ["OpenStall", "open_stall"]

_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class OpenStall:
    """A seller at work: where it listens and whom it is for, in which token."""

    stall: Stall
    url: str
    pay_to: str
    token: str


@contextmanager
def open_stall(street: Street, stall: Stall) -> Iterator[OpenStall]:
    """Sell for the time of the context. Raises `PeerFailed` where the facilitator does not serve the rail."""
    pay_to = street.payee()
    openers = {Server.MIDDLEWARE: _middleware, Server.PROXY: _proxy, Server.FASTAPI: _fastapi}
    with openers.get(stall.server, _on_node)(street, stall, pay_to) as url:
        yield OpenStall(stall, url, pay_to, street.asset(stall.rail)["address"])


@contextmanager
def _middleware(street: Street, stall: Stall, pay_to: str) -> Iterator[str]:
    app = forwarding_app(street.models_url)
    folder = street.folder_of(stall.slug)
    config = SellerConfig.model_validate({**_settings(street, stall, pay_to), "store": f"sqlite:///{folder}/seller.db"})
    app.add_middleware(PaymentMiddleware, seller=Seller(config, settles=True))
    with serving(app) as url:
        yield url


@contextmanager
def _proxy(street: Street, stall: Stall, pay_to: str) -> Iterator[str]:
    folder = street.folder_of(stall.slug)
    port, admin = free_ports(2)
    settings = {"upstream": street.models_url, "listen": f"127.0.0.1:{port}", **_settings(street, stall, pay_to)}
    (folder / "seller.yaml").write_text(json.dumps(settings))
    with farebox_process(folder, "sell", "-c", "seller.yaml", "--admin-listen", f"127.0.0.1:{admin}") as document:
        yield document["listening"]


@contextmanager
def _fastapi(street: Street, stall: Stall, pay_to: str) -> Iterator[str]:
    facilitator = _facilitator(street, stall)
    app = forwarding_app(street.models_url, charges_usage=stall.rail is Rail.UPTO)
    sell_with_the_sdk(app, facilitator, _option(street, stall, pay_to))
    with serving(app) as url:
        yield url


@contextmanager
def _on_node(street: Street, stall: Stall, pay_to: str) -> Iterator[str]:
    per_token = {"input": INPUT_ATOMIC, "output": OUTPUT_ATOMIC} if stall.rail is Rail.UPTO else None
    opened = street.node.call(
        "serve",
        kind={Server.EXPRESS: "express", Server.HONO: "hono"}[stall.server],
        path=CHAT,
        upstream=street.models_url,
        facilitator=_facilitator(street, stall),
        option=_option(street, stall, pay_to),
        perToken=per_token,
    )
    try:
        yield opened["url"]
    finally:
        street.node.call("close", url=opened["url"])


def _settings(street: Street, stall: Stall, pay_to: str) -> dict[str, Any]:
    """Return `seller.yaml` without what depends on how the seller is run."""
    settings: dict[str, Any] = {
        "network": street.chain.network,
        "rpc": [street.chain.rpc_url],
        "asset": street.asset(stall.rail),
        "pay_to": pay_to,
        "settler": {"kind": "chain", "key_file": street.key_file(street.engine_account)}
        if stall.settlement is Settlement.ENGINE
        else {"kind": "facilitator", "url": _facilitator(street, stall)},
        "routes": [{"match": f"POST {CHAT}", "price": _price(stall.rail)}, {"match": "GET /v1/models", "free": True}],
    }
    if stall.rail is Rail.PERMIT2:
        settings["methods"] = ["permit2"]
    if stall.rail is Rail.UPTO and stall.settlement is not Settlement.ENGINE:
        settings["upto"] = {"facilitator": _facilitator_account(street, stall)}
    return settings


def _price(rail: Rail) -> str | dict[str, Any]:
    """Return the price of a call as `seller.yaml` has it, in units of the token, which has 6 decimals on upto."""
    if rail is not Rail.UPTO:
        return "0.001"
    return {
        "per_million_input_tokens": str(INPUT_ATOMIC),
        "per_million_output_tokens": str(OUTPUT_ATOMIC),
        "max_input_tokens": MAX_INPUT_TOKENS,
        "max_output_tokens": MAX_OUTPUT_TOKENS,
    }


def _option(street: Street, stall: Stall, pay_to: str) -> dict[str, Any]:
    """Return a payment option as the routes of all official servers take it."""
    asset = street.asset(stall.rail)
    extra = {"name": asset["name"], "version": asset["version"]}
    if stall.rail is not Rail.EIP3009:
        extra["assetTransferMethod"] = "permit2"
    return {
        "scheme": _scheme(stall.rail),
        "network": street.chain.network,
        "payTo": pay_to,
        "price": {"amount": str(offered_atomic(stall.rail)), "asset": asset["address"], "extra": extra},
        "maxTimeoutSeconds": _TIMEOUT_S,
    }


def _scheme(rail: Rail) -> str:
    return "upto" if rail is Rail.UPTO else "exact"


def _facilitator(street: Street, stall: Stall) -> str:
    """Return the facilitator's URL, once it says that it serves the rail: else an official server ends its process."""
    url = _facilitator_url(street, stall)
    _kind(street, stall, url)
    return url


def _facilitator_account(street: Street, stall: Stall) -> str:
    """Return the account that a buyer's upto signature names, as the facilitator states it."""
    account: str = _kind(street, stall, _facilitator_url(street, stall))["extra"]["facilitatorAddress"]
    return account


def _facilitator_url(street: Street, stall: Stall) -> str:
    ours = stall.settlement is Settlement.OURS
    return street.our_facilitator(stall.rail) if ours else street.official_facilitator


def _kind(street: Street, stall: Stall, url: str) -> dict[str, Any]:
    """Return what a facilitator's /supported says of the rail's scheme."""
    kinds: list[dict[str, Any]] = httpx.get(f"{url}/supported", trust_env=False).json()["kinds"]
    for kind in kinds:
        if kind["scheme"] == _scheme(stall.rail) and kind["network"] == street.chain.network:
            return kind
    raise PeerFailed(f"{stall.settlement} does not serve {_scheme(stall.rail)} on {street.chain.network}: {kinds}")
