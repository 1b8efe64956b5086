"""`farebox buy` and `farebox serve` buy from the official SDK: signed ahead, paid first, no key at run time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from buyer import AsyncClient, Home, Pool
from contracts.evm.devnet import DevAccount, Devnet
from gateway.demo.ports import free_ports
from gateway.demo.processes import Crew, farebox_command
from tests.conformance.sdk_peers import PRICE_ATOMIC, facilitator_app, seller_app, serving
from tests.warm import Warm
from tests.warm_crew import WarmCrew

NAME = "sdk"
MODEL = "sdk-model"
COUNT = 6
FUNDS_ATOMIC = 1_000_000
ASKED: Any = [{"role": "user", "content": "hello"}]
TEXT = "Paid through the SDK."


class Buyer:
    """A buyer's home with authorizations bought from the SDK's seller, and what both sides know of them."""

    def __init__(self, crew: Crew, chain: Devnet, payer: DevAccount, pay_to: str, seller: Any, url: str) -> None:
        self.crew, self.chain, self.url = crew, chain, url
        self._payer, self._pay_to, self._seller = payer, pay_to, seller

    @property
    def runs(self) -> int:
        """How often the seller's handler ran."""
        runs: int = self._seller.state.runs
        return runs

    @property
    def earned_atomic(self) -> int:
        """What the seller holds on chain, which is what the payer has lost."""
        earned_atomic = self.chain.balance_of(self._pay_to)
        assert self.chain.balance_of(self._payer.address) == FUNDS_ATOMIC - earned_atomic
        return earned_atomic

    def counts(self) -> dict[str, int]:
        """Return ready, spent and unknown of the purchase."""
        pool = Pool.open(Home.open(self.crew.folder / "home"))
        try:
            counts = pool.counts(NAME)
        finally:
            pool.close()
        return {"ready": counts.ready, "spent": counts.spent, "unknown": counts.unknown}

    def farebox(self, *arguments: str) -> dict[str, Any]:
        """Run a command with --json and return its document."""
        document: dict[str, Any] = json.loads(self.crew.run(arguments[0], farebox_command(*arguments, "--json")))
        return document

    def serve(self) -> str:
        """Start the gateway and return its base URL."""
        listen, admin = (f"127.0.0.1:{port}" for port in free_ports(2))
        (self.crew.folder / "gateway.yaml").write_text(json.dumps({"listen": listen, "admin_listen": admin}))
        child = self.crew.start("serve", farebox_command("serve", "--config", "gateway.yaml"))
        self.crew.wait_ready(child, f"http://{listen}/readyz")
        return f"http://{listen}"


@pytest.fixture
def buyer(chain: Devnet, payer: DevAccount, pay_to: str, warm: Warm, tmp_path: Path) -> Iterator[Buyer]:
    with serving(facilitator_app(chain, chain.accounts[1])) as facilitator_url:
        seller = seller_app(chain, pay_to, facilitator_url, model=MODEL)
        environment = {"FAREBOX_HOME": str(tmp_path / "home")}
        with serving(seller) as url, WarmCrew(tmp_path, environment, warm) as crew:
            key_file = tmp_path / "buyer.key"
            key_file.write_text(payer.key.hex())
            key_file.chmod(0o600)
            buyer = Buyer(crew, chain, payer, pay_to, seller, url)
            where = ["--endpoint", url, "--model", MODEL, "--rpc", chain.rpc_url]
            limits = ["--count", str(COUNT), "--max-price", "0.001", "--signer", "keyfile:buyer.key", "--yes"]
            buyer.farebox("buy", NAME, *where, *limits)
            # No key in its place from here on: nothing that runs may need one.
            key_file.rename(tmp_path / "put-away.key")
            yield buyer


def test_buying_signs_and_pays_nothing(buyer: Buyer) -> None:
    assert buyer.counts() == {"ready": COUNT, "spent": 0, "unknown": 0}
    assert (buyer.runs, buyer.earned_atomic) == (0, 0)


