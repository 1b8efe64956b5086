"""A town of real processes that can be killed and started again: gateway, seller, settlement worker, model server.

The gas key is with `farebox settle` alone, the seller serves with `--no-settle`: three processes on two stores, and any
of them may die at any moment.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from coincurve import PrivateKey

from buyer.home import STORE_VARIABLE
from contracts.address import address_text
from contracts.crash import VARIABLE
from contracts.evm.devnet import Devnet
from contracts.keccak import keccak
from gateway.demo.models import ModelForSale
from gateway.demo.ports import free_ports
from gateway.demo.shop import seller_yaml
from tests.patience import PATIENCE_S
from tests.warm import Started, Warm

__all__ = ["MODEL", "PRICE_ATOMIC", "PURCHASE", "Town", "town"]

PRICE = "0.001"
PRICE_ATOMIC = 1000
MODEL = "demo-model"
PURCHASE = "demo"
WALLET_ATOMIC = 100_000_000
# A look takes a few milliseconds of CPU, of the test and of who is asked.
_POLL_S = 0.02


@dataclass
class Town:
    """Everything between one buyer and one seller. `running` holds what was started and not killed."""

    folder: Path
    chain: Devnet
    warm: Warm
    settle: str = "auto"
    # What the seller believes to be its chain; a test may put something false in front of it.
    rpc_url: str = ""
    exposure: str = "1.00"
    # Whether the seller settles by itself, without a settlement worker.
    seller_settles: bool = False
    # A PostgreSQL database for pool and ledger; without it each has a file of its own.
    store: str = ""
    # Variables of every process, besides its home.
    environment: dict[str, str] = field(default_factory=dict)
    # How wrong the clock of a part is, in seconds; "farebox" stands for the commands that run to their end.
    clocks: dict[str, float] = field(default_factory=dict)
    running: dict[str, Started] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.wallet_key, payee_key = secrets.token_bytes(32), secrets.token_bytes(32)
        self.wallet, self.payee = _address_of(self.wallet_key), _address_of(payee_key)
        ports = free_ports(6)
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        self.model_url, self.seller_url, self.seller_admin_url = urls[:3]
        self.gateway_url, self.gateway_admin_url, self.settle_admin_url = urls[3:]
        self.home = self.folder / "home"
        self.home.mkdir(mode=0o700)
        self.pool_file, self.seller_file = self.home / "buyer.db", self.folder / "seller.db"
        if self.store:
            self.environment[STORE_VARIABLE] = self.store
        self.chain.mint(self.wallet, WALLET_ATOMIC)
        self._write_key("buyer.key", self.wallet_key)
        self._write_key("settler.key", self.chain.accounts[1].key)
        (self.folder / "seller.yaml").write_text(self._seller_yaml())
        listen, admin = (url.removeprefix("http://") for url in (self.gateway_url, self.gateway_admin_url))
        (self.folder / "gateway.yaml").write_text(
            f'listen: {listen}\nadmin_listen: {admin}\nrpc: ["{self.chain.rpc_url}"]\n'
        )

    def start(self, name: str, **environment: str) -> None:
        """Start one part and wait until it answers, or has ended where a step ends it; also on what a kill left."""
        words, url, program = self._parts()[name]
        environment = {"FAREBOX_HOME": str(self.home), **self.environment, **environment}
        log, clock_offset_s = self.folder / "logs" / f"{name}.log", self.clocks.get(name, 0)
        started = self.warm.start(
            words, self.folder, log, program=program, environment=environment, clock_offset_s=clock_offset_s
        )
        self.running[name] = started
        dies = VARIABLE in environment
        self.wait_for(
            lambda: (dies and self.warm.has_ended(started)) or _answers(url), started, f"{url} did not answer"
        )

    def start_all(self, count: int) -> None:
        """Start every part and buy `count` calls."""
        for name in ("model-server", *([] if self.seller_settles else ["settle"]), "sell"):
            self.start(name)
        self.buy(count)
        self.start("serve")

    def kill(self, *names: str) -> None:
        """`kill -9`, all at once; returns when they are gone."""
        victims = [self.running.pop(name) for name in names]
        for victim in victims:
            victim.kill()
        for victim in victims:
            self.warm.wait(victim)

    def wait_dead(self, name: str) -> int:
        """Wait until a part has ended by itself, and return how."""
        started = self.running.pop(name)
        deadline = time.monotonic() + PATIENCE_S
        while not self.warm.has_ended(started):
            assert time.monotonic() < deadline, f"{name} did not end:\n{_tail(started)}"
            time.sleep(_POLL_S)
        return self.warm.wait(started)

    def farebox(
        self, *words: str, expect: int | None = 0, environment: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Run one farebox command to its end; return its exit code and what it wrote."""
        variables = {"FAREBOX_HOME": str(self.home), **self.environment, **(environment or {})}
        clock_offset_s = self.clocks.get("farebox", 0)
        done = self.warm.run(words, self.folder, environment=variables, clock_offset_s=clock_offset_s)
        output = done.out + done.err
        assert expect is None or done.code == expect, f"farebox {' '.join(words)}: exit code {done.code}\n{output}"
        return done.code, output

    def buy_words(self, count: int) -> list[str]:
        """Return the command that signs `count` payments."""
        where = ["--endpoint", self.seller_url, "--model", MODEL, "--rpc", self.chain.rpc_url]
        limits = ["--count", str(count), "--max-price", PRICE, "--signer", "keyfile:buyer.key", "--yes", "--json"]
        return ["buy", PURCHASE, *where, *limits]

    def buy(self, count: int) -> None:
        """Sign `count` payments."""
        self.farebox(*self.buy_words(count))

    def earned_atomic(self) -> int:
        """Return the payee's balance on chain, which began at nothing."""
        return self.chain.balance_of(self.payee)

    def runs_by_prompt(self) -> dict[str, int]:
        """Return how often the model ran, by prompt."""
        runs: dict[str, int] = httpx.get(f"{self.model_url}/test/calls", timeout=PATIENCE_S).json()["by_prompt"]
        return runs

    def release(self, hold: str) -> None:
        """Let go the calls that wait in the model server under a name."""
        httpx.post(f"{self.model_url}/test/release/{hold}", timeout=PATIENCE_S)

    def wait_for(self, condition: Callable[[], bool], started: Started, problem: str) -> None:
        """Return when `condition` holds; fails when the process ends before, or after `PATIENCE_S`."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            ended = self.warm.has_ended(started)
            assert not ended, f"{started.name} ended with {self.warm.wait(started)}:\n{_tail(started)}"
            assert time.monotonic() < deadline, f"{started.name}: {problem}:\n{_tail(started)}"
            time.sleep(_POLL_S)

    def logs(self) -> str:
        """Return the ends of all logs."""
        files = sorted((self.folder / "logs").glob("*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in files)

    def _parts(self) -> dict[str, tuple[list[str], str, str]]:
        def bare(url: str) -> str:
            return url.removeprefix("http://")

        sell = ["sell", "--config", "seller.yaml", "--admin-listen", bare(self.seller_admin_url)]
        sell += [] if self.seller_settles else ["--no-settle"]
        settle = ["settle", "--config", "seller.yaml", "--admin-listen", bare(self.settle_admin_url)]
        serve = ["serve", "--config", "gateway.yaml"]
        return {
            "model-server": (
                ["--port", self.model_url.rpartition(":")[2]], f"{self.model_url}/healthz", "model-server",
            ),
            "sell": (sell, f"{self.seller_admin_url}/healthz", "farebox"),
            "settle": (settle, f"{self.settle_admin_url}/healthz", "farebox"),
            "serve": (serve, f"{self.gateway_url}/healthz", "farebox"),
        }  # fmt: skip

    def _seller_yaml(self) -> str:
        text = seller_yaml(
            ModelForSale(self.model_url, MODEL, "stand-in"),
            PRICE,
            listen=self.seller_url.removeprefix("http://"),
            network=self.chain.network,
            rpc=self.rpc_url or self.chain.rpc_url,
            token=self.chain.token,
            pay_to=self.payee,
        )
        text = text.replace("settle: auto", f"settle: {self.settle}")
        if self.store:
            text = text.replace("sqlite:///seller.db", self.store)
        return text.replace('per_payer: "1.00"', f'per_payer: "{self.exposure}"')

    def _write_key(self, name: str, key: bytes) -> None:
        file = self.folder / name
        file.touch(mode=0o600)
        file.write_text(key.hex() + "\n")


@contextmanager
def town(
    folder: Path,
    chain: Devnet,
    warm: Warm,
    *,
    settle: str = "auto",
    rpc_url: str = "",
    exposure: str = "1.00",
    seller_settles: bool = False,
    store: str = "",
) -> Iterator[Town]:
    """Give a town in `folder`, and end all its processes afterwards; after a failure the logs are shown."""
    built = Town(folder, chain, warm, settle, rpc_url, exposure, seller_settles, store)
    try:
        yield built
    except BaseException:
        sys.stderr.write(built.logs())
        raise
    finally:
        if built.running:
            built.kill(*list(built.running))


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _tail(started: Started) -> str:
    return started.log.read_text(errors="replace")[-3000:]


def _address_of(key: bytes) -> str:
    return address_text(keccak(PrivateKey(key).public_key.format(compressed=False)[1:])[12:])
