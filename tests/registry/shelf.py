"""An index filled by hand: agents as a sync would leave them, without a chain."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contracts.address import ZERO, Address, address_text
from contracts.erc8004 import AGENT_WALLET_KEY, REGISTRATION_TYPE, TEST_NETWORKS
from contracts.headers import PAYMENT_REQUIRED, encode_header
from contracts.money import Asset
from contracts.networks import Network
from contracts.offers import Offer, requirements
from contracts.storage import Connection
from contracts.wire import PaymentRequired
from registry.agent_id import AgentId
from registry.agents import refresh
from registry.chains import chain_of
from registry.index import Index, open_index
from tests.registry.strangers import Request, Web

NOW_S = 1_800_000_000
CHAIN_ID = 31337
OWNER, WALLET, STRANGER = (Address(bytes([n]) * 20) for n in (1, 2, 3))
USDC = Asset(Address(bytes([9]) * 20), "USDC", "2", 6, "USDC")


@contextlib.contextmanager
def shelf(folder: Path) -> Iterator[Index]:
    """Give an empty index that knows the local chain."""
    with open_index(folder / "registry.db") as index:
        index.adopt(chain_of(Network(CHAIN_ID)))
        yield index


def agent(number: int) -> AgentId:
    return AgentId(CHAIN_ID, TEST_NETWORKS.identity, number)


def add_agent(index: Index, number: int, uri: str, *, owner: Address = OWNER, wallet: Address | None = WALLET) -> None:
    data = uri.encode()
    events = [
        ("transfer", owner, ZERO, None, None, None),
        ("registered", owner, None, None, data, len(data)),
        ("metadata", None, None, AGENT_WALLET_KEY, wallet or b"", len(wallet or b"")),
    ]

    def insert(connection: Connection) -> None:
        connection.executemany(
            "INSERT INTO identity_events (chain_id, block, log_index, transaction_hash, block_hash, agent_id, kind,"
            " account, former, name, value, value_bytes) VALUES (?, ?, ?, x'00', x'00', ?, ?, ?, ?, ?, ?, ?)",
            [(CHAIN_ID, number, at, number, *event) for at, event in enumerate(events)],
        )
        refresh(connection, CHAIN_ID, [number])

    index.database.transact(insert)


def naming(*numbers: int) -> list[dict[str, Any]]:
    registry = f"eip155:{CHAIN_ID}:{address_text(TEST_NETWORKS.identity)}"
    return [{"agentId": number, "agentRegistry": registry} for number in numbers]


def file_of(number: int, endpoint: str, **changes: Any) -> bytes:
    document = {
        "type": REGISTRATION_TYPE,
        "name": f"Coder {number}",
        "description": "a code model",
        "services": [{"name": "x402", "endpoint": endpoint}],
        "registrations": naming(number),
        "x402Support": True,
    }
    return json.dumps({**document, **changes}).encode()


def offer(pay_to: Address = WALLET, price_atomic: int = 1000) -> Offer:
    return Offer("exact", Network(CHAIN_ID), USDC, price_atomic, pay_to, 60)


def sell(web: Web, host: str, *offers: Offer, models: tuple[str, ...] = ("m",)) -> str:
    """Open a shop at `host` that asks for `offers`, and return its base URL."""
    listing = {"data": [{"id": model} for model in models]}
    web.page(host, "/v1/models", json.dumps(listing).encode())
    required = PaymentRequired(x402_version=2, accepts=[requirements(each) for each in offers])

    async def ask(request: Request) -> None:
        await request.answer(402, b"{}", **{PAYMENT_REQUIRED: encode_header(required)})

    web.pages[host + "/v1/chat/completions"] = ask
    return web.url(host, "")


def register(web: Web, index: Index, number: int, host: str, *offers: Offer, **changes: Any) -> str:
    """Put a seller at `host` and its agent into the index, and return the endpoint."""
    endpoint = sell(web, host, *(offers or (offer(),)))
    add_agent(index, number, web.page(host, f"/{number}.json", file_of(number, endpoint, **changes)))
    return endpoint
