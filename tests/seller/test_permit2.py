"""`exact` over Permit2: paid, batched with EIP-3009, refused by name, and never taken twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contracts.address import Address, address_text, parse_address
from contracts.errors import ConfigInvalid
from contracts.evm.devnet import Devnet
from contracts.evm.rpc import Rpc
from contracts.headers import decode_payment_required
from contracts.networks import MULTICALL3, PERMIT2, X402_EXACT_PROXY, X402_UPTO_PROXY, Network
from contracts.offers import EIP3009
from contracts.schemes.authorization import Call
from contracts.schemes.permit2 import invalidate_call, word_and_bit
from contracts.schemes.rails import rail_of
from contracts.signature import SigningKey
from seller.audit import audit_books, audit_chain
from seller.settlement.multicall import aggregate_call
from tests.contracts.wallets import send
from tests.paying import authorize, encode, payment_document, sign_payment
from tests.seller.permit2_shop import dollar, offer_of, paid, permit2_shop, plain, price_of, sponsored
from tests.seller.shop import BODY, BUYER, OTHER, SELLER, Shop, error_of, is_replayed, receipt_of

MODES = ["auto", "before", "after", "async"]


async def refused(shop: Shop, header: str, status: int, code: str) -> str:
    """Expect that a payment is refused by this name, that nothing was worked and nothing moved; return the reason."""
    runs, before = shop.app.runs, paid(shop)
    answer = await shop.buy(header)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code), answer.text
    assert shop.app.runs == runs
    assert paid(shop) == before
    assert shop.seller.ledger.sums().outstanding_atomic == 0
    return str(decode_payment_required(answer.headers["PAYMENT-REQUIRED"]).error)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("token", [dollar, plain], ids=["6 decimals", "18 decimals"])
async def test_a_permit_buys_a_call_and_its_price_moves(chain: Devnet, tmp_path: Path, token: Any, mode: str) -> None:
    async with permit2_shop(chain, tmp_path, asset=token(chain), settle=mode) as shop:
        answer = await shop.buy()
        assert answer.status_code == 200, answer.text
        assert receipt_of(answer).success
        await shop.settled()
        assert paid(shop) == price_of(shop) == 10**-3 * 10 ** token(chain).decimals


async def test_the_402_offers_both_ways_preferred_first(chain: Devnet, tmp_path: Path) -> None:
    async with permit2_shop(chain, tmp_path, methods=["permit2", "eip3009"]) as shop:
        answer = await shop.client.post("/v1/chat/completions", content=BODY)
        required = decode_payment_required(answer.headers["PAYMENT-REQUIRED"])
        assert [(each.extra or {}).get("assetTransferMethod") for each in required.accepts] == ["permit2", None]
        for offer in shop.seller.book.routes[0].quote_for(None).offers:
            assert (await shop.buy(sign_payment(chain.accounts[BUYER].key, offer))).status_code == 200
        await shop.settled()
        assert paid(shop) == 2 * price_of(shop)


async def test_payments_of_both_rails_settle_in_one_transaction(chain: Devnet, tmp_path: Path) -> None:
    async with permit2_shop(chain, tmp_path, methods=["permit2", "eip3009"], settle="async") as shop:
        offers = shop.seller.book.routes[0].quote_for(None).offers
        headers = [sign_payment(chain.accounts[BUYER].key, offers[index % 2]) for index in range(6)]
        answers = await asyncio.gather(*(shop.buy(header) for header in headers))
        assert {answer.status_code for answer in answers} == {200}
        await shop.settled()
        assert paid(shop) == 6 * price_of(shop)
        (transaction,) = set(shop.seller.ledger.transactions(10))
        assert chain.rpc("eth_getTransactionByHash", transaction)["to"].lower() == "0x" + MULTICALL3.hex()


async def test_one_permit_buys_one_of_many_calls_at_once(chain: Devnet, tmp_path: Path) -> None:
    async with permit2_shop(chain, tmp_path) as shop:
        header = shop.payment()
        answers = await asyncio.gather(*(shop.buy(header) for _ in range(8)))
        assert shop.app.runs == 1
        assert {answer.status_code for answer in answers} <= {200, 409}
        await shop.settled()
        assert paid(shop) == price_of(shop)


async def test_a_paid_permit_sent_again_gets_its_answer_also_when_the_chain_shows_it_used(
    chain: Devnet, tmp_path: Path
) -> None:
    async with permit2_shop(chain, tmp_path) as shop:
        header = shop.payment()
        first = await shop.buy(header)
        await shop.settled()
        shop.seller.verifier._payers._known.clear()
        again = await shop.buy(header)
        assert (again.status_code, again.content) == (200, first.content), again.text
        assert is_replayed(again)
        assert shop.app.runs == 1


@pytest.mark.parametrize(
    ("path", "wrong", "code", "reason"),
    [
        (("spender",), address_text(X402_UPTO_PROXY), "spender_mismatch", "invalid_permit2_spender"),
        (("permitted", "token"), address_text(PERMIT2), "token_mismatch", "permit2_token_mismatch"),
        (("permitted", "amount"), "999", "amount_mismatch", "permit2_amount_mismatch"),
        (("deadline",), "1", "payment_expired", "permit2_deadline_expired"),
        (("witness", "to"), address_text(PERMIT2), "recipient_mismatch", "invalid_permit2_recipient_mismatch"),
        (("witness", "validAfter"), "1", "invalid_signature", "invalid_permit2_signature"),
        (("nonce",), "1", "invalid_signature", "invalid_permit2_signature"),
    ],
)
async def test_what_was_not_agreed_is_refused_by_name(
    chain: Devnet, tmp_path: Path, path: tuple[str, ...], wrong: str, code: str, reason: str
) -> None:
    async with permit2_shop(chain, tmp_path) as shop:
        offer = offer_of(shop)
        document = payment_document(*authorize(chain.accounts[BUYER].key, offer), offer)
        place = document["payload"]["permit2Authorization"]
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = wrong
        assert await refused(shop, encode(document), 402, code) == reason


async def test_a_signature_in_another_domain_is_refused(chain: Devnet, tmp_path: Path) -> None:
    """Another chain's Permit2, and the token's own domain."""
    async with permit2_shop(chain, tmp_path, methods=["permit2", "eip3009"]) as shop:
        permit2, eip3009 = shop.seller.book.routes[0].quote_for(None).offers
        key = chain.accounts[BUYER].key
        authorization, _ = authorize(key, permit2)
        for signature in (
            SigningKey(key).sign(rail_of(eip3009).digest(authorization, eip3009)),
            SigningKey(key).sign(rail_of(permit2).digest(authorization, replace(permit2, network=Network(1)))),
        ):
            header = encode(payment_document(authorization, signature, permit2))
            assert await refused(shop, header, 402, "invalid_signature") == "invalid_permit2_signature"


@pytest.mark.parametrize("mode", ["auto", "after", "async"])
async def test_a_used_bit_is_refused_by_name(chain: Devnet, tmp_path: Path, mode: str) -> None:
    async with permit2_shop(chain, tmp_path, settle=mode) as shop:
        authorization, signature = authorize(chain.accounts[BUYER].key, offer_of(shop))
        word, bit = word_and_bit(authorization.nonce)
        call = invalidate_call(word, 1 << bit)
        chain.send(chain.accounts[BUYER].address, address_text(call.to), call.data)
        header = encode(payment_document(authorization, signature, offer_of(shop)))
        assert await refused(shop, header, 402, "payment_replayed") == "permit2_invalid_nonce"


@pytest.mark.parametrize("mode", MODES)
async def test_a_short_allowance_is_412_and_the_same_payment_is_good_after_an_approval(
    chain: Devnet, tmp_path: Path, mode: str
) -> None:
    async with permit2_shop(chain, tmp_path, allowance=999, settle=mode) as shop:
        header = shop.payment()
        assert await refused(shop, header, 412, "permit2_allowance_required") == "permit2_allowance_required"
        chain.approve_permit2(chain.accounts[BUYER].address, 1000)
        assert (await shop.buy(header)).status_code == 200
        await shop.settled()
        assert paid(shop) == price_of(shop)


async def test_an_allowance_that_other_payments_take_gives_no_more_credit(chain: Devnet, tmp_path: Path) -> None:
    async with permit2_shop(chain, tmp_path, allowance=2500, settle="async", settles=False) as shop:
        statuses = [(await shop.buy()).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]


@pytest.mark.parametrize("mode", ["auto", "after", "async"])
async def test_a_low_balance_is_refused_by_name(chain: Devnet, tmp_path: Path, mode: str) -> None:
    async with permit2_shop(chain, tmp_path, settle=mode) as shop:
        chain.approve_permit2(chain.accounts[OTHER].address, 10**6)
        await refused(shop, shop.payment(OTHER), 402, "insufficient_funds")


@pytest.mark.parametrize("mode", ["auto", "after"])
async def test_a_paused_token_is_refused_by_name(chain: Devnet, tmp_path: Path, mode: str) -> None:
    async with permit2_shop(chain, tmp_path, settle=mode) as shop:
        header = shop.payment()
        chain.set_paused(True)
        await refused(shop, header, 402, "token_paused")
        chain.set_paused(False)
        assert (await shop.buy(header)).status_code == 200


@pytest.mark.parametrize("who", [SELLER, BUYER], ids=["payee", "payer"])
async def test_a_blocked_party_is_refused_by_name(chain: Devnet, tmp_path: Path, who: int) -> None:
    async with permit2_shop(chain, tmp_path) as shop:
        header = shop.payment()
        chain.set_blocked(chain.accounts[who].address, True)
        await refused(shop, header, 402, "party_blocked")
        chain.set_blocked(chain.accounts[who].address, False)
        assert (await shop.buy(header)).status_code == 200


# Gas sponsoring (EIP-2612)


@pytest.mark.parametrize("token", [dollar, plain], ids=["6 decimals", "18 decimals"])
async def test_an_approval_by_signature_comes_with_the_payment(chain: Devnet, tmp_path: Path, token: Any) -> None:
    async with permit2_shop(chain, tmp_path, asset=token(chain), allowance=0) as shop:
        offer = offer_of(shop)
        unpaid = await shop.client.post("/v1/chat/completions", content=BODY)
        offered = decode_payment_required(unpaid.headers["PAYMENT-REQUIRED"]).extensions
        assert "eip2612GasSponsoring" in (offered or {})
        authorization, signature = authorize(chain.accounts[BUYER].key, offer)
        document = payment_document(authorization, signature, offer)
        document["extensions"] = sponsored(chain, offer, authorization)
        answer = await shop.buy(encode(document))
        assert answer.status_code == 200, answer.text
        await shop.settled()
        assert paid(shop) == price_of(shop)


@pytest.mark.parametrize(
    ("changed", "status", "code"),
    [
        ({"amount": "999"}, 402, "amount_mismatch"),
        ({"spender": address_text(X402_EXACT_PROXY)}, 402, "payment_invalid"),
        ({"deadline": "1"}, 402, "payment_expired"),
        ({"asset": address_text(PERMIT2)}, 402, "payment_invalid"),
        # Signed with a nonce that is not the next: Permit2 stays unapproved.
        ({"nonce": "7"}, 412, "permit2_allowance_required"),
    ],
)
async def test_an_approval_that_does_not_fit_is_refused(
    chain: Devnet, tmp_path: Path, changed: dict[str, Any], status: int, code: str
) -> None:
    async with permit2_shop(chain, tmp_path, allowance=0) as shop:
        offer = offer_of(shop)
        authorization, signature = authorize(chain.accounts[BUYER].key, offer)
        document = payment_document(authorization, signature, offer)
        document["extensions"] = sponsored(chain, offer, authorization, **changed)
        await refused(shop, encode(document), status, code)


# What the chain shows


async def test_a_permit_that_a_stranger_submits_has_paid_us(chain: Devnet, tmp_path: Path) -> None:
    async with permit2_shop(chain, tmp_path, settle="async", settles=False) as shop:
        signed = authorize(chain.accounts[BUYER].key, offer_of(shop))
        assert (await shop.buy(encode(payment_document(*signed, offer_of(shop))))).status_code == 200
        submit(shop, signed)
        await settle_with_a_worker(shop)
        assert paid(shop) == price_of(shop) == shop.seller.ledger.sums().earned_atomic


async def test_a_permit_that_its_payer_revokes_is_a_loss_with_its_reason(chain: Devnet, tmp_path: Path) -> None:
    async with permit2_shop(chain, tmp_path, settle="async", settles=False) as shop:
        authorization, signature = authorize(chain.accounts[BUYER].key, offer_of(shop))
        header = encode(payment_document(authorization, signature, offer_of(shop)))
        assert (await shop.buy(header)).status_code == 200
        word, bit = word_and_bit(authorization.nonce)
        call = invalidate_call(word, 1 << bit)
        chain.send(chain.accounts[BUYER].address, address_text(call.to), call.data)
        # A plain transfer of the price is not this payment.
        transfer = bytes.fromhex("a9059cbb") + bytes(12) + parse_address(chain.accounts[SELLER].address)
        chain.send(chain.accounts[BUYER].address, chain.token, transfer + price_of(shop).to_bytes(32, "big"))
        await settle_with_a_worker(shop)
        sums = shop.seller.ledger.sums()
        assert (sums.earned_atomic, sums.lost_atomic) == (0, price_of(shop))
        (row,) = rows(shop)
        assert row["reason"] == "payment_revoked"


async def test_one_transfer_never_counts_for_two_permits(chain: Devnet, tmp_path: Path) -> None:
    """A batch that was asked for two permits of one payer and price, of which only one was left to settle."""
    async with permit2_shop(chain, tmp_path, settle="async", settles=False) as shop:
        offer = offer_of(shop)
        signed = [authorize(chain.accounts[BUYER].key, offer) for _ in range(2)]
        for each in signed:
            assert (await shop.buy(encode(payment_document(*each, offer)))).status_code == 200
        burnt = signed[0][0]
        word, bit = word_and_bit(burnt.nonce)
        call = invalidate_call(word, 1 << bit)
        chain.send(chain.accounts[BUYER].address, address_text(call.to), call.data)
        calls = [rail_of(offer).settle_call(each[0], each[1], offer.asset.address, price_of(shop)) for each in signed]
        send(chain, chain.accounts[9].address, Call(MULTICALL3, aggregate_call(calls)))
        assert paid(shop) == price_of(shop)
        await settle_with_a_worker(shop)
        sums = shop.seller.ledger.sums()
        assert (sums.earned_atomic, sums.lost_atomic) == (price_of(shop), price_of(shop))
        assert sorted((row["nonce"] == burnt.nonce, row["money"]) for row in rows(shop)) == [
            (False, "settled"),
            (True, "lost"),
        ]


async def test_a_transfer_by_the_token_itself_never_counts_for_a_permit(chain: Devnet, tmp_path: Path) -> None:
    """A payer settles its EIP-3009 payment in a transaction that also names a permit, which it then revokes."""
    methods = ["permit2", "eip3009"]
    async with permit2_shop(chain, tmp_path, methods=methods, settle="async", settles=False) as shop:
        offers = shop.seller.book.routes[0].quote_for(None).offers
        signed = [authorize(chain.accounts[BUYER].key, offer) for offer in offers]
        for each, offer in zip(signed, offers, strict=True):
            assert (await shop.buy(encode(payment_document(*each, offer)))).status_code == 200
        (permit, _), by_token = signed
        calls = [
            rail_of(offer).settle_call(*each, offer.asset.address, price_of(shop))
            for each, offer in zip([(permit, bytes(65)), by_token], offers, strict=True)
        ]
        send(chain, chain.accounts[9].address, Call(MULTICALL3, aggregate_call(calls)))
        word, bit = word_and_bit(permit.nonce)
        send(chain, chain.accounts[BUYER].address, invalidate_call(word, 1 << bit))
        await settle_with_a_worker(shop)
        assert paid(shop) == price_of(shop)
        assert {(row["rail"], row["money"]) for row in rows(shop)} == {("eip3009", "settled"), ("permit2", "lost")}


async def test_a_nonce_of_one_rail_is_not_good_on_the_other(chain: Devnet, tmp_path: Path) -> None:
    async with permit2_shop(chain, tmp_path, methods=["permit2", "eip3009"]) as shop:
        by_permit2, by_token = shop.seller.book.routes[0].quote_for(None).offers
        key, nonce = chain.accounts[BUYER].key, (5).to_bytes(32, "big")
        assert (await shop.buy(sign_payment(key, by_permit2, nonce=nonce))).status_code == 200
        await refused_after(shop, sign_payment(key, by_token, nonce=nonce))


async def refused_after(shop: Shop, header: str) -> None:
    answer = await shop.buy(header)
    assert (answer.status_code, error_of(answer)["code"]) == (402, "payment_replayed")
    assert shop.app.runs == 1


async def test_a_seller_that_takes_only_permits_takes_no_token_authorization(chain: Devnet, tmp_path: Path) -> None:
    async with permit2_shop(chain, tmp_path) as shop:
        by_token = replace(offer_of(shop), method=EIP3009)
        await refused(shop, sign_payment(chain.accounts[BUYER].key, by_token), 402, "no_matching_offer")


def submit(shop: Shop, signed: Any) -> None:
    offer = offer_of(shop)
    authorization, signature = signed
    call = rail_of(offer).settle_call(authorization, signature, offer.asset.address, price_of(shop))
    receipt = shop.chain.send(shop.chain.accounts[9].address, address_text(call.to), call.data)
    assert receipt["status"] == "0x1"


async def settle_with_a_worker(shop: Shop) -> None:
    """Let another process's seller settle what is queued in this shop's store."""
    twin = Shop(shop.chain, shop.seller.config, settles=True)
    await twin.seller.open()
    try:
        await shop.settled()
    finally:
        await twin.close()


def rows(shop: Shop) -> list[Any]:
    database = shop.seller.ledger.database
    return database.read(lambda connection: connection.execute("SELECT * FROM payments").fetchall())


async def test_a_token_without_eip3009_is_not_sold_for_by_it(chain: Devnet, tmp_path: Path) -> None:
    async with permit2_shop(chain, tmp_path, asset=plain(chain), methods=["eip3009"]) as shop:
        with pytest.raises(ConfigInvalid, match="has no EIP-3009"):
            await shop.seller.check_token()


@pytest.mark.parametrize("contract", [PERMIT2, X402_EXACT_PROXY])
async def test_a_chain_without_the_contracts_of_permit2_is_not_sold_on(
    chain: Devnet, tmp_path: Path, contract: Address
) -> None:
    async with permit2_shop(chain, tmp_path) as shop:
        chain.rpc("anvil_setCode", address_text(contract), "0x")
        with pytest.raises(ConfigInvalid, match=f"{address_text(contract)}.* is not on eip155"):
            await shop.seller.check_token()


async def test_the_books_of_both_rails_agree_with_the_chain(chain: Devnet, tmp_path: Path) -> None:
    async with permit2_shop(chain, tmp_path, methods=["permit2", "eip3009"], settle="async") as shop:
        key, quote = chain.accounts[BUYER].key, shop.seller.book.routes[0].quote_for(None)
        for offer in quote.offers * 2:
            assert (await shop.buy(sign_payment(key, offer))).status_code == 200
        await shop.settled()
        database, asset = shop.seller.ledger.database, shop.seller.config.token
        assert [finding.differences for finding in audit_books(database, chain.chain_id, asset)] == [[], []]
        async with Rpc([chain.rpc_url]) as rpc:
            found = await audit_chain(database, chain.chain_id, asset, rpc, depth=1)
        assert found.differences == []
        assert "4 payments: 0.004 USDC settled by the books, 0.004 USDC received on chain" in found.found
