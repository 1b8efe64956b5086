"""Signatures, payers, domains and numbers at the edges: each is refused for what it is, or paid for exactly once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contracts.address import ZERO
from contracts.evm.devnet import Devnet
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization
from contracts.schemes.exact_eip3009 import transfer_digest
from contracts.signature import SigningKey
from contracts.typed_data import Domain
from tests.attacks.parts import attacked
from tests.paying import authorize, encode, payment_document
from tests.seller.shop import BODY, BUYER, CHAT, OTHER, Shop, error_of

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
ERC6492_MAGIC = b"\x64\x92" * 16


def high_s(signature: bytes) -> bytes:
    s = ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes((55 - signature[64],))


def compact(signature: bytes) -> bytes:
    """EIP-2098: the parity in the highest bit of s."""
    s = int.from_bytes(signature[32:64], "big") | ((signature[64] - 27) << 255)
    return signature[:32] + s.to_bytes(32, "big")


SIGNATURES: dict[str, Callable[[bytes], bytes]] = {
    "high s": high_s,
    "v 29": lambda signature: signature[:64] + b"\x1d",
    "v 2": lambda signature: signature[:64] + b"\x02",
    "v of a chain id": lambda signature: signature[:64] + b"\x25",
    "the other v": lambda signature: signature[:64] + bytes((55 - signature[64],)),
    "r is nought": lambda signature: bytes(32) + signature[32:],
    "s is nought": lambda signature: signature[:32] + bytes(32) + signature[64:],
    "r above the order": lambda signature: b"\xff" * 32 + signature[32:],
    "compact (EIP-2098)": compact,
    "empty": lambda signature: b"",
    "66 bytes": lambda signature: signature + b"\x00",
    "the longest": lambda signature: signature * 63,
    "wrapped for an undeployed wallet (ERC-6492)": lambda signature: bytes(96) + signature + bytes(31) + ERC6492_MAGIC,
}


async def pay(shop: Shop, document: dict[str, Any]) -> Any:
    return await shop.client.post(CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": encode(document)})


def offer_of(shop: Shop) -> Offer:
    return shop.seller.book.routes[0].quote_for(None).offer


@pytest.mark.parametrize("name", SIGNATURES)
async def test_a_signature_no_token_takes_is_refused(chain: Devnet, tmp_path: Path, name: str) -> None:
    """1.4 high s; v 29, r 0, 64 bytes, empty, very long; ERC-6492."""
    async with attacked(chain, tmp_path) as (shop, _):
        authorization, signature = authorize(chain.accounts[BUYER].key, offer_of(shop))
        document = payment_document(authorization, SIGNATURES[name](signature), offer_of(shop))
        answer = await pay(shop, document)
        code = "factory_not_allowed" if "ERC-6492" in name else "invalid_signature"
        assert (answer.status_code, error_of(answer)["code"]) == (402, code)
        assert shop.app.runs == 0
        # Garbage takes no key: the payer's own payment with this nonce is still good.
        assert (await pay(shop, payment_document(authorization, signature, offer_of(shop)))).status_code == 200


async def test_a_signature_longer_than_any_is_400(chain: Devnet, tmp_path: Path) -> None:
    """1.4 very long."""
    async with attacked(chain, tmp_path) as (shop, _):
        authorization, signature = authorize(chain.accounts[BUYER].key, offer_of(shop))
        document = payment_document(authorization, signature * 70, offer_of(shop))
        assert (await pay(shop, document)).status_code == 400


async def test_v_0_and_1_pay_and_settle(chain: Devnet, tmp_path: Path) -> None:
    """1.4 v 0/1: normalised before the key and before the chain."""
    async with attacked(chain, tmp_path) as (shop, _):
        authorization, signature = authorize(chain.accounts[BUYER].key, offer_of(shop))
        short = signature[:64] + bytes((signature[64] - 27,))
        assert (await pay(shop, payment_document(authorization, short, offer_of(shop)))).status_code == 200
        await pay(shop, payment_document(authorization, signature, offer_of(shop)))
        assert shop.app.runs == 1


async def test_nobody_pays_for_the_zero_address(chain: Devnet, tmp_path: Path) -> None:
    """1.4 zero address: what recovers to nothing is nobody's signature."""
    async with attacked(chain, tmp_path) as (shop, _):
        authorization, signature = authorize(chain.accounts[BUYER].key, offer_of(shop))
        forged = payment_document(msgspec.structs.replace(authorization, payer=ZERO), signature, offer_of(shop))
        answer = await pay(shop, forged)
        assert (answer.status_code, error_of(answer)["code"]) == (402, "invalid_signature")


@pytest.mark.parametrize("code", ["0xef0100" + "11" * 20, "0x6000"], ids=["EIP-7702", "ERC-1271"])
async def test_a_payer_with_code_is_refused_before_any_work(chain: Devnet, tmp_path: Path, code: str) -> None:
    """1.4 EIP-7702, ERC-1271: the token would ask the code, which may say anything, later something else."""
    async with attacked(chain, tmp_path) as (shop, _):
        chain.rpc("anvil_setCode", chain.accounts[BUYER].address, code)
        answer = await shop.buy()
        assert (answer.status_code, error_of(answer)["code"]) == (402, "contract_payer")
        assert shop.app.runs == 0


