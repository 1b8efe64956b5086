"""The demo's story: chain, model, seller, purchase, gateway, five paid calls, books.

Every part is the product's own command, run as a process of its own; what the reader sees is what they would see.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from contracts.address import parse_address
from contracts.evm.devnet import Devnet
from contracts.keccak import keccak
from contracts.money import Asset, format_amount
from contracts.tls import tls_context
from contracts.typed_data import word_of_address
from gateway.demo.books import Books
from gateway.demo.calls import CallResult, chat_calls, embedding_calls
from gateway.demo.models import ModelForSale, model_for_sale
from gateway.demo.ports import free_ports
from gateway.demo.processes import Child, Crew, farebox_command, wait_until
from gateway.demo.proxy import litellm_program, start_litellm
from gateway.demo.shop import seller_yaml
from gateway.demo.teller import Teller

__all__ = ["DemoOptions", "Stage", "perform"]

PURCHASE = "demo"
_PRICE = "0.001"
_COUNT = 20
_WALLET_ATOMIC = 100_000_000
_SETTLED_TIMEOUT_S = 60.0
_TRANSFER_TOPIC = "0x" + keccak(b"Transfer(address,address,uint256)").hex()


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the user asked for. `model` is None for the stand-in (or an upstream's first), `minilm`, or a model id."""

    upstream: str | None = None
    model: str | None = None
    litellm: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that runs at the end of the story: where to call it, and how its books stand."""

    crew: Crew
    client_url: str
    client_key: str
    client_model: str
    embeds: bool
    books: Books
    addresses: dict[str, str]

    def document(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return self.books.document(self.addresses)


@contextmanager
def perform(options: DemoOptions, folder: Path, teller: Teller) -> Iterator[Stage]:
    """Play the whole story in `folder`, yield its end with every part still running, then end every part.

    Raises `DemoFailed`, `ToolMissing` or `WeightsMissing`.
    """
    # Looked for first: nobody should wait half a minute to hear that a part is missing.
    proxy = litellm_program() if options.litellm else None
    home = folder / "home"
    home.mkdir(mode=0o700)
    with Crew(folder, {"FAREBOX_HOME": str(home)}) as crew:
        for_sale = model_for_sale(crew, options.upstream, options.model)
        with Devnet(log_file=folder / "anvil.log") as chain:
            yield _Story(crew, chain, teller, for_sale).play(proxy)


class _Story:
    def __init__(self, crew: Crew, chain: Devnet, teller: Teller, for_sale: ModelForSale) -> None:
        self.crew, self.chain, self.teller, self.for_sale = crew, chain, teller, for_sale
        self.buyer, self.settler, self.payee = chain.accounts[:3]
        self.asset = Asset(parse_address(chain.token), "USDC", "2", 6, "USDC")
        seller, seller_admin, gateway, gateway_admin, litellm = free_ports(5)
        self.seller_url = f"http://127.0.0.1:{seller}"
        self.seller_admin_url = f"http://127.0.0.1:{seller_admin}"
        self.gateway_url = f"http://127.0.0.1:{gateway}"
        self.gateway_admin_url = f"http://127.0.0.1:{gateway_admin}"
        self.litellm_port = litellm
        self.seller_before_atomic = 0

    def play(self, proxy: Path | None) -> Stage:
        self._fund()
        seller = self._open_shop()
        self._buy()
        self._serve()
        client_url, client_key = f"{self.gateway_url}/v1", "this-client-has-no-key"
        if proxy is not None:
            self.teller.step("The real LiteLLM proxy in front")
            with self.teller.waiting("LiteLLM is starting; it takes half a minute"):
                client_url, client_key = start_litellm(self.crew, proxy, self.gateway_url, self.litellm_port)
            self.teller.say(f"LiteLLM answers on {client_url} and sends paid/* to the gateway.")
        results = self._call(client_url, client_key)
        books = self._settle_and_count(seller, results)
        self._tell(books)
        return Stage(
            self.crew, client_url, client_key, self._client_model, self.for_sale.embeds, books, self._addresses()
        )

    @property
    def _client_model(self) -> str:
        return f"paid/{self.for_sale.model}"

    def _fund(self) -> None:
        self.teller.step("A chain, a token, a wallet")
        self.chain.mint(self.buyer.address, _WALLET_ATOMIC)
        self.seller_before_atomic = self.chain.balance_of(self.payee.address)
        self._write_key("buyer.key", self.buyer.key)
        self._write_key("settler.key", self.settler.key)
        self.teller.say(f"anvil on {self.chain.rpc_url}, chain {self.chain.chain_id}; USDC is {self.chain.token}")
        self.teller.say(f"buyer  {self.buyer.address}  {self._money(_WALLET_ATOMIC)}")
        self.teller.say(f"seller {self.payee.address}  {self._money(self.seller_before_atomic)}")

    def _open_shop(self) -> Child:
        self.teller.step("A seller opens")
        self.teller.say(f"{self.for_sale.description}, sold for {_PRICE} USDC a call")
        config = self.crew.folder / "seller.yaml"
        config.write_text(
            seller_yaml(
                self.for_sale,
                _PRICE,
                listen=self.seller_url.removeprefix("http://"),
                network=self.chain.network,
                rpc=self.chain.rpc_url,
                token=self.chain.token,
                pay_to=self.payee.address,
            )
        )
        sell = ["sell", "--config", config.name]
        self.teller.command("farebox", *sell)
        admin_listen = self.seller_admin_url.removeprefix("http://")
        seller = self.crew.start("sell", farebox_command(*sell, "--admin-listen", admin_listen))
        with self.teller.waiting("the seller is starting"):
            self.crew.wait_ready(seller, f"{self.seller_admin_url}/readyz")
        self.teller.step("What a stranger sees")
        self._show("probe", self.seller_url, "--model", self.for_sale.model)
        return seller

    def _buy(self) -> None:
        self.teller.step("The buyer signs 20 payments, once")
        purchase = ["--endpoint", self.seller_url, "--model", self.for_sale.model]
        limits = ["--count", str(_COUNT), "--max-price", _PRICE]
        wallet = ["--signer", "keyfile:buyer.key", "--rpc", self.chain.rpc_url, "--yes"]
        self._show("buy", PURCHASE, *purchase, *limits, *wallet)
        # From here on nobody needs the wallet: the gateway starts without any way to sign.
        (self.crew.folder / "buyer.key").unlink()
        self.teller.say("The wallet's key file is deleted: nothing from here on can sign.")

    def _serve(self) -> None:
        self.teller.step("The gateway opens, without a key")
        config = self.crew.folder / "gateway.yaml"
        listen, admin = (url.removeprefix("http://") for url in (self.gateway_url, self.gateway_admin_url))
        config.write_text(f"listen: {listen}\nadmin_listen: {admin}\n")
        self.teller.command("farebox", "serve", "--config", config.name)
        gateway = self.crew.start("serve", farebox_command("serve", "--config", config.name))
        with self.teller.waiting("the gateway is starting"):
            self.crew.wait_ready(gateway, f"{self.gateway_url}/readyz")
        self.teller.say(f"An OpenAI endpoint on {self.gateway_url}/v1; anything may call {self._client_model} there.")

    def _call(self, client_url: str, client_key: str) -> list[CallResult]:
        self.teller.step("Five paid calls with the official openai client")
        self.teller.say(f'client = openai.OpenAI(base_url="{client_url}", api_key="{client_key}")')
        make = embedding_calls if self.for_sale.embeds else chat_calls
        results = []
        for result in make(client_url, client_key, self._client_model):
            self.teller.say("")
            self.teller.say(f"> {result.asked}")
            how = "streamed, " if result.streamed else ""
            self.teller.say(f"< {result.answered}  ({how}first byte after {result.first_byte_ms:.0f} ms)")
            results.append(result)
        return results

    def _settle_and_count(self, seller: Child, results: list[CallResult]) -> Books:
        self.teller.step("The seller collects on chain")

        def nothing_owed() -> bool:
            url = f"{self.seller_admin_url}/status"
            status = httpx.get(url, timeout=5.0, trust_env=False, verify=tls_context()).json()
            return int(status["unsettled_atomic"]) == 0

        with self.teller.waiting("waiting for the last settlement"):
            wait_until(nothing_owed, seller, "payments were not settled", timeout_s=_SETTLED_TIMEOUT_S)
        counts = self._counts()
        hashes = self._transactions_paying_the_seller()
        for transaction in hashes:
            self.teller.say(f"transaction {transaction}")
        streamed = [result for result in results if result.streamed] or results[-1:]
        return Books(
            calls=len(results),
            signed=counts["signed"],
            spent=counts["spent"],
            remaining=counts["remaining"],
            unknown=counts["unknown"],
            price_atomic=counts["price_atomic"],
            seller_before_atomic=self.seller_before_atomic,
            seller_after_atomic=self.chain.balance_of(self.payee.address),
            settlement_tx_hashes=hashes,
            first_byte_ms=streamed[0].first_byte_ms,
        )

    def _counts(self) -> dict[str, int]:
        status = json.loads(self.crew.run("farebox status", farebox_command("status", PURCHASE, "--json")))
        return {name: int(status[name]) for name in ("signed", "spent", "remaining", "unknown", "price_atomic")}

    def _transactions_paying_the_seller(self) -> list[str]:
        topics = [_TRANSFER_TOPIC, "0x" + word_of_address(parse_address(self.buyer.address)).hex()]
        topics.append("0x" + word_of_address(parse_address(self.payee.address)).hex())
        logs = self.chain.rpc("eth_getLogs", {"address": self.chain.token, "fromBlock": "0x0", "topics": topics})
        return list(dict.fromkeys(log["transactionHash"] for log in logs))

    def _tell(self, books: Books) -> None:
        self.teller.step("The books")
        agree = "=" if books.agree else "is NOT"
        self.teller.table(
            [
                ("calls answered", str(books.calls)),
                ("authorizations signed", str(books.signed)),
                ("spent", str(books.spent)),
                ("left", str(books.remaining)),
                ("unknown", str(books.unknown)),
                ("worst-case loss, known before signing", self._money(books.worst_case_loss_atomic)),
                ("seller on chain, before", self._money(books.seller_before_atomic)),
                ("seller on chain, after", self._money(books.seller_after_atomic)),
                ("settlement transactions", str(len(books.settlement_tx_hashes))),
            ],
            amounts=True,
        )
        gained, price = self._money(books.seller_delta_atomic), self._money(books.price_atomic)
        self.teller.verdict(f"The chain says {gained} {agree} {books.spent} x {price}.", good=books.agree)

    def _show(self, *arguments: str) -> None:
        """Run a farebox command to its end and show it with what it printed."""
        self.teller.command("farebox", *arguments)
        with self.teller.waiting(f"farebox {arguments[0]}"):
            printed = self.crew.run(f"farebox {arguments[0]}", farebox_command(*arguments))
        self.teller.output(printed)

    def _money(self, amount_atomic: int) -> str:
        return format_amount(amount_atomic, self.asset)

    def _write_key(self, name: str, key: bytes) -> None:
        file = self.crew.folder / name
        file.touch(mode=0o600)
        file.write_text(key.hex() + "\n")

    def _addresses(self) -> dict[str, str]:
        return {
            "buyer": self.buyer.address,
            "pay_to": self.payee.address,
            "token": self.chain.token,
            "rpc": self.chain.rpc_url,
            "seller": self.seller_url,
            "seller_admin": self.seller_admin_url,
            "gateway": self.gateway_url,
            "gateway_admin": self.gateway_admin_url,
            "model_server": self.for_sale.upstream,
            "farebox_home": str(self.crew.folder / "home"),
        }
