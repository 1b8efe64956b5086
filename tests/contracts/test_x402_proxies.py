"""Our compatible Permit2 proxies keep the published interface and its promises, on a chain with the real Permit2.

The official SDK's ABI and typed data are the oracle; eth-account signs.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

import pytest
from eth_account import Account
from eth_typing import HexStr
from eth_utils.crypto import keccak
from web3 import Web3
from web3.contract import Contract
from x402.mechanisms.evm.constants import (
    EIP2612_PERMIT_TYPES,
    PERMIT2_ADDRESS,
    PERMIT2_WITNESS_TYPES,
    UPTO_PERMIT2_WITNESS_TYPES,
    X402_EXACT_PERMIT2_PROXY_ABI,
    X402_EXACT_PERMIT2_PROXY_ADDRESS,
    X402_EXACT_PERMIT2_PROXY_SETTLE_WITH_PERMIT_ABI,
    X402_UPTO_PERMIT2_PROXY_ABI,
    X402_UPTO_PERMIT2_PROXY_ADDRESS,
    X402_UPTO_PERMIT2_PROXY_SETTLE_WITH_PERMIT_ABI,
)

from contracts.address import address_text, parse_address
from contracts.evm.artifact import load_artifact
from contracts.evm.devnet import Devnet
from contracts.evm.rpc import RpcRefused
from contracts.networks import PERMIT2, X402_EXACT_PROXY, X402_UPTO_PROXY
from contracts.schemes.authorization import Call
from tests.contracts import wallets

CAP_ATOMIC = 3 * 10**18
NOBODY = "0x" + "00" * 20

SDK_ABI: dict[str, list[dict[str, Any]]] = {
    "X402ExactPermit2Proxy": X402_EXACT_PERMIT2_PROXY_ABI + X402_EXACT_PERMIT2_PROXY_SETTLE_WITH_PERMIT_ABI,
    "X402UptoPermit2Proxy": X402_UPTO_PERMIT2_PROXY_ABI + X402_UPTO_PERMIT2_PROXY_SETTLE_WITH_PERMIT_ABI,
}


def shape(parameter: dict[str, Any]) -> object:
    return parameter["name"], parameter["type"], [shape(inner) for inner in parameter.get("components", [])]


class Payment:
    """A Permit2 payment of the plain token from the chain's first account, `upto` when it names a facilitator."""

    def __init__(self, chain: Devnet, facilitator: str | None = None, **changes: Any) -> None:
        self.chain = chain
        self.payer = chain.accounts[0]
        self.facilitator = facilitator
        self.payee = str(changes.get("payee", Account.create().address))
        self.valid_after_s = int(changes.get("valid_after_s", 0))
        self.nonce = secrets.randbits(256)
        self.deadline_s = int(changes.get("deadline_s", time.time() + 600))
        self.spender = X402_UPTO_PERMIT2_PROXY_ADDRESS if facilitator else X402_EXACT_PERMIT2_PROXY_ADDRESS

    @property
    def witness(self) -> dict[str, Any]:
        facilitator = {"facilitator": self.facilitator} if self.facilitator else {}
        return {"to": self.payee} | facilitator | {"validAfter": self.valid_after_s}

    def sign(self) -> bytes:
        permitted = {"token": self.chain.plain_token, "amount": CAP_ATOMIC}
        message = {"permitted": permitted, "spender": self.spender, "nonce": self.nonce, "deadline": self.deadline_s}
        domain = {"name": "Permit2", "chainId": self.chain.chain_id, "verifyingContract": PERMIT2_ADDRESS}
        types = UPTO_PERMIT2_WITNESS_TYPES if self.facilitator else PERMIT2_WITNESS_TYPES
        signed = Account.sign_typed_data(self.payer.key, domain, types, message | {"witness": self.witness})
        return bytes(signed.signature)

    def arguments(self, signature: bytes, amount_atomic: int | None = None) -> list[Any]:
        permit = ((self.chain.plain_token, CAP_ATOMIC), self.nonce, self.deadline_s)
        amount = [] if amount_atomic is None else [amount_atomic]
        return [permit, *amount, self.payer.address, tuple(self.witness.values()), signature]

    def received(self) -> int:
        return self.chain.balance_of(self.payee, self.chain.plain_token)


