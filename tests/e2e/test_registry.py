"""Goal: a buyer who knows nobody finds a seller in the registry, checks it, buys, is served, and rates it with proof;
and a seller whose 402 pays somebody else is refused with the reason.

Method: a chain with registries, one real seller registered by `farebox register`, one impostor, and real commands only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.address import address_text, parse_address
from contracts.evm.devnet import Devnet
from contracts.evm.registries import place_registries
from contracts.networks import parse_network
from contracts.offers import Offer
from gateway.demo.processes import Crew
from registry.registration import Seller, inline_uri, registration_file
from tests.buyer.parts import Shop, serving, token_of
from tests.e2e.parts import MODEL, PRICE, PURCHASE, Market, address_of
from tests.registry.ledger_of_agents import Registrar
from tests.registry.shelf import agent
from tests.warm import Warm
from tests.warm_crew import WarmCrew

SELLER, IMPOSTOR = 2, 3


class Street(Market):
    """A market whose chain has registries; commands reach loopback, as on a chain of one's own."""

    def __init__(self, crew: Crew, warm: Warm, chain: Devnet, payee: str) -> None:
        super().__init__(crew, chain, "before", payee=payee)
        self._warm = warm

    def ask(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Run a farebox command and return its exit code and its document."""
        variables = {**self.crew.environment, "FAREBOX_RPC": self.chain.rpc_url}
        done = self._warm.run([*arguments, "--json"], self.crew.folder, environment=variables)
        assert done.out, done.err
        return done.code, done.document

    def done(self, *arguments: str) -> dict[str, Any]:
        code, document = self.ask(*arguments)
        assert code == 0, document
        return document

    def buy(self, *where: str) -> tuple[int, dict[str, Any]]:  # type: ignore[override]
        limits = ("--count", "3", "--max-price", PRICE, "--signer", "keyfile:buyer.key", "--yes", "--allow-private")
        return self.ask("buy", PURCHASE, *where, *limits)


@pytest.fixture
def street(own_chain: Devnet, warm: Warm, tmp_path: Path) -> Iterator[Street]:
    place_registries(own_chain)
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    with WarmCrew(tmp_path, {"FAREBOX_HOME": str(home)}, warm) as crew:
        street = Street(crew, warm, own_chain, own_chain.accounts[SELLER].address)
        (tmp_path / "owner.key").touch(mode=0o600)
        (tmp_path / "owner.key").write_text(own_chain.accounts[SELLER].key.hex())
        own_chain.rpc("anvil_setBalance", address_of(street.wallet_key), hex(10**18))
        yield street


@pytest.fixture
def impostor(street: Street) -> Iterator[int]:
    """Register an agent whose endpoint asks to be paid to an address the registry does not name."""
    chain = street.chain
    thief = parse_address(address_of(b"\x07" * 32))
    offer = Offer("exact", parse_network(chain.network), token_of(chain), 1000, thief, 60)
    with serving(Shop([offer])) as url:
        registrar = Registrar(chain)
        number = registrar.register(IMPOSTOR, "")
        wallet = parse_address(chain.accounts[IMPOSTOR].address)
        card = Seller(offer.network, (), url, wallet, (MODEL,), "demo-model, cheap demo-model")
        registrar.set_uri(IMPOSTOR, number, inline_uri(registration_file(card, [agent(number)])))
        yield number


def test_a_stranger_is_found_checked_bought_from_and_rated_and_an_impostor_is_refused(
    street: Street, impostor: int
) -> None:
    street.start_model_server()
    street.start_seller()
    owner = ("--signer", "keyfile:owner.key", "--description", f"serves {MODEL}", "--inline", "--yes")
    registered = street.done("register", "ensure", *owner)
    honest = registered["agent"]

    synced = street.done("discover", "sync", "--chain", street.chain.network, "--allow-private")
    assert (synced["agents"], synced["files"]["read"], synced["surveyed"]) == (2, 2, 2)

    results = street.done("discover", "search", MODEL)["results"]
    assert [result["agent"] for result in results] == [honest, str(agent(impostor))]
    assert [(result["state"], result["verdict"]) for result in results] == [
        ("payable", "unproven"),
        ("payable", "blocked"),
    ]
    assert results[0]["price_atomic"] == "1000"

    code, refused = street.ask("discover", "verify", str(agent(impostor)), "--allow-private")
    assert (code, refused["chain_read"]) == (3, "live")
    code, refused = street.buy("--agent", str(agent(impostor)), "--model", MODEL)
    assert (code, refused["error"]["code"]) == (4, "terms_not_allowed")
    assert "payee" in refused["error"]["message"]
    assert street.chain.accounts[IMPOSTOR].address in refused["error"]["message"]
    assert address_of(b"\x07" * 32) in refused["error"]["message"]

    code, bought = street.buy("--from", MODEL)
    assert (code, bought["seller"]["agent"], bought["model"]) == (0, honest, MODEL)
    assert bought["pay_to"] == street.payee
    steps = {step["name"]: step["result"] for step in bought["seller"]["steps"]}
    assert (steps["chain"], steps["file"], steps["payee"]) == ("ok", "ok", "ok")

    street.start_gateway()
    answer = httpx.post(
        f"{street.gateway_url}/v1/chat/completions",
        json={"model": f"paid/{MODEL}", "messages": [{"role": "user", "content": "hello"}]},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    assert street.earned_atomic() == 1000

    rated = street.done("feedback", honest, "--value", "90", "--signer", "keyfile:buyer.key", "--yes")
    assert rated["ok"]
    street.done("discover", "sync", "--chain", street.chain.network, "--allow-private")
    reputation = street.done("discover", "reputation", honest, "--prove", "--allow-private")
    assert reputation["own"] == {"calls": 1, "served": 1, "latency_ms": reputation["own"]["latency_ms"], "score": 2 / 3}
    (stars,) = reputation["tags"]
    assert (stars["tag"], stars["raw"], stars["filtered"], stars["paid"]) == ("starred", 1, 1, 1)
    assert stars["mean"] == pytest.approx(90)


def test_more_is_not_signed_once_the_agent_belongs_to_somebody_else(street: Street) -> None:
    street.start_model_server()
    street.start_seller()
    registered = street.done("register", "ensure", "--signer", "keyfile:owner.key", "--inline", "--yes")
    street.done("discover", "sync", "--chain", street.chain.network, "--allow-private")
    assert street.buy("--agent", registered["agent"])[0] == 0
    assert street.ask("refill", PURCHASE, "--count", "1")[0] == 0
    Registrar(street.chain).transfer(SELLER, IMPOSTOR, int(registered["agent"].rpartition("/")[2]))
    code, refused = street.ask("refill", PURCHASE, "--count", "1")
    assert (code, refused["error"]["code"]) == (4, "terms_not_allowed")
    assert address_text(parse_address(street.payee)) in refused["error"]["message"]
    assert street.ask("remove", PURCHASE, "--now")[0] == 0
    code, bought = street.buy("--endpoint", street.seller_url, "--model", MODEL)
    assert (code, "seller" in bought) == (0, False)
    assert street.ask("refill", PURCHASE, "--count", "1")[0] == 0, "a purchase of the endpoint is of no agent"
