"""Real processes for end-to-end tests: model server, `farebox sell`, `farebox buy`, `farebox serve`, on one chain.

Every wait is bounded; every process is ended with the context; when a test fails, pytest prints the logs' ends.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from coincurve import PrivateKey

from buyer.home import Home
from buyer.pool import Pool
from contracts.address import address_text
from contracts.evm.devnet import Devnet
from contracts.keccak import keccak
from gateway.demo.models import ModelForSale
from gateway.demo.ports import free_ports
from gateway.demo.processes import Child, Crew, farebox_command, wait_until
from gateway.demo.shop import seller_yaml
from tests.patience import PATIENCE_S
from tests.warm import Warm
from tests.warm_crew import WarmCrew

PRICE = "0.001"
PRICE_ATOMIC = 1000
MODEL = "demo-model"
PURCHASE = "demo"
WALLET_ATOMIC = 10_000_000


def run_demo(*arguments: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
    """Run `farebox demo --json …` as a user would, and return its one document. Fails unless it exits with 0."""
    done = subprocess.run(
        farebox_command("demo", "--json", *arguments),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def address_of(key: bytes) -> str:
    """Return the checksummed address of a 32-byte key."""
    return address_text(keccak(PrivateKey(key).public_key.format(compressed=False)[1:])[12:])


@dataclass
class Market:
    """One seller, one buyer with a fresh wallet, and the chain between them; nothing runs until it is started."""

    crew: Crew
    chain: Devnet
    settle: str
    wallet_key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    payee: str = field(default_factory=lambda: address_of(secrets.token_bytes(32)))

    def __post_init__(self) -> None:
        ports = free_ports(5)
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        self.model_port, self.model_url = ports[0], urls[0]
        self.seller_url, self.seller_admin_url, self.gateway_url, self.gateway_admin_url = urls[1:]
        self.chain.mint(address_of(self.wallet_key), WALLET_ATOMIC)
        self._write_key("buyer.key", self.wallet_key)
        self._write_key("settler.key", self.chain.accounts[1].key)
        for_sale = ModelForSale(self.model_url, MODEL, "stand-in")
        text = seller_yaml(
            for_sale,
            PRICE,
            listen=self.seller_url.removeprefix("http://"),
            network=self.chain.network,
            rpc=self.chain.rpc_url,
            token=self.chain.token,
            pay_to=self.payee,
        )
        (self.crew.folder / "seller.yaml").write_text(text.replace("settle: auto", f"settle: {self.settle}"))
        listen, admin = (url.removeprefix("http://") for url in (self.gateway_url, self.gateway_admin_url))
        (self.crew.folder / "gateway.yaml").write_text(f"listen: {listen}\nadmin_listen: {admin}\n")

    def start_model_server(self) -> Child:
        """Start the stand-in."""
        command = [sys.executable, "-m", "gateway.demo.model_server", "--port", str(self.model_port)]
        return self._started("model-server", command, f"{self.model_url}/healthz")

    def start_seller(self) -> Child:
        """Start `farebox sell`; also after a kill, on the same store."""
        admin = self.seller_admin_url.removeprefix("http://")
        command = farebox_command("sell", "--config", "seller.yaml", "--admin-listen", admin)
        return self._started("sell", command, f"{self.seller_admin_url}/readyz")

    def start_gateway(self) -> Child:
        """Start `farebox serve`; also after a kill, on the same pool."""
        command = farebox_command("serve", "--config", "gateway.yaml")
        return self._started("serve", command, f"{self.gateway_url}/healthz")

    def buy(self, count: int) -> None:
        """Sign `count` payments with `farebox buy`."""
        where = ["--endpoint", self.seller_url, "--model", MODEL, "--rpc", self.chain.rpc_url]
        limits = ["--count", str(count), "--max-price", PRICE, "--signer", "keyfile:buyer.key", "--yes"]
        self.farebox("buy", PURCHASE, *where, *limits, "--json")

    def claim_payment_header(self) -> str:
        """Take one authorization out of the pool as if it were sent, and return its PAYMENT-SIGNATURE header."""
        pool = Pool.open(Home.open(self.crew.folder / "home"))
        try:
            spender = pool.spender()
            claim = spender.claim(pool.purchase(PURCHASE), "taken by hand", int(time.time()))
            spender.sent(claim)
            spender.close()
            return claim.headers()["PAYMENT-SIGNATURE"]
        finally:
            pool.close()

    def farebox(self, *arguments: str) -> str:
        """Run one farebox command to its end and return its stdout."""
        return self.crew.run(f"farebox {arguments[0]}", farebox_command(*arguments))

    def counts(self) -> dict[str, Any]:
        """Return what `farebox status --json` says of the purchase."""
        document: dict[str, Any] = json.loads(self.farebox("status", PURCHASE, "--json"))
        return document

    def seller_status(self) -> dict[str, Any]:
        """Return the seller's /status."""
        document: dict[str, Any] = httpx.get(f"{self.seller_admin_url}/status", timeout=PATIENCE_S).json()
        return document

    def runs_of(self, prompt: str) -> int:
        """Return how often the model ran for `prompt`."""
        by_prompt: dict[str, int] = httpx.get(f"{self.model_url}/test/calls", timeout=PATIENCE_S).json()["by_prompt"]
        return by_prompt.get(prompt, 0)

    def earned_atomic(self) -> int:
        """Return the payee's balance on chain, which began at nothing."""
        return self.chain.balance_of(self.payee)

    def wait_settled(self, seller: Child) -> None:
        """Wait until the seller is owed nothing."""
        wait_until(lambda: int(self.seller_status()["unsettled_atomic"]) == 0, seller, "payments were not settled")

    def _started(self, name: str, command: list[str], ready_url: str) -> Child:
        child = self.crew.start(name, command)
        self.crew.wait_ready(child, ready_url)
        return child

    def _write_key(self, name: str, key: bytes) -> None:
        file = self.crew.folder / name
        file.touch(mode=0o600)
        file.write_text(key.hex() + "\n")


@contextmanager
def market(folder: Path, chain: Devnet, *, settle: str = "auto", warm: Warm | None = None) -> Iterator[Market]:
    """Give a market in `folder`, and end all its processes afterwards; the logs stay in the folder.

    With `warm` its commands are forked from that process, else they start cold.
    """
    home = folder / "home"
    home.mkdir(mode=0o700)
    environment = {"FAREBOX_HOME": str(home)}
    with WarmCrew(folder, environment, warm) if warm else Crew(folder, environment) as crew:
        try:
            yield Market(crew, chain, settle)
        except BaseException:
            for log in sorted((folder / "logs").glob("*.log")):
                sys.stderr.write(f"--- {log}\n{log.read_text(errors='replace')[-4000:]}\n")
            raise
