"""A market on this machine: a chain, five sellers of two models, fast and slow, cheap and dear, and gateways to buy at.

The models are stand-ins whose speed is given; everything that is paid is real: `farebox sell` with its ledger and
settlement, orders as `farebox buy` places them, `farebox serve`, and the token on the chain.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import yaml

from buyer.home import Home
from buyer.key_signer import KeySigner
from buyer.orders import BuyOrder, RefillOrder, plan_buy
from buyer.pool import Pool
from buyer.presign import carry_out
from contracts.address import address_text
from contracts.evm.devnet import Devnet
from gateway.demo.models import ModelForSale
from gateway.demo.ports import free_ports
from gateway.demo.processes import Child, Crew, farebox_command, wait_until
from gateway.demo.shop import seller_yaml

__all__ = ["QUALITY", "SELLERS", "SLOTS", "LiveGateway", "LiveMarket", "LiveSeller", "live_market"]

QUALITY = {"small": 0.6, "large": 0.95}
SLOTS = 16
_WALLET_ATOMIC = 1_000_000_000
_SETTLED_TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True)
class LiveSeller:
    """A seller: what it sells at what price (whole tokens), and how much work a second it does in each slot."""

    name: str
    model: str
    price: str
    pace: float


SELLERS = (
    LiveSeller("small-economy", "small", "0.0002", 1.0),
    LiveSeller("small-standard", "small", "0.0006", 1.6),
    LiveSeller("large-economy", "large", "0.0015", 0.36),
    LiveSeller("large-standard", "large", "0.004", 0.6),
    LiveSeller("large-fast", "large", "0.009", 1.4),
)


@dataclass(frozen=True, slots=True)
class LiveGateway:
    """A `farebox serve`: where it answers, and the home that its pool is in."""

    home: Path
    url: str
    admin_url: str
    process: Child


@dataclass
class LiveMarket:
    """What runs. `origins` and `payees` are by seller."""

    crew: Crew
    chain: Devnet
    wallet: KeySigner
    origins: dict[str, str] = field(default_factory=dict)
    payees: dict[str, str] = field(default_factory=dict)
    processes: dict[str, Child] = field(default_factory=dict)
    _admins: dict[str, str] = field(default_factory=dict)

    def open(self, seller: LiveSeller, settler_key: bytes) -> None:
        """Start a seller and the model behind it."""
        model_port, port, admin_port = free_ports(3)
        model_url, url, admin = (f"http://127.0.0.1:{each}" for each in (model_port, port, admin_port))
        arguments = ["--port", str(model_port), "--pace", str(seller.pace), "--slots", str(SLOTS)]
        worker = ["-m", "gateway.demo.worker_server", "--model", f"{seller.model}={QUALITY[seller.model]}", *arguments]
        child = self.crew.start(f"model-{seller.name}", [farebox_command()[0], *worker])
        self.crew.wait_ready(child, f"{model_url}/healthz")
        payee = address_text(KeySigner(secrets.token_bytes(32)).address)
        folder = self.crew.folder / seller.name
        folder.mkdir()
        _write_key(folder / "settler.key", settler_key)
        text = seller_yaml(
            ModelForSale(model_url, seller.model, "stand-in"),
            seller.price,
            listen=f"127.0.0.1:{port}",
            network=self.chain.network,
            rpc=self.chain.rpc_url,
            token=self.chain.token,
            pay_to=payee,
        )
        text = text.replace("settler.key", str(folder / "settler.key")).replace("settle: auto", "settle: async")
        text = text.replace("seller.db", str(folder / "seller.db")).replace('per_payer: "1.00"', 'per_payer: "100.00"')
        (folder / "seller.yaml").write_text(text)
        command = farebox_command("sell", "--config", str(folder / "seller.yaml"), "--admin-listen", admin[7:])
        self.processes[seller.name] = self.crew.start(f"sell-{seller.name}", command)
        self.crew.wait_ready(self.processes[seller.name], f"{admin}/readyz")
        self.origins[seller.name], self._admins[seller.name] = url, admin
        self.payees[seller.name] = payee

    def buy(self, home: Path, sellers: Sequence[LiveSeller], count: int) -> None:
        """Sign `count` payments to each seller, into the pool of a home."""
        home.mkdir(mode=0o700, exist_ok=True)
        with Pool.open(Home.open(home)) as pool:
            for seller in sellers:
                order = BuyOrder(
                    name=seller.name,
                    endpoint=self.origins[seller.name],
                    model=seller.model,
                    count=count,
                    budget=None,
                    max_price=seller.price,
                    accept_quote=False,
                    ttl_s=None,
                    refill=RefillOrder(),
                    networks=(),
                    assets=(),
                    rpc_urls=(self.chain.rpc_url,),
                )
                plan, _ = asyncio.run(plan_buy(pool, order, self.wallet, int(time.time())))
                carry_out(pool, plan, self.wallet)

    def start_gateway(self, name: str, home: Path, settings: dict[str, Any]) -> LiveGateway:
        """Start a gateway on the pool of a home; it is there once `wait_ready` has returned."""
        url, admin_url = (f"http://127.0.0.1:{port}" for port in free_ports(2))
        listen = {"listen": url[7:], "admin_listen": admin_url[7:], "home": str(home)}
        path = self.crew.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**listen, **settings}))
        child = self.crew.start(name, farebox_command("serve", "--config", str(path)))
        return LiveGateway(home, url, admin_url, child)

    def wait_ready(self, gateway: LiveGateway) -> None:
        """Return when a gateway answers. Raises `DemoFailed` with its last words when it does not."""
        self.crew.wait_ready(gateway.process, f"{gateway.admin_url}/readyz")

    def earned_atomic(self) -> int:
        """Return what the sellers have on the chain, once nothing is owed to them any more."""
        for name, child in self.processes.items():
            wait_until(
                lambda name=name: self._owed_atomic(name) == 0,  # type: ignore[misc]
                child,
                "payments were not settled",
                timeout_s=_SETTLED_TIMEOUT_S,
            )
        return sum(self.chain.balance_of(payee) for payee in self.payees.values())

    def _owed_atomic(self, name: str) -> int:
        status: dict[str, Any] = httpx.get(f"{self._admins[name]}/status", timeout=10).json()
        return int(status["unsettled_atomic"])


@contextmanager
def live_market(sellers: Sequence[LiveSeller]) -> Iterator[LiveMarket]:
    """Give a market, and a wallet that can pay it; all of it ends with the block."""
    with TemporaryDirectory(prefix="farebox-live-") as name, Devnet() as chain:
        wallet = KeySigner(secrets.token_bytes(32))
        chain.mint(address_text(wallet.address), _WALLET_ATOMIC)
        with Crew(Path(name), {}) as crew:
            market = LiveMarket(crew, chain, wallet)
            for seller, account in zip(sellers, chain.accounts[1:], strict=False):
                market.open(seller, account.key)
            yield market


def _write_key(path: Path, key: bytes) -> None:
    path.touch(mode=0o600)
    path.write_text(key.hex() + "\n")
