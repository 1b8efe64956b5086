"""`farebox facilitator`: other people's payments, settled once, whoever asks how often."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.errors import ConfigInvalid
from contracts.evm.devnet import Devnet
from contracts.networks import Network
from contracts.offers import Offer
from seller.config import AssetSettings
from seller.facilitate.app import facilitator_app
from seller.facilitate.config import FacilitatorConfig, read_facilitator_config
from seller.facilitate.service import Facilitator
from tests.paying import authorize, payment_document
from tests.seller.shop import BUYER, GAS, OTHER, PRICE_ATOMIC, SELLER, open_shop, write_key
from tests.seller.test_streams import listening

EXAMPLE = Path(__file__).parents[2] / "config" / "facilitator.example.yaml"


class Counter:
    """A facilitator, and the seller whose payments it is given."""

    def __init__(self, chain: Devnet, folder: Path, **changed: Any) -> None:
        self.chain = chain
        given: dict[str, Any] = {
            "network": chain.network,
            "rpc": [chain.rpc_url],
            "asset": AssetSettings(address=chain.token, name="USDC", version="2", decimals=6, symbol="USDC"),
            "key_file": str(write_key(folder, chain.accounts[GAS].key)),
            "minimum": "0.0005",
            "store": f"sqlite:///{folder}/facilitator.db",
        }
        self.config = FacilitatorConfig.model_validate(given | changed)
        self.service = Facilitator(self.config)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=facilitator_app(self.service)), base_url="http://facilitator", timeout=60
        )

    def offer(self, amount_atomic: int = PRICE_ATOMIC) -> Offer:
        from contracts.address import parse_address

        payee = parse_address(self.chain.accounts[SELLER].address)
        return Offer("exact", Network(self.chain.chain_id), self.config.token, amount_atomic, payee, 300)

    def request(self, account: int = BUYER, offer: Offer | None = None, **changed: Any) -> dict[str, Any]:
        """Return the body of /verify and /settle for a new payment, or for the one that `changed` describes."""
        terms = offer or self.offer()
        document = payment_document(*authorize(self.chain.accounts[account].key, terms, **changed), terms)
        return {"x402Version": 2, "paymentPayload": document, "paymentRequirements": document["accepted"]}

    async def ask(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self.client.post("/" + what, json=body)
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document

    @property
    def earned(self) -> int:
        return self.chain.balance_of(self.chain.accounts[SELLER].address)


@asynccontextmanager
async def facilitating(chain: Devnet, folder: Path, **changed: Any) -> AsyncIterator[Counter]:
    counter = Counter(chain, folder, **changed)
    await counter.service.open()
    try:
        yield counter
    finally:
        await counter.client.aclose()
        await counter.service.close()


@pytest.fixture
async def counter(chain: Devnet, tmp_path: Path) -> AsyncIterator[Counter]:
    chain.mint(chain.accounts[BUYER].address, 1_000_000)
    async with facilitating(chain, tmp_path) as open_counter:
        yield open_counter


async def test_a_payment_is_verified_then_settled_on_chain(counter: Counter) -> None:
    body = counter.request()
    verdict = await counter.ask("verify", body)
    assert verdict == {"isValid": True, "payer": counter.chain.accounts[BUYER].address}
    assert counter.earned == 0
    settled = await counter.ask("settle", body)
    assert (settled["success"], settled["amount"], settled["network"]) == (True, "1000", counter.chain.network)
    assert counter.chain.rpc("eth_getTransactionReceipt", settled["transaction"])["status"] == "0x1"
    assert counter.earned == PRICE_ATOMIC


async def test_settling_again_and_at_once_returns_the_same_transaction(counter: Counter) -> None:
    body = counter.request()
    answers = await asyncio.gather(*(counter.ask("settle", body) for _ in range(8)))
    answers.append(await counter.ask("settle", body))
    assert {answer["success"] for answer in answers} == {True}
    assert len({answer["transaction"] for answer in answers}) == 1
    assert counter.earned == PRICE_ATOMIC
    assert (await counter.ask("verify", body))["invalidReason"] == "invalid_exact_evm_nonce_already_used"


async def test_a_restart_remembers_what_was_settled(chain: Devnet, tmp_path: Path) -> None:
    chain.mint(chain.accounts[BUYER].address, 1_000_000)
    async with facilitating(chain, tmp_path) as first:
        body = first.request()
        settled = await first.ask("settle", body)
    async with facilitating(chain, tmp_path) as second:
        assert await second.ask("settle", body) == settled
        assert second.earned == PRICE_ATOMIC


async def test_more_settlements_than_are_waited_for_at_once_are_sent_away_and_told_to_come_again(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seller.facilitate.service.FACILITATE_AT_ONCE_MAX", 0)
    body = counter.request()
    answer = await counter.client.post("/settle", json=body)
    assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (503, True)
    assert counter.earned == 0
    monkeypatch.undo()
    assert (await counter.ask("settle", body))["success"]


async def test_a_settlement_that_is_not_mined_in_time_is_pending_with_its_hash_and_then_settled(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seller.facilitate.service.FACILITATE_WAIT_S", 2.0)
    body = counter.request()
    counter.chain.rpc("evm_setAutomine", False)
    try:
        # A busy machine may not even have sent it in time, says so, and is asked again.
        while (answer := await counter.client.post("/settle", json=body)).status_code == 503:
            pass
        pending = answer.json()
        assert (pending["success"], pending["errorReason"]) == (False, "settlement_pending")
        counter.chain.mine()
    finally:
        counter.chain.rpc("evm_setAutomine", True)
    monkeypatch.undo()
    settled = await counter.ask("settle", body)
    assert (settled["success"], settled["transaction"]) == (True, pending["transaction"])
    assert counter.earned == PRICE_ATOMIC


async def test_a_payment_with_the_same_nonce_and_another_payee_is_not_the_settled_one(counter: Counter) -> None:
    nonce = bytes([3]) * 32
    assert (await counter.ask("settle", counter.request(nonce=nonce)))["success"]
    other = await counter.ask("settle", counter.request(nonce=nonce, offer=counter.offer(2 * PRICE_ATOMIC)))
    assert (other["success"], other["errorReason"]) == (False, "invalid_exact_evm_nonce_already_used")


async def test_who_submits_between_verification_and_settlement_has_paid(counter: Counter) -> None:
    from contracts.evm.token import call_object
    from contracts.schemes.exact_eip3009 import decode_payload, transfer_call

    body = counter.request()
    assert (await counter.ask("verify", body))["isValid"]
    import msgspec

    data = transfer_call(*decode_payload(msgspec.json.encode(body["paymentPayload"]["payload"])))
    token: Any = bytes.fromhex(counter.chain.token[2:])
    sender = {"from": counter.chain.accounts[OTHER].address}
    theirs = counter.chain.rpc("eth_sendTransaction", sender | call_object(token, data))
    counter.chain.mine()
    settled = await counter.ask("settle", body)
    assert (settled["success"], settled["transaction"]) == (True, theirs)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda body: body | {"x402Version": 1}, "invalid_x402_version"),
        (lambda body: _with(body, scheme="escrow"), "unsupported_scheme"),
        (lambda body: _with(body, network="eip155:1"), "invalid_network"),
        (lambda body: _with(body, asset="0x" + "11" * 20), "invalid_payment_requirements"),
        (lambda body: _with(body, amount="499"), "invalid_payment_requirements"),
        (lambda body: _with(body, amount="1001"), "invalid_payment_requirements"),
        (lambda body: _with(body, extra={"name": "USDC", "version": "1"}), "invalid_payment_requirements"),
        (lambda body: _signed(body, "0x" + "11" * 65), "invalid_exact_evm_payload_signature"),
        (lambda body: _signed(body, "zz"), "invalid_payload"),
    ],
)
async def test_what_is_not_acceptable_is_told_with_a_fixed_word(counter: Counter, change: Any, reason: str) -> None:
    body = change(counter.request())
    verdict, settled = await counter.ask("verify", body), await counter.ask("settle", body)
    assert (verdict["isValid"], verdict["invalidReason"]) == (False, reason)
    assert (settled["success"], settled["errorReason"], settled["transaction"]) == (False, reason, "")
    assert counter.service._ledger.sums().payments == {}


def _with(body: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return body | {"paymentRequirements": body["paymentRequirements"] | changed}


def _signed(body: dict[str, Any], signature: str) -> dict[str, Any]:
    payment = body["paymentPayload"]
    return body | {"paymentPayload": payment | {"payload": payment["payload"] | {"signature": signature}}}


async def test_a_payer_without_money_costs_no_gas(counter: Counter) -> None:
    gas = counter.chain.rpc("eth_getTransactionCount", counter.chain.accounts[GAS].address, "latest")
    settled = await counter.ask("settle", counter.request(OTHER))
    assert (settled["success"], settled["errorReason"]) == (False, "insufficient_funds")
    assert counter.chain.rpc("eth_getTransactionCount", counter.chain.accounts[GAS].address, "latest") == gas


async def test_a_payer_whose_settlements_fail_has_a_budget_of_failures(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contracts.errors import SettlementFailed

    async def fails(*_: object) -> str:
        raise SettlementFailed("it reverted")

    monkeypatch.setattr("seller.facilitate.service.FACILITATE_FAILURES_MAX", 2)
    monkeypatch.setattr(counter.service._counter, "settle_now", fails)
    messages = [(await counter.ask("settle", counter.request()))["errorMessage"] for _ in range(3)]
    assert ["try again later" in message for message in messages] == [False, False, True]


async def test_money_goes_only_to_whom_the_settings_allow(chain: Devnet, tmp_path: Path) -> None:
    chain.mint(chain.accounts[BUYER].address, 1_000_000)
    async with facilitating(chain, tmp_path, pay_to=[chain.accounts[OTHER].address]) as counter:
        verdict = await counter.ask("verify", counter.request())
        assert verdict["invalidReason"] == "invalid_payment_requirements"


async def test_a_silent_chain_is_503_and_never_a_verdict(chain: Devnet, tmp_path: Path) -> None:
    async with facilitating(chain, tmp_path, rpc=["http://127.0.0.1:9"]) as counter:
        for what in ("verify", "settle"):
            answer = await counter.client.post("/" + what, json=counter.request())
            assert answer.status_code == 503
            assert "retry-after" in answer.headers
        assert (await counter.client.get("/readyz")).status_code == 503
        assert (await counter.client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("content", "status"), [(b"", 400), (b"[]", 400), (b"{" * 5000, 400), (b'{"a":"' + b"x" * 70_000 + b'"}', 413)]
)
async def test_what_is_no_request_is_400(counter: Counter, content: bytes, status: int) -> None:
    assert (await counter.client.post("/settle", content=content)).status_code == status


async def test_our_own_seller_settles_through_it(chain: Devnet, tmp_path: Path) -> None:
    async with facilitating(chain, tmp_path) as counter, listening(facilitator_app(counter.service)) as url:
        settler = {"kind": "facilitator", "url": ["http://127.0.0.1:9", url]}
        for settle in ("before", "auto", "async"):
            folder = tmp_path / settle
            folder.mkdir()
            before = counter.earned
            async with open_shop(chain, folder, settler=settler, settle=settle) as shop:
                assert (await shop.buy()).status_code == 200
                await shop.settled()
                assert counter.earned == before + PRICE_ATOMIC


def test_the_example_is_a_whole_configuration() -> None:
    config = read_facilitator_config(EXAMPLE)
    assert set(FacilitatorConfig.model_fields) == config.model_fields_set
    assert (config.minimum_atomic, config.payees) == (500, frozenset())


@pytest.mark.parametrize(
    ("find", "replace", "says"),
    [
        ('minimum: "0.0005"', 'minimum: "0"', "more than zero"),
        ('minimum: "0.0005"', 'minimum: "0,5"', "decimal point"),
        ("pay_to: []", 'pay_to: ["0x12"]', "pay_to"),
        ("listen: 127.0.0.1:8405", 'listen: "8405"', "host:port"),
        ("key_file:", "keyfile:", "did you mean"),
    ],
)
def test_a_trap_in_the_settings_is_refused(tmp_path: Path, find: str, replace: str, says: str) -> None:
    path = tmp_path / "facilitator.yaml"
    text = EXAMPLE.read_text()
    assert find in text
    path.write_text(text.replace(find, replace))
    with pytest.raises(ConfigInvalid, match=says):
        read_facilitator_config(path)
