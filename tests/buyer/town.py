"""A seller, a wallet and a home for tests of the commands; `town` is a fixture, which `conftest` passes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from buyer.cli import commands
from buyer.home import Home
from buyer.pool import Counts, Pool
from contracts.address import parse_address
from contracts.evm.devnet import Devnet
from tests.buyer.parts import Shop, offer_of, serving, token_of

OK, FAILED, USAGE, REFUSED, OVER_CAP, UNREACHABLE, UNKNOWN = range(7)


@dataclass
class Town:
    """A seller that settles on a chain, a funded wallet, and a home."""

    chain: Devnet
    shop: Shop
    url: str
    key_file: Path
    home: Home

    def run(self, *words: str, input_text: str | None = None) -> tuple[int, Any, str]:
        """Run a command with --json and return exit code, document and stderr."""
        result = CliRunner().invoke(commands, [*words, "--json"], input=input_text)
        return result.exit_code, json.loads(result.stdout) if result.stdout.strip() else None, result.stderr

    @property
    def wallet(self) -> list[str]:
        return ["--signer", f"keyfile:{self.key_file}", "--rpc", self.chain.rpc_url]

    def buy(self, *words: str, name: str = "p", count: int = 5) -> tuple[int, Any, str]:
        purchase = ["--endpoint", self.url, "--model", "m", "--count", str(count)]
        return self.run("buy", name, *purchase, *self.wallet, *(words or ("--max-price", "0.001", "--yes")))

    def counts(self, name: str = "p") -> Counts:
        with Pool.open(self.home) as pool:
            return pool.counts(name)

    def spend(self, count: int, ending: str = "served") -> None:
        with Pool.open(self.home) as pool:
            spender = pool.spender()
            for _ in range(count):
                claim = spender.claim(pool.purchase("p"), f"r{len(pool.receipts())}", int(time.time()))
                spender.sent(claim)
                if ending == "served":
                    spender.served(claim, status=200, receipt=None, latency_ms=1)
                else:
                    spender.lost(claim, status=None, reason="timeout")
            spender.close()


@pytest.fixture
def town(chain: Devnet, home: Home, tmp_path: Path) -> Iterator[Town]:
    wallet = chain.accounts[0]
    chain.mint(wallet.address, 10**6)
    key_file = tmp_path / "wallet.key"
    key_file.write_text(wallet.key.hex())
    key_file.chmod(0o600)
    offer = offer_of(asset=token_of(chain), pay_to=parse_address(chain.accounts[1].address))
    shop = Shop([offer], chain=chain)
    with serving(shop) as url:
        yield Town(chain, shop, url, key_file, home)
