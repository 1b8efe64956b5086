"""TestUSD accepts and refuses what USDC (FiatToken v2.2) does, on a real chain; eth-account signs and is the oracle."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace
from typing import Any

import pytest
from eth_abi.abi import decode, encode
from eth_account import Account
from eth_utils.crypto import keccak

from contracts.address import address_text
from contracts.evm.artifact import load_artifact
from contracts.evm.devnet import DevAccount, Devnet
from contracts.evm.preinstalls import MULTICALL3
from contracts.evm.rpc import RpcRefused
from tests.patience import PATIENCE_S

PRICE_ATOMIC = 10_000
SECP256K1_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
GAS = 500_000

TERMS = "address,address,uint256,uint256,uint256,bytes32"
TRANSFER_VRS = f"transferWithAuthorization({TERMS},uint8,bytes32,bytes32)"
TRANSFER_BYTES = f"transferWithAuthorization({TERMS},bytes)"
RECEIVE_VRS = f"receiveWithAuthorization({TERMS},uint8,bytes32,bytes32)"
RECEIVE_BYTES = f"receiveWithAuthorization({TERMS},bytes)"
CANCEL_VRS = "cancelAuthorization(address,bytes32,uint8,bytes32,bytes32)"
CANCEL_BYTES = "cancelAuthorization(address,bytes32,bytes)"
PERMIT_VRS = "permit(address,address,uint256,uint256,uint8,bytes32,bytes32)"
PERMIT_BYTES = "permit(address,address,uint256,uint256,bytes)"
AGGREGATE3 = "aggregate3((address,bool,bytes)[])"

# From USDC's published interface; a facilitator finds a token's abilities by these four bytes.
USDC_SELECTORS = {
    TRANSFER_VRS: "e3ee160e",
    TRANSFER_BYTES: "cf092995",
    RECEIVE_VRS: "ef55bec6",
    RECEIVE_BYTES: "88b7ab63",
    CANCEL_VRS: "5a049a70",
    CANCEL_BYTES: "b7b72899",
    PERMIT_VRS: "d505accf",
    PERMIT_BYTES: "9fd5a6cf",
    "authorizationState(address,bytes32)": "e94a0102",
    "DOMAIN_SEPARATOR()": "3644e515",
    "isBlacklisted(address)": "fe575a87",
    "paused()": "5c975abb",
    "version()": "54fd4d50",
    "nonces(address)": "7ecebe00",
}

TERM_FIELDS = [
    {"name": name, "type": kind}
    for name, kind in zip(
        ("from", "to", "value", "validAfter", "validBefore", "nonce"),
        ("address", "address", "uint256", "uint256", "uint256", "bytes32"),
        strict=True,
    )
]


@dataclass(frozen=True)
class Payment:
    """The signed terms of one payment, in the order the token takes them."""

    payer: str
    payee: str
    value_atomic: int
    valid_after_s: int
    valid_before_s: int
    nonce: bytes

    def arguments(self) -> list[object]:
        terms = (self.payer, self.payee, self.value_atomic, self.valid_after_s, self.valid_before_s, self.nonce)
        return list(terms)

    def sign(self, chain: Devnet, key: bytes, kind: str = "TransferWithAuthorization") -> bytes:
        fields = [field["name"] for field in TERM_FIELDS]
        message = dict(zip(fields, self.arguments(), strict=True))
        return sign(chain, key, {kind: TERM_FIELDS}, message)


def sign(chain: Devnet, key: bytes, types: dict[str, list[dict[str, str]]], message: dict[str, Any]) -> bytes:
    domain = {"name": "USDC", "version": "2", "chainId": chain.chain_id, "verifyingContract": chain.token}
    signed = Account.sign_typed_data(key, domain_data=domain, message_types=types, message_data=message)
    return bytes(signed.signature)


def vrs(signature: bytes) -> list[object]:
    return [signature[64], signature[:32], signature[32:64]]


def call_data(signature: str, *arguments: object) -> bytes:
    types = [kind for kind in signature[signature.index("(") + 1 : -1].split(",") if kind]
    return keccak(text=signature)[:4] + encode(types, arguments)


def send(chain: Devnet, sender: str, to: str, data: bytes) -> dict[str, Any]:
    """Mine one transaction, also one that reverts; return its receipt."""
    transaction = {"from": sender, "to": to, "data": "0x" + data.hex(), "gas": hex(GAS)}
    done = chain.rpc("eth_sendTransaction", transaction)
    receipt: dict[str, Any] | None = None
    deadline = time.monotonic() + PATIENCE_S
    while receipt is None:
        assert time.monotonic() < deadline, "the transaction was not mined"
        receipt = chain.rpc("eth_getTransactionReceipt", done)
    return receipt


def settles(chain: Devnet, signature: str, *arguments: object, sender: str | None = None) -> bool:
    """Send the call from a third party and say whether it succeeded."""
    receipt = send(chain, sender or chain.accounts[9].address, chain.token, call_data(signature, *arguments))
    return bool(receipt["status"] == "0x1")


def refusal(chain: Devnet, signature: str, *arguments: object, sender: str | None = None) -> str:
    """Return the name of the custom error the token answers with."""
    call = {
        "from": sender or chain.accounts[9].address,
        "to": chain.token,
        "data": "0x" + call_data(signature, *arguments).hex(),
    }
    with pytest.raises(RpcRefused) as refused:
        chain.rpc("eth_call", call, "latest")
    selector = str(refused.value.data)[:10]
    names = {
        "0x" + keccak(text=f"{entry['name']}({','.join(i['type'] for i in entry['inputs'])})")[:4].hex(): entry["name"]
        for entry in load_artifact("TestUSD").abi
        if entry["type"] == "error"
    }
    return str(names[selector])


def read(chain: Devnet, signature: str, kind: str, *arguments: object) -> Any:
    call = {"to": chain.token, "data": "0x" + call_data(signature, *arguments).hex()}
    return decode([kind], bytes.fromhex(chain.rpc("eth_call", call, "latest")[2:]))[0]


@pytest.fixture
def payer(chain: Devnet) -> DevAccount:
    account = chain.accounts[1]
    chain.mint(account.address, 10 * PRICE_ATOMIC)
    return account


@pytest.fixture
def payment(chain: Devnet, payer: DevAccount) -> Payment:
    return Payment(
        payer.address, chain.accounts[2].address, PRICE_ATOMIC, 0, int(time.time()) + 600, secrets.token_bytes(32)
    )


def test_it_has_usdcs_selectors() -> None:
    functions = {
        f"{entry['name']}({','.join(i['type'] for i in entry['inputs'])})"
        for entry in load_artifact("TestUSD").abi
        if entry["type"] == "function"
    }
    for signature, selector in USDC_SELECTORS.items():
        assert signature in functions
        assert keccak(text=signature)[:4].hex() == selector


def test_it_calls_itself_usdc_version_2_with_6_decimals(devnet: Devnet) -> None:
    assert read(devnet, "name()", "string") == "USDC"
    assert read(devnet, "symbol()", "string") == "USDC"
    assert read(devnet, "version()", "string") == "2"
    assert read(devnet, "decimals()", "uint8") == 6


def test_its_domain_separator_is_the_one_computed_by_hand(devnet: Devnet) -> None:
    type_hash = keccak(text="EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
    by_hand = keccak(
        encode(
            ["bytes32", "bytes32", "bytes32", "uint256", "address"],
            [type_hash, keccak(text="USDC"), keccak(text="2"), devnet.chain_id, devnet.token],
        )
    )
    assert read(devnet, "DOMAIN_SEPARATOR()", "bytes32") == by_hand


def test_the_name_and_version_of_another_deployment_are_its_domain(chain: Devnet) -> None:
    other = chain.deploy("TestUSD", "USD Coin", "USDC", "1")
    call = {"to": other, "data": "0x" + call_data("DOMAIN_SEPARATOR()").hex()}
    type_hash = keccak(text="EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
    types = ["bytes32", "bytes32", "bytes32", "uint256", "address"]
    by_hand = keccak(encode(types, [type_hash, keccak(text="USD Coin"), keccak(text="1"), chain.chain_id, other]))
    assert chain.rpc("eth_call", call, "latest") == "0x" + by_hand.hex()


@pytest.mark.parametrize("form", ["vrs", "bytes"])
def test_a_signed_transfer_settles_for_anyone_who_submits_it(
    chain: Devnet, payer: DevAccount, payment: Payment, form: str
) -> None:
    signature = payment.sign(chain, payer.key)
    tail = vrs(signature) if form == "vrs" else [signature]
    assert settles(chain, TRANSFER_VRS if form == "vrs" else TRANSFER_BYTES, *payment.arguments(), *tail)
    assert chain.balance_of(payment.payee) == PRICE_ATOMIC
    assert chain.balance_of(payment.payer) == 9 * PRICE_ATOMIC
    assert read(chain, "authorizationState(address,bytes32)", "bool", payment.payer, payment.nonce)


@pytest.mark.parametrize("form", ["vrs", "bytes"])
def test_a_signed_receive_settles_only_for_the_payee(
    chain: Devnet, payer: DevAccount, payment: Payment, form: str
) -> None:
    signature = payment.sign(chain, payer.key, "ReceiveWithAuthorization")
    tail = vrs(signature) if form == "vrs" else [signature]
    function = RECEIVE_VRS if form == "vrs" else RECEIVE_BYTES
    assert refusal(chain, function, *payment.arguments(), *tail) == "ERC20InvalidReceiver"
    assert settles(chain, function, *payment.arguments(), *tail, sender=payment.payee)
    assert chain.balance_of(payment.payee) == PRICE_ATOMIC


@pytest.mark.parametrize("form", ["vrs", "bytes"])
def test_a_cancelled_authorization_never_settles(chain: Devnet, payer: DevAccount, payment: Payment, form: str) -> None:
    types = {"CancelAuthorization": [{"name": "authorizer", "type": "address"}, {"name": "nonce", "type": "bytes32"}]}
    cancel = sign(chain, payer.key, types, {"authorizer": payment.payer, "nonce": payment.nonce})
    tail = vrs(cancel) if form == "vrs" else [cancel]
    assert settles(chain, CANCEL_VRS if form == "vrs" else CANCEL_BYTES, payment.payer, payment.nonce, *tail)
    signature = payment.sign(chain, payer.key)
    assert refusal(chain, TRANSFER_BYTES, *payment.arguments(), signature) == "ERC3009UsedAuthorization"


@pytest.mark.parametrize("form", ["vrs", "bytes"])
def test_a_permit_sets_the_allowance_once(chain: Devnet, payer: DevAccount, form: str) -> None:
    spender, deadline_s = chain.accounts[3].address, int(time.time()) + 600
    names = ("owner", "spender", "value", "nonce", "deadline")
    kinds = ("address", "address", "uint256", "uint256", "uint256")
    fields = [{"name": name, "type": kind} for name, kind in zip(names, kinds, strict=True)]
    message = dict(zip(names, (payer.address, spender, 77, 0, deadline_s), strict=True))
    signature = sign(chain, payer.key, {"Permit": fields}, message)
    tail = vrs(signature) if form == "vrs" else [signature]
    function = PERMIT_VRS if form == "vrs" else PERMIT_BYTES
    assert settles(chain, function, payer.address, spender, 77, deadline_s, *tail)
    assert read(chain, "allowance(address,address)", "uint256", payer.address, spender) == 77
    refused = refusal(chain, function, payer.address, spender, 77, deadline_s, *tail)
    assert refused == "PermitInvalidSignature"


def test_one_authorization_settles_once(chain: Devnet, payer: DevAccount, payment: Payment) -> None:
    signature = payment.sign(chain, payer.key)
    assert settles(chain, TRANSFER_BYTES, *payment.arguments(), signature)
    assert not settles(chain, TRANSFER_VRS, *payment.arguments(), *vrs(signature))
    assert refusal(chain, TRANSFER_BYTES, *payment.arguments(), signature) == "ERC3009UsedAuthorization"
    assert chain.balance_of(payment.payee) == PRICE_ATOMIC


def test_the_mirrored_signature_with_high_s_is_refused(chain: Devnet, payer: DevAccount, payment: Payment) -> None:
    signature = payment.sign(chain, payer.key)
    high_s = SECP256K1_ORDER - int.from_bytes(signature[32:64])
    mirrored = signature[:32] + high_s.to_bytes(32) + bytes([55 - signature[64]])
    assert refusal(chain, TRANSFER_BYTES, *payment.arguments(), mirrored) == "ERC3009InvalidSignature"
    assert refusal(chain, TRANSFER_VRS, *payment.arguments(), *vrs(mirrored)) == "ERC3009InvalidSignature"
    assert settles(chain, TRANSFER_BYTES, *payment.arguments(), signature)


@pytest.mark.parametrize("v", [0, 1, 26, 29])
def test_only_27_and_28_are_recovery_bytes(chain: Devnet, payer: DevAccount, payment: Payment, v: int) -> None:
    signature = payment.sign(chain, payer.key)[:64] + bytes([v])
    assert refusal(chain, TRANSFER_BYTES, *payment.arguments(), signature) == "ERC3009InvalidSignature"


def test_a_strangers_signature_and_changed_terms_are_refused(
    chain: Devnet, payer: DevAccount, payment: Payment
) -> None:
    by_stranger = payment.sign(chain, chain.accounts[5].key)
    assert refusal(chain, TRANSFER_BYTES, *payment.arguments(), by_stranger) == "ERC3009InvalidSignature"
    signature = payment.sign(chain, payer.key)
    dearer = replace(payment, value_atomic=PRICE_ATOMIC + 1)
    assert refusal(chain, TRANSFER_BYTES, *dearer.arguments(), signature) == "ERC3009InvalidSignature"


def test_a_receive_signature_is_no_transfer_signature(chain: Devnet, payer: DevAccount, payment: Payment) -> None:
    signature = payment.sign(chain, payer.key, "ReceiveWithAuthorization")
    assert refusal(chain, TRANSFER_BYTES, *payment.arguments(), signature) == "ERC3009InvalidSignature"


def test_more_than_the_balance_is_refused(chain: Devnet, payer: DevAccount, payment: Payment) -> None:
    whole = replace(payment, value_atomic=10 * PRICE_ATOMIC + 1)
    signature = whole.sign(chain, payer.key)
    assert refusal(chain, TRANSFER_BYTES, *whole.arguments(), signature) == "ERC20InsufficientBalance"


@pytest.mark.parametrize(
    ("after", "before", "accepted"),
    [(-1, +1, True), (0, +1, False), (-1, 0, False), (-1, -1, False), (+1, +2, False)],
)
def test_the_validity_window_is_strict_at_both_ends(
    chain: Devnet, payer: DevAccount, payment: Payment, after: int, before: int, accepted: bool
) -> None:
    block_s = int(time.time()) + 1_000
    window = replace(payment, valid_after_s=block_s + after, valid_before_s=block_s + before)
    signature = window.sign(chain, payer.key)
    chain.rpc("evm_setNextBlockTimestamp", block_s)
    assert settles(chain, TRANSFER_BYTES, *window.arguments(), signature) is accepted
    assert chain.balance_of(payment.payee) == (PRICE_ATOMIC if accepted else 0)


def test_bit_47_in_the_window_does_not_mean_block_numbers(chain: Devnet, payer: DevAccount, payment: Payment) -> None:
    flag = 1 << 47
    window = replace(payment, valid_after_s=flag, valid_before_s=flag + 1_000_000)
    signature = window.sign(chain, payer.key)
    assert refusal(chain, TRANSFER_BYTES, *window.arguments(), signature) == "ERC3009InvalidAuthorizationTime"


def test_a_pause_stops_payments_and_cancellations_until_it_ends(
    chain: Devnet, payer: DevAccount, payment: Payment
) -> None:
    signature = payment.sign(chain, payer.key)
    chain.set_paused(True)
    chain.set_paused(True)
    assert refusal(chain, TRANSFER_BYTES, *payment.arguments(), signature) == "EnforcedPause"
    cancel = (CANCEL_BYTES, payment.payer, payment.nonce, signature)
    assert refusal(chain, *cancel) == "EnforcedPause"
    chain.set_paused(False)
    assert settles(chain, TRANSFER_BYTES, *payment.arguments(), signature)


@pytest.mark.parametrize("side", ["payer", "payee"])
def test_a_blocked_side_stops_the_payment_until_it_is_unblocked(
    chain: Devnet, payer: DevAccount, payment: Payment, side: str
) -> None:
    signature = payment.sign(chain, payer.key)
    blocked = payment.payer if side == "payer" else payment.payee
    chain.set_blocked(blocked, True)
    assert refusal(chain, TRANSFER_BYTES, *payment.arguments(), signature) == "AccountBlacklisted"
    assert refusal(chain, TRANSFER_VRS, *payment.arguments(), *vrs(signature)) == "AccountBlacklisted"
    chain.set_blocked(blocked, False)
    assert settles(chain, TRANSFER_BYTES, *payment.arguments(), signature)


def test_a_blocked_spender_cannot_move_even_an_unlimited_allowance(chain: Devnet, payer: DevAccount) -> None:
    spender = chain.accounts[3].address
    assert settles(chain, "approve(address,uint256)", spender, 2**256 - 1, sender=payer.address)
    chain.set_blocked(spender, True)
    move = ("transferFrom(address,address,uint256)", payer.address, chain.accounts[4].address, 50)
    assert refusal(chain, *move, sender=spender) == "AccountBlacklisted"
    chain.set_blocked(spender, False)
    assert settles(chain, *move, sender=spender)


def test_only_the_owner_mints(chain: Devnet, payer: DevAccount) -> None:
    mint = ("mint(address,uint256)", payer.address, 1)
    assert refusal(chain, *mint, sender=payer.address) == "OwnableUnauthorizedAccount"


def test_a_contract_payer_is_asked_and_pays(chain: Devnet, payer: DevAccount, payment: Payment) -> None:
    wallet = chain.deploy("TestWallet", payer.address)
    chain.mint(wallet, PRICE_ATOMIC)
    from_wallet = replace(payment, payer=wallet)
    signature = from_wallet.sign(chain, payer.key) + b"\x00"

    by_stranger = from_wallet.sign(chain, chain.accounts[5].key) + b"\x00"
    assert refusal(chain, TRANSFER_BYTES, *from_wallet.arguments(), by_stranger) == "ERC3009InvalidSignature"
    assert settles(chain, TRANSFER_BYTES, *from_wallet.arguments(), signature)
    assert chain.balance_of(wallet) == 0
    assert chain.balance_of(payment.payee) == PRICE_ATOMIC


def test_a_contract_payer_whose_signature_is_65_bytes_pays_through_the_vrs_form_too(
    chain: Devnet, payer: DevAccount, payment: Payment
) -> None:
    wallet = chain.deploy("TestWallet", payer.address)
    chain.mint(wallet, PRICE_ATOMIC)
    from_wallet = replace(payment, payer=wallet)
    assert settles(chain, TRANSFER_VRS, *from_wallet.arguments(), *vrs(from_wallet.sign(chain, payer.key)))


def test_an_account_that_gained_code_is_no_longer_judged_by_its_key(
    chain: Devnet, payer: DevAccount, payment: Payment
) -> None:
    signature = payment.sign(chain, payer.key)
    chain.rpc("anvil_setCode", payer.address, "0x00")
    assert refusal(chain, TRANSFER_BYTES, *payment.arguments(), signature) == "ERC3009InvalidSignature"


def test_one_bad_item_in_a_multicall_batch_leaves_the_others_settled(
    chain: Devnet, payer: DevAccount, payment: Payment
) -> None:
    payments = [replace(payment, nonce=secrets.token_bytes(32)) for _ in range(3)]
    signatures = [item.sign(chain, payer.key) for item in payments]
    signatures[1] = payments[1].sign(chain, chain.accounts[5].key)
    items = [
        (chain.token, True, call_data(TRANSFER_BYTES, *item.arguments(), signature))
        for item, signature in zip(payments, signatures, strict=True)
    ]
    data = keccak(text=AGGREGATE3)[:4] + encode(["(address,bool,bytes)[]"], [items])

    receipt = send(chain, chain.accounts[9].address, address_text(MULTICALL3), data)

    assert receipt["status"] == "0x1"
    assert chain.balance_of(payment.payee) == 2 * PRICE_ATOMIC
    used = [read(chain, "authorizationState(address,bytes32)", "bool", item.payer, item.nonce) for item in payments]
    assert used == [True, False, True]