async def test_a_pool_pays_the_sdks_seller_with_the_first_request(buyer: Buyer) -> None:
    pool = Pool.open(Home.open(buyer.crew.folder / "home"))
    try:
        async with AsyncClient(pool=pool, purchase=NAME) as client:
            answer = await client.post("/v1/chat/completions", json={"model": MODEL, "messages": ASKED})
    finally:
        pool.close()
    assert answer.json()["choices"][0]["message"]["content"] == TEXT
    assert answer.extensions["farebox"].receipt.success
    assert buyer.counts() == {"ready": COUNT - 1, "spent": 1, "unknown": 0}
    assert (buyer.runs, buyer.earned_atomic) == (1, PRICE_ATOMIC)


def test_the_gateway_pays_the_sdks_seller_once_a_call_streamed_or_not(buyer: Buyer) -> None:
    url = buyer.serve()
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        whole = client.chat.completions.with_raw_response.create(model=f"paid/{MODEL}", messages=ASKED)
        chunks = client.chat.completions.create(model=f"paid/{MODEL}", messages=ASKED, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert whole.parse().choices[0].message.content == streamed.strip() == TEXT
    assert "payment-response" in whole.headers
    assert buyer.counts() == {"ready": COUNT - 2, "spent": 2, "unknown": 0}
    assert (buyer.runs, buyer.earned_atomic) == (2, 2 * PRICE_ATOMIC)


def test_a_seller_that_cannot_settle_costs_one_authorization_and_no_money(buyer: Buyer) -> None:
    url = buyer.serve()
    buyer.chain.set_paused(True)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        with pytest.raises(openai.APIStatusError):
            client.chat.completions.create(model=f"paid/{MODEL}", messages=ASKED)
        # The payment was shown and may be settled later: until the chain has spoken it is neither free nor spent.
        assert buyer.counts() == {"ready": COUNT - 1, "spent": 0, "unknown": 1}
        assert buyer.earned_atomic == 0

        buyer.chain.set_paused(False)
        again = client.chat.completions.create(model=f"paid/{MODEL}", messages=ASKED)
    assert again.choices[0].message.content == TEXT
    assert buyer.counts() == {"ready": COUNT - 1, "spent": 1, "unknown": 0}
    assert buyer.earned_atomic == PRICE_ATOMIC


def test_an_answer_lost_after_the_settlement_is_found_on_the_chain(buyer: Buyer) -> None:
    pool = Pool.open(Home.open(buyer.crew.folder / "home"))
    try:
        purchase, spender = pool.purchase(NAME), pool.spender()
        claim = spender.claim(purchase, "a request", 0)
        spender.sent(claim)
        payment = claim.headers()
        spender.lost(claim, status=None, reason="the answer was lost")
        spender.close()
    finally:
        pool.close()
    answered = httpx.post(
        f"{buyer.url}/v1/chat/completions",
        json={"model": MODEL, "messages": ASKED},
        headers=payment,
        timeout=60,
        trust_env=False,
    )
    assert answered.status_code == 200, answered.text
    assert buyer.counts() == {"ready": COUNT - 1, "spent": 0, "unknown": 1}

    buyer.farebox("process", NAME)

    assert buyer.counts() == {"ready": COUNT - 1, "spent": 1, "unknown": 0}
    assert buyer.earned_atomic == PRICE_ATOMIC


def test_probe_tells_the_sdks_offer_and_pay_takes_it_once(buyer: Buyer) -> None:
    probed = buyer.farebox("probe", f"{buyer.url}/paid")
    offers = json.dumps(probed)
    assert buyer.chain.token in offers
    assert buyer.earned_atomic == 0

    wallet = ["--signer", "keyfile:put-away.key", "--rpc", buyer.chain.rpc_url]
    paid = buyer.farebox("pay", f"{buyer.url}/paid", "--max-price", "0.001", *wallet)
    assert paid["ok"] is True
    assert (buyer.runs, buyer.earned_atomic) == (1, PRICE_ATOMIC)
    assert buyer.counts()["ready"] == COUNT
