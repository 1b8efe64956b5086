"""`exact` with EIP-3009: digests, the static checks in their order, calldata, and what counts as paid."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from eth_abi.abi import encode
from eth_account.messages import encode_typed_data
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

from contracts.address import ZERO, Address, address_text, parse_address
from contracts.errors import (
    AmountMismatch,
    InvalidSignature,
    MalformedMessage,
    PaymentExpired,
    PaymentNotYetValid,
    PaymentRefused,
    RecipientMismatch,
)
from contracts.evm.devnet import Devnet
from contracts.money import Asset
from contracts.networks import Network
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization
from contracts.schemes.exact_eip3009 import (
    AUTHORIZATION_CANCELED_TOPIC,
    AUTHORIZATION_USED_TOPIC,
    TRANSFER_TOPIC,
    cancel_call,
    cancel_digest,
    decode_payload,
    encode_payload,
    transfer_call,
    transfer_digest,
    was_paid,
)
from contracts.schemes.rails import check
from contracts.signature import SigningKey
from contracts.typed_data import Domain
from tests.patience import PATIENCE_S

KEY = SigningKey(b"\x01" * 32)
PAYEE = parse_address("0x209693Bc6afc0C5328bA36FaF03C514EF312287C")
USDC = Asset(parse_address("0x036CbD53842c5426634e7929541eC2318f3dCF7e"), "USDC", "2", 6, "USDC")
OFFER = Offer("exact", Network(84532), USDC, 10_000, PAYEE, 60)
NOW_S = 1_800_000_000
AUTHORIZATION = Authorization(KEY.address, PAYEE, 10_000, 0, 1_900_000_000, b"\x42" * 32)
SIGNATURE = KEY.sign(transfer_digest(AUTHORIZATION, OFFER.domain))

addresses = st.binary(min_size=20, max_size=20).map(Address)
uints = st.integers(0, 2**256 - 1)
authorizations = st.builds(
    Authorization,
    payer=addresses,
    payee=addresses,
    value_atomic=uints,
    valid_after_s=uints,
    valid_before_s=uints,
    nonce=st.binary(min_size=32, max_size=32),
)
domains = st.builds(
    Domain,
    name=st.text(max_size=20),
    version=st.text(max_size=5),
    chain_id=st.integers(1, 2**64),
    verifying_contract=addresses,
)


def checked(authorization: Authorization, *, offer: Offer = OFFER, now_s: int = NOW_S, margin_s: int = 6) -> None:
    """Sign what is given with the right key, so that only the named difference can be refused."""
    check(authorization, KEY.sign(transfer_digest(authorization, offer.domain)), offer, now_s, margin_s)


def test_the_published_vector_is_reproduced() -> None:
    assert transfer_digest(AUTHORIZATION, OFFER.domain).hex() == (
        "1fa5e4084f29eaf2860e833fc8e4ac3c6ee3c3ff9b6d846d9ebd3eeeb1ca9645"
    )
    assert SIGNATURE.hex() == (
        "315c08885b03e81d10316766e11343297379f9fc75707d951b4debbd66e3425e"
        "169321c9532c7a6cf873606e3dbaf804c8319689eba46356bb06fd3024f8f5951b"
    )
    check(AUTHORIZATION, SIGNATURE, OFFER, NOW_S, 6)


@given(authorization=authorizations, domain=domains)
def test_digests_equal_those_of_a_general_eip712_encoder(authorization: Authorization, domain: Domain) -> None:
    assert transfer_digest(authorization, domain) == general_digest(
        domain,
        "TransferWithAuthorization",
        {
            "from": ("address", address_text(authorization.payer)),
            "to": ("address", address_text(authorization.payee)),
            "value": ("uint256", authorization.value_atomic),
            "validAfter": ("uint256", authorization.valid_after_s),
            "validBefore": ("uint256", authorization.valid_before_s),
            "nonce": ("bytes32", authorization.nonce),
        },
    )


@given(payer=addresses, nonce=st.binary(min_size=32, max_size=32), domain=domains)
def test_revocation_digests_equal_those_of_a_general_eip712_encoder(
    payer: Address, nonce: bytes, domain: Domain
) -> None:
    assert cancel_digest(payer, nonce, domain) == general_digest(
        domain,
        "CancelAuthorization",
        {"authorizer": ("address", address_text(payer)), "nonce": ("bytes32", nonce)},
    )


def general_digest(domain: Domain, primary: str, members: dict[str, tuple[str, Any]]) -> bytes:
    signable = encode_typed_data(
        domain_data={
            "name": domain.name,
            "version": domain.version,
            "chainId": domain.chain_id,
            "verifyingContract": address_text(domain.verifying_contract),
        },
        message_types={primary: [{"name": name, "type": kind} for name, (kind, _) in members.items()]},
        message_data={name: value for name, (_, value) in members.items()},
    )
    return keccak(b"\x19\x01" + signable.header + signable.body)


@given(authorization=authorizations, signature=st.binary(max_size=200))
def test_a_payload_reads_back_as_it_was_written(authorization: Authorization, signature: bytes) -> None:
    written = msgspec.json.encode(encode_payload(authorization, signature))
    assert decode_payload(written) == (authorization, signature)
    assert decode_payload(msgspec.Raw(written)) == (authorization, signature)


@pytest.mark.parametrize(
    ("member", "value", "named"),
    [
        ("from", "0x12", "payload.authorization.from"),
        ("to", "alice.eth", "payload.authorization.to"),
        ("value", "-1", "payload.authorization.value"),
        ("value", "0x10", "payload.authorization.value"),
        ("value", " 12 ", "payload.authorization.value"),
        ("value", "1_000", "payload.authorization.value"),
        ("validAfter", "", "payload.authorization.validAfter"),
        ("validBefore", str(2**256), "payload.authorization.validBefore"),
        ("nonce", "0x42", "payload.authorization.nonce"),
        ("nonce", "42" * 32, "payload.authorization.nonce"),
        ("value", 10_000, "payload: Expected `str`, got `int` - at `$.authorization.value`"),
        ("nonce", None, "payload: Expected `str`, got `null` - at `$.authorization.nonce`"),
    ],
)
def test_a_malformed_member_of_the_payload_is_named(member: str, value: object, named: str) -> None:
    payload = encode_payload(AUTHORIZATION, SIGNATURE)
    payload["authorization"][member] = value
    with pytest.raises(MalformedMessage) as refused:
        decode_payload(msgspec.json.encode(payload))
    assert refused.value.message.startswith(named)


@pytest.mark.parametrize("member", ["signature", "authorization"])
def test_a_payload_of_another_scheme_is_malformed(member: str) -> None:
    payload = encode_payload(AUTHORIZATION, SIGNATURE)
    del payload[member]
    with pytest.raises(MalformedMessage, match=f"missing required field `{member}`"):
        decode_payload(msgspec.json.encode(payload))


MUTATIONS: list[tuple[dict[str, Any], type[PaymentRefused], str]] = [
    ({"payee": parse_address("0x" + "11" * 20)}, RecipientMismatch, "authorization.to"),
    ({"payee": ZERO}, RecipientMismatch, "authorization.to"),
    ({"value_atomic": 9_999}, AmountMismatch, "authorization.value"),
    ({"value_atomic": 10_001}, AmountMismatch, "authorization.value"),
    ({"value_atomic": 0}, AmountMismatch, "authorization.value"),
    ({"valid_before_s": NOW_S + 5}, PaymentExpired, "authorization.validBefore"),
    ({"valid_before_s": NOW_S}, PaymentExpired, "authorization.validBefore"),
    ({"valid_before_s": 0}, PaymentExpired, "authorization.validBefore"),
    ({"valid_after_s": NOW_S + 1}, PaymentNotYetValid, "authorization.validAfter"),
    ({"valid_after_s": 2**256 - 1}, PaymentNotYetValid, "authorization.validAfter"),
    ({"payer": ZERO}, InvalidSignature, "authorization.from"),
    ({"payer": PAYEE}, InvalidSignature, "payload.signature"),
]


@pytest.mark.parametrize(("change", "refusal", "field"), MUTATIONS)
def test_a_payment_for_other_terms_is_refused_by_name(
    change: dict[str, Any], refusal: type[PaymentRefused], field: str
) -> None:
    with pytest.raises(refusal, match=f"payload.{field.removeprefix('payload.')}: "):
        checked(msgspec.structs.replace(AUTHORIZATION, **change))


def test_validity_is_judged_to_the_second() -> None:
    checked(msgspec.structs.replace(AUTHORIZATION, valid_before_s=NOW_S + 6))
    checked(msgspec.structs.replace(AUTHORIZATION, valid_after_s=NOW_S))
    checked(msgspec.structs.replace(AUTHORIZATION, valid_before_s=NOW_S + 60), margin_s=60)
    with pytest.raises(PaymentExpired, match="at least 61 s ahead"):
        checked(msgspec.structs.replace(AUTHORIZATION, valid_before_s=NOW_S + 60), margin_s=61)


def test_a_cheaper_check_is_told_before_a_dearer_one() -> None:
    everything_wrong = Authorization(ZERO, ZERO, 1, NOW_S + 99, 1, bytes(32))
    ladder: list[tuple[dict[str, Any], type[PaymentRefused]]] = [
        ({}, RecipientMismatch),
        ({"payee": PAYEE}, AmountMismatch),
        ({"payee": PAYEE, "value_atomic": 10_000}, PaymentExpired),
        ({"payee": PAYEE, "value_atomic": 10_000, "valid_before_s": NOW_S + 60}, PaymentNotYetValid),
    ]
    for change, refusal in ladder:
        with pytest.raises(refusal):
            check(msgspec.structs.replace(everything_wrong, **change), b"", OFFER, NOW_S, 6)


@pytest.mark.parametrize(
    "offer",
    [
        replace(OFFER, network=Network(8453)),
        replace(OFFER, asset=replace(USDC, name="USD Coin")),
        replace(OFFER, asset=replace(USDC, version="1")),
        replace(OFFER, asset=replace(USDC, address=parse_address("0x" + "11" * 20))),
    ],
    ids=["another chain", "another token name", "another token version", "another token"],
)
def test_a_signature_made_for_another_domain_is_refused(offer: Offer) -> None:
    with pytest.raises(InvalidSignature):
        check(AUTHORIZATION, SIGNATURE, offer, NOW_S, 6)


@given(position=st.integers(0, 64), flip=st.integers(1, 255))
def test_no_changed_byte_of_the_signature_passes(position: int, flip: int) -> None:
    changed = bytearray(SIGNATURE)
    changed[position] ^= flip
    if changed[64] in (0, 1) and changed[64] + 27 == SIGNATURE[64]:
        return  # the same v in its other custom
    with pytest.raises(InvalidSignature):
        check(AUTHORIZATION, bytes(changed), OFFER, NOW_S, 6)


@given(
    nonce=st.binary(min_size=32, max_size=32).filter(lambda nonce: nonce != AUTHORIZATION.nonce),
    valid_before_s=st.integers(NOW_S + 6, 2**256 - 1).filter(lambda at: at != AUTHORIZATION.valid_before_s),
    valid_after_s=st.integers(1, NOW_S),
)
def test_no_changed_member_passes_under_the_old_signature(
    nonce: bytes, valid_before_s: int, valid_after_s: int
) -> None:
    changes: list[dict[str, Any]] = [
        {"nonce": nonce},
        {"valid_before_s": valid_before_s},
        {"valid_after_s": valid_after_s},
    ]
    for change in changes:
        with pytest.raises(InvalidSignature):
            check(msgspec.structs.replace(AUTHORIZATION, **change), SIGNATURE, OFFER, NOW_S, 6)


def test_settlement_calldata_is_what_a_general_abi_encoder_writes() -> None:
    types = ["address", "address", "uint256", "uint256", "uint256", "bytes32", "uint8", "bytes32", "bytes32"]
    selector = keccak(text=f"transferWithAuthorization({','.join(types)})")[:4]
    members = [
        AUTHORIZATION.payer,
        AUTHORIZATION.payee,
        AUTHORIZATION.value_atomic,
        AUTHORIZATION.valid_after_s,
        AUTHORIZATION.valid_before_s,
        AUTHORIZATION.nonce,
        SIGNATURE[64],
        SIGNATURE[:32],
        SIGNATURE[32:64],
    ]
    assert transfer_call(AUTHORIZATION, SIGNATURE) == selector + encode(types, members)
    with_low_v = SIGNATURE[:64] + bytes((SIGNATURE[64] - 27,))
    assert transfer_call(AUTHORIZATION, with_low_v) == transfer_call(AUTHORIZATION, SIGNATURE)


def test_revocation_calldata_is_what_a_general_abi_encoder_writes() -> None:
    types = ["address", "bytes32", "uint8", "bytes32", "bytes32"]
    selector = keccak(text=f"cancelAuthorization({','.join(types)})")[:4]
    signature = KEY.sign(cancel_digest(KEY.address, AUTHORIZATION.nonce, OFFER.domain))
    members = [KEY.address, AUTHORIZATION.nonce, signature[64], signature[:32], signature[32:64]]
    assert cancel_call(KEY.address, AUTHORIZATION.nonce, signature) == selector + encode(types, members)


def topic(address: bytes) -> str:
    return "0x" + bytes(12).hex() + address.hex()


def log(*topics: str, data: str = "0x", token: Address = USDC.address) -> dict[str, Any]:
    return {"address": address_text(token), "topics": list(topics), "data": data}


USED = log(AUTHORIZATION_USED_TOPIC, topic(KEY.address), "0x" + "42" * 32)
MOVED = log(TRANSFER_TOPIC, topic(KEY.address), topic(PAYEE), data=f"0x{10_000:064x}")
STRANGER = parse_address("0x" + "11" * 20)


@pytest.mark.parametrize(
    ("logs", "paid"),
    [
        ([USED, MOVED], True),
        ([MOVED, USED], True),
        ([log("0x" + "99" * 32), MOVED, USED], True),
        ([log(AUTHORIZATION_USED_TOPIC, topic(KEY.address), "0x" + "42" * 32), MOVED], True),
        ([], False),
        ([USED], False),
        ([MOVED], False),
        ([MOVED, log(AUTHORIZATION_USED_TOPIC, topic(KEY.address), "0x" + "43" * 32)], False),
        ([MOVED, log(AUTHORIZATION_USED_TOPIC, topic(STRANGER), "0x" + "42" * 32)], False),
        ([MOVED, log(AUTHORIZATION_CANCELED_TOPIC, topic(KEY.address), "0x" + "42" * 32)], False),
        ([USED, log(TRANSFER_TOPIC, topic(KEY.address), topic(STRANGER), data=f"0x{10_000:064x}")], False),
        ([USED, log(TRANSFER_TOPIC, topic(STRANGER), topic(PAYEE), data=f"0x{10_000:064x}")], False),
        ([USED, log(TRANSFER_TOPIC, topic(KEY.address), topic(PAYEE), data=f"0x{9_999:064x}")], False),
        ([USED, log(TRANSFER_TOPIC, topic(KEY.address), topic(PAYEE), data="0x")], False),
        ([{**USED, "address": address_text(STRANGER)}, {**MOVED, "address": address_text(STRANGER)}], False),
        ([USED, {**MOVED, "address": address_text(STRANGER)}], False),
    ],
)
def test_only_the_burnt_nonce_and_the_exact_transfer_together_count_as_paid(
    logs: list[dict[str, Any]], paid: bool
) -> None:
    assert was_paid(logs, AUTHORIZATION, USDC.address) is paid


def send(chain: Devnet, data: bytes) -> dict[str, Any]:
    transaction = {"from": chain.accounts[9].address, "to": chain.token, "data": "0x" + data.hex()}
    sent = chain.rpc("eth_sendTransaction", transaction)
    deadline = time.monotonic() + PATIENCE_S
    receipt: dict[str, Any] | None = None
    while receipt is None:
        assert time.monotonic() < deadline, "the transaction was not mined"
        receipt = chain.rpc("eth_getTransactionReceipt", sent)
    return receipt


def devnet_payment(chain: Devnet) -> tuple[SigningKey, Authorization, bytes, Domain]:
    key = SigningKey(chain.accounts[0].key)
    chain.mint(chain.accounts[0].address, 10_000)
    now_s = int(chain.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
    domain = Domain("USDC", "2", chain.chain_id, parse_address(chain.token))
    authorization = Authorization(key.address, PAYEE, 10_000, 0, now_s + 600, b"\x07" * 32)
    return key, authorization, key.sign(transfer_digest(authorization, domain)), domain


def test_a_real_token_takes_our_settlement_and_its_logs_say_paid(chain: Devnet) -> None:
    _, authorization, signature, _ = devnet_payment(chain)
    before = chain.balance_of(address_text(PAYEE))

    receipt = send(chain, transfer_call(authorization, signature))

    assert receipt["status"] == "0x1"
    assert was_paid(receipt["logs"], authorization, parse_address(chain.token))
    assert not was_paid(
        receipt["logs"], msgspec.structs.replace(authorization, nonce=bytes(32)), parse_address(chain.token)
    )
    assert chain.balance_of(address_text(PAYEE)) - before == 10_000


def test_a_real_token_takes_our_revocation_and_its_logs_do_not_say_paid(chain: Devnet) -> None:
    key, authorization, _, domain = devnet_payment(chain)
    revocation = key.sign(cancel_digest(key.address, authorization.nonce, domain))

    receipt = send(chain, cancel_call(key.address, authorization.nonce, revocation))

    assert receipt["status"] == "0x1"
    assert [entry["topics"][0] for entry in receipt["logs"]] == [AUTHORIZATION_CANCELED_TOPIC]
    assert not was_paid(receipt["logs"], authorization, parse_address(chain.token))