def contract(chain: Devnet, address: str, abi: Any) -> Contract:
    return Web3(Web3.HTTPProvider(chain.rpc_url)).eth.contract(Web3.to_checksum_address(address), abi=abi)


def exact(chain: Devnet) -> Contract:
    return contract(chain, X402_EXACT_PERMIT2_PROXY_ADDRESS, SDK_ABI["X402ExactPermit2Proxy"])


def upto(chain: Devnet) -> Contract:
    return contract(chain, X402_UPTO_PERMIT2_PROXY_ADDRESS, SDK_ABI["X402UptoPermit2Proxy"])


def send(chain: Devnet, call: Any, sender: str) -> dict[str, Any]:
    """Send one call and return its receipt; the transaction is mined at once."""
    data = bytes.fromhex(call._encode_transaction_data()[2:])
    return wallets.send(chain, sender, Call(parse_address(call.address), data))


def refused_as(chain: Devnet, call: Any, sender: str, error: str) -> bool:
    with pytest.raises(RpcRefused) as refused:
        chain.rpc("eth_call", {"from": sender, "to": call.address, "data": call._encode_transaction_data()}, "latest")
    return str(refused.value.data).startswith("0x" + keccak(text=error)[:4].hex())


@pytest.fixture
def funded(chain: Devnet) -> Devnet:
    """The chain with a payer who holds the plain token and lets Permit2 move it."""
    payer = chain.accounts[0].address
    chain.mint(payer, 10 * CAP_ATOMIC, chain.plain_token)
    chain.approve_permit2(payer, 10 * CAP_ATOMIC, chain.plain_token)
    return chain


@pytest.mark.parametrize("name", SDK_ABI)
def test_every_function_the_sdk_calls_is_there_parameter_for_parameter(name: str) -> None:
    ours = {entry["name"]: entry for entry in load_artifact(name).abi if entry["type"] == "function"}
    for theirs in SDK_ABI[name]:
        mine = ours[theirs["name"]]
        assert [shape(each) for each in mine["inputs"]] == [shape(each) for each in theirs["inputs"]]
        assert mine["outputs"] == theirs["outputs"]
        assert mine["stateMutability"] == theirs["stateMutability"]


def test_the_addresses_are_those_the_sdk_names() -> None:
    assert address_text(X402_EXACT_PROXY) == X402_EXACT_PERMIT2_PROXY_ADDRESS
    assert address_text(X402_UPTO_PROXY) == X402_UPTO_PERMIT2_PROXY_ADDRESS
    assert address_text(PERMIT2) == PERMIT2_ADDRESS


def test_anybody_may_settle_an_exact_payment_and_the_payee_gets_all_of_it(funded: Devnet) -> None:
    payment = Payment(funded)
    receipt = send(
        funded, exact(funded).functions.settle(*payment.arguments(payment.sign())), funded.accounts[5].address
    )
    assert receipt["status"] == "0x1"
    assert payment.received() == CAP_ATOMIC
    assert receipt["logs"][-1]["topics"] == ["0x" + keccak(text="Settled()").hex()]


def test_an_exact_payment_settles_once(funded: Devnet) -> None:
    payment, sender = Payment(funded), funded.accounts[5].address
    settle = exact(funded).functions.settle(*payment.arguments(payment.sign()))
    send(funded, settle, sender)
    assert refused_as(funded, settle, sender, "InvalidNonce()")


def test_an_exact_payment_goes_only_where_the_payer_signed(funded: Devnet) -> None:
    payment = Payment(funded)
    signature = payment.sign()
    payment.payee = funded.accounts[5].address
    settle = exact(funded).functions.settle(*payment.arguments(signature))
    assert refused_as(funded, settle, payment.payee, "InvalidSigner()")


def test_a_payment_waits_for_its_first_second_and_ends_after_its_deadline(funded: Devnet) -> None:
    sender = funded.accounts[5].address
    early = Payment(funded, valid_after_s=int(time.time()) + 3600)
    late = Payment(funded, deadline_s=int(time.time()) - 3600)
    settle = exact(funded).functions.settle
    assert refused_as(funded, settle(*early.arguments(early.sign())), sender, "PaymentTooEarly()")
    assert refused_as(funded, settle(*late.arguments(late.sign())), sender, "SignatureExpired(uint256)")