async def test_a_known_payer_who_becomes_a_contract_gets_nothing_on_credit(chain: Devnet, tmp_path: Path) -> None:
    """1.4 EIP-7702: what is served on credit before the code is seen is bounded by the facts' age and the caps."""
    async with attacked(chain, tmp_path, settle="before") as (shop, _):
        await shop.trust()
        chain.rpc("anvil_setCode", chain.accounts[BUYER].address, "0xef0100" + "11" * 20)
        answer = await shop.buy()
        assert answer.status_code == 402
        assert shop.app.runs == 1


DOMAINS: dict[str, Callable[[Domain], Domain]] = {
    "another chain": lambda domain: replace(domain, chain_id=1),
    "another name": lambda domain: replace(domain, name="USD Coin"),
    "another version": lambda domain: replace(domain, version="1"),
    "another contract": lambda domain: replace(domain, verifying_contract=ZERO),
}


@pytest.mark.parametrize("name", DOMAINS)
async def test_a_signature_for_another_domain_is_refused(chain: Devnet, tmp_path: Path, name: str) -> None:
    """1.4 chain id, domain name, version, contract."""
    async with attacked(chain, tmp_path) as (shop, _):
        authorization, _ = authorize(chain.accounts[BUYER].key, offer_of(shop))
        signature = SigningKey(chain.accounts[BUYER].key).sign(
            transfer_digest(authorization, DOMAINS[name](offer_of(shop).domain))
        )
        answer = await pay(shop, payment_document(authorization, signature, offer_of(shop)))
        assert (answer.status_code, error_of(answer)["code"]) == (402, "invalid_signature")


NUMBERS: list[Any] = [
    str(2**256),
    str(2**256 + 1000),
    "-1000",
    1000,
    1000.0,
    "1e3",
    "0x3e8",
    "1000.0",
    " 1000",
    "1000 ",
    "+1000",
    "01000",
    "1_000",
    "\uff11\uff10\uff10\uff10",
    "\u0661\u0660\u0660\u0660",
    "9" * 5000,
    "",
    None,
    True,
    ["1000"],
    "NaN",
    "Infinity",
]


async def test_a_number_in_any_but_one_spelling_is_400(chain: Devnet, tmp_path: Path) -> None:
    """1.4 overflow, negative, float, exponent, other digits, 5,000 digits: in each of the three numbers."""
    async with attacked(chain, tmp_path) as (shop, _):
        document = payment_document(*authorize(chain.accounts[BUYER].key, offer_of(shop)), offer_of(shop))
        for member in ("value", "validAfter", "validBefore"):
            for number in NUMBERS:
                changed = json.loads(json.dumps(document))
                changed["payload"]["authorization"][member] = number
                answer = await pay(shop, changed)
                assert (answer.status_code, error_of(answer)["code"]) == (400, "malformed"), (member, number)
        assert shop.app.runs == 0


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"valid_before_s": 0}, "payment_expired"),
        ({"valid_before_s": -1}, "payment_expired"),
        ({"valid_before_s": 20}, "payment_expired"),
        ({"valid_after_s": 3600, "valid_before_s": 7200}, "payment_not_yet_valid"),
        ({"valid_after_s": 3600, "valid_before_s": 1800}, "payment_not_yet_valid"),
    ],
)
async def test_a_window_that_is_not_open_now_is_refused(
    chain: Devnet, tmp_path: Path, changed: dict[str, Any], code: str
) -> None:
    """1.4 validity window; times are relative to now."""
    async with attacked(chain, tmp_path) as (shop, _):
        now_s = int(time.time())
        answer = await shop.buy(shop.payment(**{name: now_s + value for name, value in changed.items()}))
        assert (answer.status_code, error_of(answer)["code"]) == (402, code)
        assert shop.app.runs == 0


async def test_an_authorization_for_ever_is_paid_once(chain: Devnet, tmp_path: Path) -> None:
    """1.4 validity window: the longest there is settles like any other, and does not overflow anything."""
    async with attacked(chain, tmp_path) as (shop, _):
        header = shop.payment(valid_before_s=2**256 - 1)
        assert (await shop.buy(header)).status_code == 200
        await shop.buy(header)
        assert shop.app.runs == 1


async def test_a_permit2_payload_is_no_payment_here(chain: Devnet, tmp_path: Path) -> None:
    """1.4 Permit2: not offered, so a payload of it is refused before its signature is looked at."""
    async with attacked(chain, tmp_path) as (shop, _):
        authorization, signature = authorize(chain.accounts[BUYER].key, offer_of(shop))
        document = payment_document(authorization, signature, offer_of(shop))
        document["payload"] = {"signature": "0x" + signature.hex(), "permit2Authorization": {"nonce": "1"}}
        assert (await pay(shop, document)).status_code == 400
        document = payment_document(authorization, signature, offer_of(shop))
        document["accepted"]["extra"]["assetTransferMethod"] = "permit2"
        answer = await pay(shop, document)
        assert (answer.status_code, error_of(answer)["code"]) == (402, "no_matching_offer")


async def test_a_stranger_cannot_burn_the_nonce_of_somebody_else(chain: Devnet, tmp_path: Path) -> None:
    """Claims come after the signature check: a key taken by garbage would lock the payer out."""
    async with attacked(chain, tmp_path) as (shop, _):
        authorization, signature = authorize(chain.accounts[BUYER].key, offer_of(shop))
        stolen: Authorization = authorization
        _, foreign = authorize(chain.accounts[OTHER].key, offer_of(shop), nonce=authorization.nonce)
        answer = await pay(shop, payment_document(stolen, foreign, offer_of(shop)))
        assert error_of(answer)["code"] == "invalid_signature"
        assert (await pay(shop, payment_document(authorization, signature, offer_of(shop)))).status_code == 200
