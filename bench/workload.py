"""The work that is measured: payments of one price, by several payers, as a buyer's gateway sends them."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from buyer.chain import ChainFacts
from buyer.payment import payment_headers
from buyer.pool import Pool
from buyer.presign import Draft, Plan, carry_out
from buyer.purchase import Purchase, Terms, terms_from_wire
from buyer.signers import Signer
from contracts.address import address_text, parse_address
from contracts.evm.token import Head
from contracts.headers import PAYMENT_SIGNATURE
from contracts.networks import default_asset, parse_network
from contracts.offers import EIP3009, Offer, requirements
from contracts.schemes.authorization import Authorization
from contracts.schemes.rails import rail_of
from contracts.signature import SigningKey
from contracts.wire import ResourceInfo

__all__ = [
    "BODY",
    "LIFE_S",
    "MODEL",
    "PATH",
    "PRICE_ATOMIC",
    "SignedPayment",
    "an_offer",
    "keys",
    "presign",
    "sign_payments",
    "terms_of",
    "typed_data",
]

PRICE_ATOMIC = 1000
# Long enough that no payment of a run expires inside it.
LIFE_S = 86_400
PATH = "/v1/chat/completions"
MODEL = "m"
BODY = b'{"model":"m","messages":[{"role":"user","content":"Say hello."}]}'

_PAYEE = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"


@dataclass(frozen=True, slots=True)
class SignedPayment:
    """One payment: what was signed, the signature, and the `PAYMENT-SIGNATURE` header that carries both."""

    authorization: Authorization
    signature: bytes
    header: str


def an_offer(method: str = EIP3009) -> Offer:
    """Return the terms of one call, in a token whose domain everybody knows."""
    network = parse_network("base-sepolia")
    asset = default_asset(network)
    assert asset is not None
    return Offer("exact", network, asset, PRICE_ATOMIC, parse_address(_PAYEE), max_timeout_s=300, method=method)


def keys(count: int) -> list[SigningKey]:
    """Return keys of as many payers, the same in every run."""
    return [SigningKey(number.to_bytes(32, "big")) for number in range(1, count + 1)]


def sign_payments(offer: Offer, payers: list[SigningKey], count: int) -> list[SignedPayment]:
    """Return `count` new payments of `offer`, by each payer in turn."""
    terms = terms_of(offer)
    valid_before_s = int(time.time()) + LIFE_S
    payments = []
    for number in range(count):
        key = payers[number % len(payers)]
        authorization = Authorization(
            payer=key.address,
            payee=offer.pay_to,
            value_atomic=offer.amount_atomic,
            valid_after_s=0,
            valid_before_s=valid_before_s,
            nonce=secrets.token_bytes(32),
        )
        signature = key.sign(rail_of(offer).digest(authorization, offer))
        header = payment_headers(terms, authorization, signature)[PAYMENT_SIGNATURE]
        payments.append(SignedPayment(authorization, signature, header))
    return payments


def terms_of(offer: Offer) -> Terms:
    """Return the terms as a buyer pins them, with the resource a seller's 402 names."""
    resource = ResourceInfo(url=f"http://127.0.0.1:8402{PATH}", description="one call", mime_type="application/json")
    return terms_from_wire(requirements(offer), resource=resource, decimals=offer.asset.decimals)


def typed_data(authorization: Authorization, offer: Offer) -> dict[str, Any]:
    """Return the EIP-712 document that general libraries take for the same signature."""
    return {
        "types": {
            "EIP712Domain": _members("name string", "version string", "chainId uint256", "verifyingContract address"),
            "TransferWithAuthorization": _members(
                "from address", "to address", "value uint256", "validAfter uint256", "validBefore uint256",
                "nonce bytes32",
            ),
        },
        "primaryType": "TransferWithAuthorization",
        "domain": {
            "name": offer.asset.name,
            "version": offer.asset.version,
            "chainId": offer.network.chain_id,
            "verifyingContract": offer.asset.address_text,
        },
        "message": {
            "from": address_text(authorization.payer),
            "to": address_text(authorization.payee),
            "value": authorization.value_atomic,
            "validAfter": authorization.valid_after_s,
            "validBefore": authorization.valid_before_s,
            "nonce": authorization.nonce,
        },
    }  # fmt: skip


def _members(*members: str) -> list[dict[str, str]]:
    return [dict(zip(("name", "type"), member.split(), strict=True)) for member in members]


def presign(
    pool: Pool, offer: Offer, signer: Signer, count: int, *, endpoint: str = "http://127.0.0.1:8402"
) -> Purchase:
    """Pre-sign `count` authorizations into `pool` and return their purchase; what the chain would say is stated."""
    now_s = int(time.time())
    existing = next(iter(pool.purchases()), None)
    draft = Draft(
        name="bench",
        kind="pool",
        endpoint=endpoint,
        model=MODEL,
        payer=signer.address,
        terms=terms_of(offer),
        price_cap_atomic=offer.amount_atomic,
        ttl_s=LIFE_S,
        refill=None,
        rpc_urls=("http://127.0.0.1:8545",),
        existing=existing,
    )
    facts = ChainFacts(balance_atomic=10**30, head=Head(number=1, timestamp_s=now_s))
    plan = Plan(draft, count, resumed=(), facts=facts, live_atomic=0, valid_before_s=now_s + LIFE_S)
    return carry_out(pool, plan, signer)
