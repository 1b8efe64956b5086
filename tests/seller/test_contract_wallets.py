"""Payers that are contracts (ERC-1271), delegated accounts (EIP-7702), or not deployed yet (ERC-6492)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contracts.address import Address, address_text, parse_address
from contracts.evm.artifact import load_artifact
from contracts.evm.devnet import Devnet
from contracts.keccak import keccak
from contracts.schemes.authorization import Authorization, Call
from contracts.schemes.erc6492 import wrap
from contracts.schemes.rails import rail_of
from contracts.signature import SigningKey
from contracts.typed_data import word_of_address
from seller.bucket import Bucket
from tests.contracts.wallets import create_wallet, to_noon
from tests.paying import encode, payment_document
from tests.seller.permit2_shop import dollar, offer_of, paid, plain
from tests.seller.shop import BUYER, CHAT, OTHER, PRICE_ATOMIC, Shop, error_of, open_shop, receipt_of

CREATE2_DEPLOYER = parse_address("0x4e59b44847b379578588920cA78FbF26c0B4956C")
METHODS = ["eip3009", "permit2"]


def signed_for(
    shop: Shop, payer: Address, key: bytes, dress: Callable[[bytes], bytes] = bytes, **changed: Any
) -> tuple[Authorization, bytes]:
    """Return a payment of the shop's price by `payer`, with a signature that `key` made and `dress` changed."""
    offer = offer_of(shop)
    authorization = Authorization(
        payer=payer,
        payee=offer.pay_to,
        value_atomic=offer.amount_atomic,
        valid_after_s=0,
        valid_before_s=int(time.time()) + 3600,
        nonce=os.urandom(32),
        **changed,
    )
    return authorization, dress(SigningKey(key).sign(rail_of(offer).digest(authorization, offer)))


def header(shop: Shop, signed: tuple[Authorization, bytes]) -> str:
    return encode(payment_document(*signed, offer_of(shop)))


def funded(chain: Devnet, wallet: str) -> Address:
    """Give a contract a thousand prices, and let Permit2 move them."""
    chain.mint(wallet, 1000 * PRICE_ATOMIC)
    chain.rpc("anvil_impersonateAccount", wallet)
    chain.fund_gas(wallet, 10**18)
    chain.approve_permit2(wallet, 1000 * PRICE_ATOMIC)
    return parse_address(wallet)


def new_wallet(chain: Devnet) -> Address:
    return funded(chain, chain.deploy("TestWallet", chain.accounts[OTHER].address))


def open_for(chain: Devnet, folder: Path, method: str = "eip3009", **changed: Any) -> Any:
    given: dict[str, Any] = {"asset": dollar(chain), "methods": [method]} | changed
    return open_shop(chain, folder, **given)


@pytest.mark.parametrize("settle", ["auto", "after", "async"])
@pytest.mark.parametrize("method", METHODS)
async def test_a_wallet_pays_and_is_settled_before_it_is_served(
    chain: Devnet, tmp_path: Path, method: str, settle: str
) -> None:
    async with open_for(chain, tmp_path, method, settle=settle) as shop:
        wallet = new_wallet(chain)
        seen: list[int] = []

        async def look(scope: Any, receive: Any, send: Any) -> None:
            seen.append(paid(shop))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"goods"})

        shop.app.behave = look
        for dress in (lambda signature: signature + b"more", bytes):
            signed = signed_for(shop, wallet, chain.accounts[OTHER].key, dress)
            answer = await shop.buy(header(shop, signed))
            assert answer.status_code == 200, answer.text
            assert receipt_of(answer).transaction
        assert seen == [PRICE_ATOMIC, 2 * PRICE_ATOMIC]


@pytest.mark.parametrize("method", METHODS)
async def test_a_signature_that_the_wallet_does_not_vouch_for_is_refused(
    chain: Devnet, tmp_path: Path, method: str
) -> None:
    async with open_for(chain, tmp_path, method) as shop:
        wallet = new_wallet(chain)
        for dress in (bytes, lambda _: b"", lambda signature: signature[:64], lambda signature: signature * 20):
            answer = await shop.buy(header(shop, signed_for(shop, wallet, chain.accounts[BUYER].key, dress)))
            assert (answer.status_code, error_of(answer)["code"]) == (402, "contract_payer")
        assert shop.app.runs == 0
        assert paid(shop) == 0


@pytest.mark.parametrize("method", METHODS)
async def test_a_delegated_account_pays_by_its_code_and_its_key_says_nothing(
    chain: Devnet, tmp_path: Path, method: str
) -> None:
    """EIP-7702: the token asks the code, so a valid signature of the account's own key is worthless."""
    async with open_for(chain, tmp_path, method) as shop:
        delegate = chain.deploy("TestWallet", chain.accounts[OTHER].address)
        account = chain.accounts[BUYER]
        chain.approve_permit2(account.address, 1000 * PRICE_ATOMIC)
        chain.rpc("anvil_setCode", account.address, "0xef0100" + delegate[2:])
        payer = parse_address(account.address)
        refused = await shop.buy(header(shop, signed_for(shop, payer, account.key)))
        assert (refused.status_code, error_of(refused)["code"]) == (402, "contract_payer")
        assert shop.app.runs == 0
        taken = await shop.buy(header(shop, signed_for(shop, payer, chain.accounts[OTHER].key)))
        assert taken.status_code == 200, taken.text
        assert paid(shop) == PRICE_ATOMIC


