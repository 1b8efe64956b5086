"""Goal: who is bought from is who the registry names, checked afresh; and each of several purchases is of another one.

Method: sellers (stand-ins) on loopback, registered on a local chain, in an index as a sync leaves it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buyer.agent_notes import agents_held, remember_agent
from buyer.discovery import Refused, Seller, Wanted, choose_seller, find_seller, paid_calls
from buyer.home import Home
from buyer.pool import Pool
from contracts.address import Address, parse_address
from contracts.errors import ChainUnavailable, NameUnknown, TermsNotAllowed, UsageError
from contracts.evm.devnet import Devnet
from contracts.evm.registries import place_registries
from contracts.networks import Network
from contracts.offers import Offer
from registry.fetch import Fetcher
from registry.gather import gather
from registry.guard import NetworkPolicy
from registry.registration import Seller as Card
from registry.registration import inline_uri, registration_file
from registry.survey import survey
from tests.buyer.parts import Shop, add_purchase, closed_port_url, serving
from tests.registry.ledger_of_agents import Registrar
from tests.registry.shelf import CHAIN_ID, USDC, add_agent, agent, shelf

NOW_S = 1_800_000_000
THIEF = Address(bytes([66]) * 20)


class Street:
    """Sellers, each registered by an account of its own; `index` is the file that commands would use."""

    def __init__(self, chain: Devnet, folder: Path, stack: contextlib.ExitStack) -> None:
        self.chain, self.folder, self.stack = chain, folder, stack
        self.registrar = Registrar(chain)
        self.shops: list[Shop] = []

    def open(self, *, price_atomic: int = 1000, pay_to: Address | None = None) -> None:
        """Open a shop whose agent has the next number."""
        number = len(self.shops)
        owner = parse_address(self.chain.accounts[number + 1].address)
        offer = Offer("exact", Network(CHAIN_ID), USDC, price_atomic, pay_to or owner, 60)
        self.shops.append(Shop([offer]))
        url = self.stack.enter_context(serving(self.shops[-1]))
        assert self.registrar.register(number + 1, "") == number
        card = Card(offer.network, (), url, owner, ("m",), f"coder {number}")
        uri = inline_uri(registration_file(card, [agent(number)]))
        self.registrar.set_uri(number + 1, number, uri)
        with shelf(self.folder) as index:
            add_agent(index, number, uri, owner=owner, wallet=owner)

    def survey(self) -> None:
        async def run() -> None:
            with shelf(self.folder) as index:
                async with Fetcher(NetworkPolicy(allow_private=True)) as fetcher:
                    await gather(index.database, fetcher, NOW_S)
                    await survey(index.database, fetcher, NOW_S)

        asyncio.run(run())

    def wanted(self, **options: Any) -> Wanted:
        wanted = Wanted(
            endpoint=None,
            query=None,
            agent=None,
            model="m",
            max_price=None,
            networks=[],
            rpc_urls=[self.chain.rpc_url],
            index=self.folder / "registry.db",
            allow_private=True,
        )
        return replace(wanted, **options)


@pytest.fixture
def street(chain: Devnet, tmp_path: Path) -> Iterator[Street]:
    place_registries(chain)
    with contextlib.ExitStack() as stack:
        yield Street(chain, tmp_path, stack)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool.open(Home.open(tmp_path / "home")) as opened:
        yield opened


def test_each_purchase_for_one_query_is_of_another_seller_and_a_second_batch_of_the_same(
    street: Street, pool: Pool
) -> None:
    for price_atomic in (1000, 900):
        street.open(price_atomic=price_atomic)
    street.survey()
    for name, number in (("first", 1), ("second", 0), ("first", 1)):
        seller = choose_seller(pool, name, street.wanted(query="coder"), quiet=True)
        assert seller is not None
        assert seller.agent == agent(number)
        if name not in agents_held(pool):
            add_purchase(pool, name, offer=street.shops[number].offers[0])
            remember_agent(pool.home, name, seller.agent, None)
    with pytest.raises(NameUnknown, match="'coder' is one of another purchase already"):
        choose_seller(pool, "third", street.wanted(query="coder"), quiet=True)


def test_a_seller_whose_402_pays_somebody_else_since_the_survey_is_passed_over_with_the_reason(street: Street) -> None:
    street.open(price_atomic=900)
    street.open(price_atomic=1000)
    street.survey()
    honest = street.shops[0].offers[0]
    street.shops[0].offers = [replace(honest, pay_to=THIEF)]
    told: list[Refused | Seller] = []
    seller = find_seller(street.wanted(query="coder"), [], told.append)
    assert seller.agent == agent(1)
    assert isinstance(told[0], Refused)
    assert told[0].agent == str(agent(0))
    assert "payee" in told[0].error.message
    assert seller.refused == (told[0],)
    with pytest.raises(TermsNotAllowed, match="payee"):
        find_seller(street.wanted(agent=str(agent(0))), [], told.append)


def test_what_is_asked_between_the_check_and_the_signature_must_be_what_was_checked(street: Street) -> None:
    street.open()
    seller = find_seller(street.wanted(agent="31337:0"), [], lambda _: None)
    offer = street.shops[0].offers[0]
    seller.check(offer)
    for changed in (replace(offer, pay_to=THIEF), replace(offer, network=Network(8453))):
        with pytest.raises(TermsNotAllowed, match="a moment ago"):
            seller.check(changed)


def test_an_agent_whose_wallet_changed_since_the_sync_is_judged_by_the_chain_of_now(street: Street) -> None:
    street.open()
    street.survey()
    street.registrar.set_wallet(1, 5, 0)
    street.registrar.transfer(1, 4, 0)
    with pytest.raises(TermsNotAllowed, match="payee"):
        find_seller(street.wanted(agent="31337:0"), [], lambda _: None)


def test_two_endpoints_of_the_chain_that_disagree_buy_nothing(street: Street) -> None:
    street.open()
    with pytest.raises(ChainUnavailable):
        find_seller(replace(street.wanted(agent="31337:0"), rpc_urls=[closed_port_url()]), [], lambda _: None)
    with Devnet() as other:
        place_registries(other)
        lying = [street.chain.rpc_url, other.rpc_url]
        with pytest.raises(ChainUnavailable, match="disagree"):
            find_seller(replace(street.wanted(agent="31337:0"), rpc_urls=lying), [], lambda _: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of them"),
        ({"agent": "31337:0", "query": "coder"}, "give one of them"),
        ({"agent": "nobody"}, "--agent"),
    ],
)
def test_a_choice_that_is_none_is_named(street: Street, pool: Pool, options: dict[str, str], message: str) -> None:
    street.open()
    with pytest.raises(UsageError, match=message):
        choose_seller(pool, "p", street.wanted(**options), quiet=True)


def test_an_endpoint_needs_a_model_and_no_registry(street: Street, pool: Pool) -> None:
    assert choose_seller(pool, "p", street.wanted(endpoint="https://a.example"), quiet=True) is None
    with pytest.raises(UsageError, match="--model"):
        choose_seller(pool, "p", replace(street.wanted(endpoint="https://a.example"), model=None), quiet=True)


def test_a_pool_without_receipts_tells_of_no_paid_calls(pool: Pool) -> None:
    assert paid_calls(pool) == []