def test_a_payment_to_nobody_is_refused(funded: Devnet) -> None:
    payment = Payment(funded, payee=NOBODY)
    settle = exact(funded).functions.settle(*payment.arguments(payment.sign()))
    assert refused_as(funded, settle, funded.accounts[5].address, "InvalidDestination()")


def test_the_named_facilitator_settles_less_than_the_cap_once(funded: Devnet) -> None:
    facilitator = funded.accounts[5].address
    payment = Payment(funded, facilitator)
    settle = upto(funded).functions.settle(*payment.arguments(payment.sign(), 1_234))
    assert send(funded, settle, facilitator)["status"] == "0x1"
    assert payment.received() == 1_234
    assert refused_as(funded, settle, facilitator, "InvalidNonce()")


@pytest.mark.parametrize(
    ("sender_index", "amount_atomic", "error"),
    [
        (6, 1_234, "UnauthorizedFacilitator()"),
        (5, CAP_ATOMIC + 1, "AmountExceedsPermitted()"),
        (5, 0, "InvalidAmount()"),
    ],
)
def test_upto_refuses_strangers_more_than_the_cap_and_nothing(
    funded: Devnet, sender_index: int, amount_atomic: int, error: str
) -> None:
    payment = Payment(funded, funded.accounts[5].address)
    settle = upto(funded).functions.settle(*payment.arguments(payment.sign(), amount_atomic))
    assert refused_as(funded, settle, funded.accounts[sender_index].address, error)


def signed_2612(chain: Devnet, value_atomic: int, key: bytes) -> tuple[Any, ...]:
    deadline_s = int(time.time()) + 600
    domain = {
        "name": "Plain Dollar",
        "version": "1",
        "chainId": chain.chain_id,
        "verifyingContract": chain.plain_token,
    }
    message = {
        "owner": chain.accounts[0].address,
        "spender": PERMIT2_ADDRESS,
        "value": value_atomic,
        "nonce": 0,
        "deadline": deadline_s,
    }
    signed = Account.sign_typed_data(key, domain, EIP2612_PERMIT_TYPES, message)
    return value_atomic, deadline_s, signed.r.to_bytes(32, "big"), signed.s.to_bytes(32, "big"), signed.v


@pytest.mark.parametrize("scheme", ["exact", "upto"])
def test_a_payer_without_an_approval_pays_with_two_signatures(chain: Devnet, scheme: str) -> None:
    payer, facilitator = chain.accounts[0], chain.accounts[5].address
    chain.mint(payer.address, CAP_ATOMIC, chain.plain_token)
    payment = Payment(chain, facilitator if scheme == "upto" else None)
    amount, proxy = (CAP_ATOMIC, upto(chain)) if scheme == "upto" else (None, exact(chain))
    permit = signed_2612(chain, CAP_ATOMIC, payer.key)
    settle = proxy.functions.settleWithPermit(permit, *payment.arguments(payment.sign(), amount))
    receipt = send(chain, settle, facilitator)
    assert receipt["status"] == "0x1"
    assert payment.received() == CAP_ATOMIC
    assert receipt["logs"][-1]["topics"] == [HexStr("0x" + keccak(text="SettledWithPermit()").hex())]


def test_a_permit_that_fails_does_not_stop_a_payer_who_had_approved(funded: Devnet) -> None:
    payment, stranger = Payment(funded), funded.accounts[7]
    permit = signed_2612(funded, CAP_ATOMIC, stranger.key)
    settle = exact(funded).functions.settleWithPermit(permit, *payment.arguments(payment.sign()))
    assert send(funded, settle, stranger.address)["status"] == "0x1"
    assert payment.received() == CAP_ATOMIC


def test_a_permit_for_another_amount_is_refused(funded: Devnet) -> None:
    payment, sender = Payment(funded), funded.accounts[5].address
    permit = signed_2612(funded, CAP_ATOMIC - 1, payment.payer.key)
    settle = exact(funded).functions.settleWithPermit(permit, *payment.arguments(payment.sign()))
    assert refused_as(funded, settle, sender, "Permit2612AmountMismatch()")
