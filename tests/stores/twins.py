"""Two gateways and two sellers, all processes of their own, on one database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from contracts.evm.devnet import Devnet
from gateway.demo.ports import free_ports
from gateway.demo.processes import Child, farebox_command, wait_until
from tests.e2e.parts import MODEL, PRICE, PRICE_ATOMIC, Market, market
from tests.patience import PATIENCE_S
from tests.warm import Warm

__all__ = ["BOTH", "Twins", "twins"]

BOTH = (0, 1)
STATES = ("ready", "claimed", "sent", "unknown", "spent", "expired", "cancelled")


@dataclass
class Twins:
    """A market with a second seller and a second gateway, and the purchase `demo-N` at seller N.

    The gateways have homes of their own, as on two machines; the store, and nothing else, is what they share.
    """

    shop: Market
    seller_urls: list[str]
    seller_admin_urls: list[str]
    gateway_urls: list[str]

    def start_seller(self, number: int) -> Child:
        """Start `farebox sell` number 0 or 1; also after a kill."""
        admin = self.seller_admin_urls[number]
        listen = admin.removeprefix("http://")
        command = farebox_command("sell", "--config", f"seller-{number}.yaml", "--admin-listen", listen)
        child = self.shop.crew.start(f"sell-{number}", command)
        self.shop.crew.wait_ready(child, f"{admin}/readyz")
        return child

    def start_gateway(self, number: int) -> Child:
        """Start `farebox serve` number 0 or 1; also after a kill."""
        child = self.shop.crew.start(f"serve-{number}", farebox_command("serve", "--config", f"gateway-{number}.yaml"))
        self.shop.crew.wait_ready(child, f"{self.gateway_urls[number]}/healthz")
        return child

    def buy(self, count: int) -> None:
        """Sign `count` payments for each seller."""
        for number, url in enumerate(self.seller_urls):
            where = ["--endpoint", url, "--model", MODEL, "--rpc", self.shop.chain.rpc_url]
            limits = ["--count", str(count), "--max-price", PRICE, "--signer", "keyfile:buyer.key", "--yes"]
            self.shop.farebox("buy", f"demo-{number}", *where, *limits, "--json")

    def chat(self, gateway: int, seller: int) -> tuple[str, str]:
        """Return URL and model name of a call through a gateway to a seller."""
        return f"{self.gateway_urls[gateway]}/v1/chat/completions", f"paid/{MODEL}@demo-{seller}"

    def counts(self) -> dict[str, int]:
        """Return the authorizations of both purchases by state."""
        documents = [json.loads(self.shop.farebox("status", f"demo-{number}", "--json")) for number in BOTH]
        return {state: sum(int(document[state]) for document in documents) for state in (*STATES, "signed")}

    def status(self, seller: int = 0) -> dict[str, Any]:
        """Return a seller's /status: the books, which both share."""
        document: dict[str, Any] = httpx.get(f"{self.seller_admin_urls[seller]}/status", timeout=PATIENCE_S).json()
        return document

    def wait_settled(self, child: Child, seller: int = 0) -> None:
        """Wait until nothing is owed any more."""
        wait_until(lambda: int(self.status(seller)["unsettled_atomic"]) == 0, child, "payments were not settled")

    def check_books(self, child: Child, *, signed: int) -> dict[str, int]:
        """Nothing was lost or doubled: the pool, the ledger and the chain agree. Returns the pool's counts."""
        self.wait_settled(child)
        self.shop.farebox("process", "--all")
        counts = self.counts()
        assert sum(counts[state] for state in STATES) == counts["signed"] == signed, counts
        assert (counts["claimed"], counts["sent"]) == (0, 0), counts
        assert self.shop.earned_atomic() == counts["spent"] * PRICE_ATOMIC, counts
        assert int(self.status()["earned_atomic"]) == self.shop.earned_atomic()
        rpc = self.shop.chain.rpc_url
        self.shop.farebox("selfcheck", "--rpc", rpc, "--seller", "seller-0.yaml", "--json")
        return counts


@contextmanager
def twins(folder: Path, chain: Devnet, warm: Warm, store: str) -> Iterator[Twins]:
    """Give a market of two in `folder` whose books are all in `store`; ends its processes afterwards."""
    with market(folder, chain, warm=warm) as shop:
        shop.crew.environment["FAREBOX_STORE"] = store
        urls = [f"http://127.0.0.1:{port}" for port in free_ports(6)]
        pair = Twins(shop, urls[:2], urls[2:4], urls[4:])
        seller = (folder / "seller.yaml").read_text()
        for number in BOTH:
            text = seller.replace(shop.seller_url.removeprefix("http://"), urls[number].removeprefix("http://"))
            text = text.replace("sqlite:///seller.db", store)
            (folder / f"seller-{number}.yaml").write_text(text)
            listen = pair.gateway_urls[number].removeprefix("http://")
            home = folder / f"machine-{number}"
            (folder / f"gateway-{number}.yaml").write_text(
                f"listen: {listen}\nadmin_listen: 127.0.0.1:0\nhome: {home}\nstore: {store}\n"
            )
        yield pair
