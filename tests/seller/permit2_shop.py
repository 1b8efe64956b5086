"""A shop that is paid over Permit2, in the test dollar (6 decimals) or in Plain18 (18 decimals), for tests."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from contracts.address import address_text, parse_address
from contracts.evm.devnet import Devnet
from contracts.keccak import keccak
from contracts.networks import PERMIT2
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization
from contracts.schemes.gas_sponsoring import GAS_SPONSORING, SPONSORING_DECLARED
from contracts.signature import SigningKey
from contracts.typed_data import signing_digest, word_of_address, word_of_uint
from seller.config import AssetSettings
from tests.seller.shop import BUYER, Shop, open_shop

_PERMIT_TYPE = keccak(b"Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)")


def dollar(chain: Devnet) -> AssetSettings:
    return AssetSettings(address=chain.token, name="USDC", version="2", decimals=6, symbol="USDC", permit=True)


def plain(chain: Devnet) -> AssetSettings:
    return AssetSettings(
        address=chain.plain_token, name="Plain Dollar", version="1", decimals=18, symbol="PLAINUSD", permit=True
    )


def price_of(shop: Shop) -> int:
    return shop.seller.book.routes[0].quote_for(None).price_atomic


def offer_of(shop: Shop) -> Offer:
    return shop.seller.book.routes[0].quote_for(None).offer


@asynccontextmanager
async def permit2_shop(
    chain: Devnet, folder: Path, *, asset: AssetSettings | None = None, allowance: int | None = None, **changed: Any
) -> AsyncIterator[Shop]:
    """Open a shop whose buyer holds a thousand prices and has approved Permit2 for `allowance`, by default for all."""
    asset = asset or dollar(chain)
    given: dict[str, Any] = {"asset": asset, "methods": ["permit2"]} | changed
    async with open_shop(chain, folder, funds=0, **given) as shop:
        buyer = chain.accounts[BUYER].address
        chain.mint(buyer, 1000 * price_of(shop), asset.address)
        chain.approve_permit2(buyer, 1000 * price_of(shop) if allowance is None else allowance, asset.address)
        yield shop


def paid(shop: Shop) -> int:
    """Return how much of the shop's token its seller has."""
    return shop.chain.balance_of(shop.seller.config.pay_to, shop.seller.config.token.address_text)


def sponsored(
    chain: Devnet, offer: Offer, authorization: Authorization, account: int = BUYER, **changed: Any
) -> dict[str, Any]:
    """Return the extensions of a payment that brings its approval of Permit2 along (EIP-2612)."""
    signer = SigningKey(chain.accounts[account].key)
    owner = address_text(signer.address)
    nonces = keccak(b"nonces(address)")[:4] + word_of_address(signer.address)
    nonce = int(chain.rpc("eth_call", {"to": offer.asset.address_text, "data": "0x" + nonces.hex()}, "latest"), 16)
    info: dict[str, Any] = {
        **SPONSORING_DECLARED["info"],
        "from": owner,
        "asset": offer.asset.address_text,
        "spender": address_text(PERMIT2),
        "amount": str(authorization.value_atomic),
        "nonce": str(nonce),
        "deadline": str(int(time.time()) + 600),
    } | changed
    message = keccak(
        _PERMIT_TYPE
        + word_of_address(parse_address(info["from"]))
        + word_of_address(parse_address(info["spender"]))
        + b"".join(word_of_uint(int(info[name])) for name in ("amount", "nonce", "deadline"))
    )
    info["signature"] = "0x" + signer.sign(signing_digest(offer.domain.separator, message)).hex()
    return {GAS_SPONSORING: {"info": info}}
