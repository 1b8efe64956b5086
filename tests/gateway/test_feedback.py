"""`farebox feedback`: a rating is posted once, by who paid, with a payment that others can check."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from buyer.key_signer import KeySigner
from buyer.receipts import Receipt
from contracts.address import Address
from contracts.errors import NameUnknown, UsageError
from contracts.evm.devnet import Devnet
from contracts.evm.registries import place_registries
from contracts.keccak import keccak
from contracts.networks import Network
from gateway.rating import Posted, post_feedback
from gateway.sending import Sending
from registry.agent_id import AgentId
from registry.chains import chain_of
from registry.feedback import PaidCallFacts, Verdict, feedback_file, feedback_uri, parse_verdict
from registry.index import open_index
from registry.limits import URL_CHARS_MAX
from tests.registry.ledger_of_agents import REPUTATION, Registrar, data_of

OWNER, WALLET, BUYER, OTHER = 1, 2, 3, 4
ENDPOINT = "https://shop.example/v1"


class Market:
    """An agent with a wallet of its own, and a buyer who paid it."""

    def __init__(self, chain: Devnet, folder: Path) -> None:
        place_registries(chain)
        self.registrar, self.folder = Registrar(chain), folder
        self.agent = self.registrar.register(OWNER, "https://shop.example/card.json")
        self.registrar.set_wallet(OWNER, WALLET, self.agent)
        chain.mint(self.registrar.account(BUYER), 10**6)

    def pay(self, payee: int = WALLET, amount: int = 1000) -> str:
        data = data_of("transfer(address,uint256)", self.registrar.account(payee), amount)
        devnet = self.registrar.devnet
        transaction: str = devnet.send(self.registrar.account(BUYER), devnet.token, data)["transactionHash"]
        return transaction

    def receipt(self, transaction: str | None, payee: int = WALLET, at_s: int = 1_790_000_000) -> Receipt:
        return Receipt(
            receipt_id="r1",
            purchase="p",
            model="m",
            endpoint=ENDPOINT,
            state="spent",
            price_atomic=1000,
            charged_atomic=None,
            charge_proven=False,
            network="eip155:31337",
            asset=self.registrar.devnet.token,
            payer=self.registrar.account(BUYER),
            payee=self.registrar.account(payee),
            nonce="0x" + 64 * "0",
            request_key="k",
            fingerprint=None,
            route=None,
            at_s=at_s,
            valid_before_s=at_s + 600,
            status=200,
            latency_ms=5,
            transaction=transaction,
            reason=None,
        )

    def rate(self, *receipts: Receipt, signer: int = BUYER, number: int | None = None, dry_run: bool = False) -> Posted:
        devnet = self.registrar.devnet
        wallet = KeySigner(devnet.accounts[signer].key)
        with open_index(self.folder / "index.db") as index:
            return asyncio.run(
                post_feedback(
                    index,
                    chain_of(Network(31337)),
                    self.agent if number is None else number,
                    Verdict(9977, 2, note="quick"),
                    receipts=receipts,
                    sending=Sending(Network(31337), wallet, dry_run, lambda question: None),
                    rpc_urls=[devnet.rpc_url],
                )
            )

    def posted(self) -> list[Any]:
        logs = self.registrar.devnet.rpc("eth_getLogs", {"address": REPUTATION, "fromBlock": "0x0"})
        return [log for log in logs if log["topics"][0].startswith("0x6a4a6174")]


@pytest.fixture
def market(chain: Devnet, tmp_path: Path) -> Market:
    return Market(chain, tmp_path)


def test_a_rating_carries_the_payment_that_proves_it(market: Market) -> None:
    paid = market.pay()
    posted = market.rate(market.receipt(paid))
    (log,) = market.posted()
    file = json.loads(posted.file)
    assert file["proofOfPayment"] == {
        "fromAddress": market.registrar.account(BUYER),
        "toAddress": market.registrar.account(WALLET),
        "chainId": "31337",
        "txHash": paid,
    }
    assert (file["value"], file["valueDecimals"], file["tag1"]) == (9977, 2, "starred")
    assert keccak(posted.file.encode()).hex() in log["data"], "the hash of the file is on chain"
    with open_index(market.folder / "index.db") as index:
        assert index.chain(31337) is not None


def test_the_same_call_is_not_rated_twice_with_the_same(market: Market) -> None:
    receipt = market.receipt(market.pay())
    assert market.rate(receipt).changed is True
    assert market.rate(receipt).changed is False
    assert len(market.posted()) == 1


def test_a_dry_run_shows_the_cost_and_posts_nothing(market: Market) -> None:
    posted = market.rate(market.receipt(market.pay()), dry_run=True)
    assert posted.sent.gas_limit > 100_000
    assert market.posted() == []


def test_the_newest_payment_to_owner_or_wallet_is_the_proof(market: Market) -> None:
    old, new, stray = market.pay(), market.pay(OWNER), market.pay(OTHER)
    posted = market.rate(
        market.receipt(old, at_s=1_790_000_000),
        market.receipt(new, OWNER, at_s=1_790_000_100),
        market.receipt(stray, OTHER, at_s=1_790_000_200),
    )
    assert posted.payment == new


def test_nothing_is_posted_without_a_paid_call(market: Market) -> None:
    with pytest.raises(NameUnknown, match="no paid call"):
        market.rate()
    with pytest.raises(NameUnknown, match="no paid call"):
        market.rate(market.receipt(market.pay(OTHER), OTHER))
    with pytest.raises(NameUnknown, match="no transaction") as unsettled:
        market.rate(market.receipt(None))
    assert "farebox process" in unsettled.value.advice
    with pytest.raises(NameUnknown, match="no such agent"):
        market.rate(market.receipt(market.pay()), number=77)
    assert market.posted() == []


def test_only_the_wallet_that_paid_may_rate(market: Market) -> None:
    with pytest.raises(UsageError, match="did not pay"):
        market.rate(market.receipt(market.pay()), signer=OTHER)


def test_a_transaction_that_shows_no_such_payment_is_no_proof(market: Market) -> None:
    elsewhere = market.pay(OTHER)
    for transaction in (elsewhere, "0x" + 64 * "7"):
        with pytest.raises(UsageError, match="does not show a payment"):
            market.rate(market.receipt(transaction))
    assert market.posted() == []


def test_a_note_never_makes_a_file_that_clients_would_cut(market: Market) -> None:
    agent = AgentId(31337, chain_of(Network(31337)).identity, 1)
    paid = PaidCallFacts(Address(bytes(20)), Address(bytes(20)), "0x" + 64 * "0", ENDPOINT, 0)
    assert len(feedback_uri(feedback_file(agent, Verdict(1, 0, note="n" * 280), paid))) <= URL_CHARS_MAX
    with pytest.raises(UsageError, match="--note"):
        feedback_uri(feedback_file(agent, Verdict(1, 0, note="\U0001f600" * 280), paid))


@pytest.mark.parametrize(
    ("text", "value", "decimals"), [("95", 95, 0), ("99.77", 9977, 2), ("0", 0, 0), ("1e2", 100, 0)]
)
def test_a_value_is_read_exactly(text: str, value: int, decimals: int) -> None:
    verdict = parse_verdict(text)
    assert (verdict.value, verdict.decimals) == (value, decimals)


@pytest.mark.parametrize("text", ["", "five", "NaN", "inf", "101", "-1", "1e-19", "1e40"])
def test_a_value_that_the_registry_would_not_take_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--value"):
        parse_verdict(text)


def test_other_tags_have_other_scales(market: Market) -> None:
    assert parse_verdict("-12.5", tag1="tradingYield").value == -125
    with pytest.raises(UsageError, match="--tag"):
        parse_verdict("1", tag1="x" * 200)
    assert parse_verdict(f"-{10**38}", tag1="tradingYield").value == -(10**38)
    with pytest.raises(UsageError, match="larger than the registry takes"):
        parse_verdict(str(10**38 + 1), tag1="tradingYield")