@pytest.mark.parametrize("code", ["0x5b600056", "0xfe", "0x60006000fd", "0x00", "0x60ff60005260ff6000f3"])
async def test_code_that_burns_gas_or_answers_nonsense_vouches_for_nothing(
    chain: Devnet, tmp_path: Path, code: str
) -> None:
    async with open_for(chain, tmp_path) as shop:
        wallet = new_wallet(chain)
        chain.rpc("anvil_setCode", address_text(wallet), code)
        answer = await shop.buy(header(shop, signed_for(shop, wallet, chain.accounts[OTHER].key)))
        assert (answer.status_code, error_of(answer)["code"]) == (402, "contract_payer")
        assert shop.app.runs == 0


def undeployed(chain: Devnet) -> tuple[Address, Call]:
    """Return where a TestWallet will be, and the call that puts it there."""
    code = bytes.fromhex(load_artifact("TestWallet").bytecode.removeprefix("0x"))
    init = code + word_of_address(parse_address(chain.accounts[OTHER].address))
    salt = os.urandom(32)
    address = Address(keccak(b"\xff" + CREATE2_DEPLOYER + salt + keccak(init))[12:])
    chain.mint(address_text(address), 10 * PRICE_ATOMIC)
    return address, Call(CREATE2_DEPLOYER, salt + init)


async def test_a_wallet_that_is_not_deployed_is_refused_by_name_unless_its_factory_is_allowed(
    chain: Devnet, tmp_path: Path
) -> None:
    async with open_for(chain, tmp_path) as shop:
        wallet, deployment = undeployed(chain)
        signed = signed_for(shop, wallet, chain.accounts[OTHER].key, lambda signature: wrap(deployment, signature))
        answer = await shop.buy(header(shop, signed))
        assert (answer.status_code, error_of(answer)["code"]) == (402, "factory_not_allowed")
        assert chain.rpc("eth_getCode", address_text(wallet), "latest") == "0x"


async def test_an_allowed_factory_deploys_the_wallet_with_its_first_payment(chain: Devnet, tmp_path: Path) -> None:
    allowed = {"erc6492_factories": [address_text(CREATE2_DEPLOYER)]}
    async with open_for(chain, tmp_path, wallets=allowed, settle="async") as shop:
        wallet, deployment = undeployed(chain)

        def wrapped(signature: bytes) -> bytes:
            return wrap(deployment, signature)

        stranger = signed_for(shop, wallet, chain.accounts[BUYER].key, wrapped)
        assert error_of(await shop.buy(header(shop, stranger)))["code"] == "contract_payer"
        for number in (1, 2):
            signed = signed_for(shop, wallet, chain.accounts[OTHER].key, wrapped)
            answer = await shop.buy(header(shop, signed))
            assert answer.status_code == 200, answer.text
            assert paid(shop) == number * PRICE_ATOMIC
        assert chain.rpc("eth_getCode", address_text(wallet), "latest") != "0x"


@pytest.mark.parametrize("method", METHODS)
async def test_an_agent_wallet_pays_inside_its_policy_and_not_beyond(
    chain: Devnet, tmp_path: Path, method: str
) -> None:
    to_noon(chain)
    wallet = create_wallet(chain, method)
    chain.rpc("evm_increaseTime", 86_400)
    chain.mine()
    asset = dollar(chain) if method == "eip3009" else plain(chain)
    routes = [{"match": f"POST {CHAT}", "price": f"{PRICE_ATOMIC} atomic"}]
    async with open_for(chain, tmp_path, method, asset=asset, routes=routes) as shop:
        offer = offer_of(shop)

        async def buy(number: int) -> Any:
            authorization = await asyncio.to_thread(
                wallet.authorization, number, offer.amount_atomic, payee=offer.pay_to
            )
            return await shop.buy(header(shop, (authorization, wallet.sign(authorization))))

        answer = await buy(0)
        assert answer.status_code == 200, answer.text
        beyond = await buy(5)
        assert (beyond.status_code, error_of(beyond)["code"]) == (402, "contract_payer")
        assert paid(shop) == PRICE_ATOMIC


def counted(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write down every question that the seller asks the chain."""
    asked: list[str] = []
    rpc = shop.seller._rpc
    assert rpc is not None
    call, batch = rpc.call, rpc.batch

    async def counting_call(method: str, *arguments: Any) -> Any:
        asked.append(method)
        return await call(method, *arguments)

    async def counting_batch(calls: Any) -> Any:
        asked.append("batch")
        return await batch(calls)

    monkeypatch.setattr(rpc, "call", counting_call)
    monkeypatch.setattr(rpc, "batch", counting_batch)
    return asked


@pytest.mark.parametrize("method", METHODS)
async def test_garbage_for_one_payer_costs_one_question(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    async with open_for(chain, tmp_path, method, settles=False) as shop:
        await shop.buy(header(shop, signed_for(shop, parse_address(chain.accounts[9].address), b"\x07" * 32)))
        asked = counted(shop, monkeypatch)
        for _ in range(30):
            garbage = signed_for(shop, parse_address(chain.accounts[9].address), os.urandom(32))
            assert error_of(await shop.buy(header(shop, garbage)))["code"] == "invalid_signature"
        assert asked == []


@pytest.mark.parametrize("who", ["many payers", "one wallet"])
async def test_garbage_without_end_costs_a_bounded_number_of_questions(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    async with open_for(chain, tmp_path, settles=False) as shop:
        wallet = new_wallet(chain)
        monkeypatch.setattr(shop.seller.verifier._wallets, "_questions", Bucket(5, 0))
        await shop.seller.check_token()
        asked = counted(shop, monkeypatch)
        for _ in range(30):
            payer = wallet if who == "one wallet" else Address(os.urandom(20))
            answer = await shop.buy(header(shop, signed_for(shop, payer, os.urandom(32))))
            assert answer.status_code == 402
        assert len(asked) <= 3 * 5
        assert (await shop.buy()).status_code in (200, 503)  # an account's own key needs no such question
