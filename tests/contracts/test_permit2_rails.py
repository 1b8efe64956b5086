"""The two Permit2 rails: the same digests, payloads and calls as the official SDK, and a named refusal for each lie."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from eth_abi.abi import encode
from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

from contracts.address import Address, address_text, parse_address
from contracts.errors import (
    AmountMismatch,
    FacilitatorMismatch,
    InvalidSignature,
    MalformedMessage,
    NoMatchingOffer,
    PaymentExpired,
    PaymentNotYetValid,
    PaymentRefused,
    RecipientMismatch,
    SpenderMismatch,
    TokenMismatch,
)
from contracts.keccak import keccak
from contracts.money import Asset
from contracts.networks import PERMIT2, X402_EXACT_PROXY, X402_UPTO_PROXY, Network
from contracts.offers import EIP3009, Offer
from contracts.offers import PERMIT2 as BY_PERMIT2
from contracts.schemes import exact_eip3009, exact_permit2, permit2, rails, upto_permit2
from contracts.schemes.authorization import Authorization, Call
from contracts.schemes.permit2 import TokenPermit
from contracts.schemes.rails import Rail
from contracts.signature import SigningKey

KEY = SigningKey(b"\x01" * 32)
TOKEN = Asset(parse_address("0x036CbD53842c5426634e7929541eC2318f3dCF7e"), "USDC", "2", 6, "USDC")
PAYEE = parse_address("0x209693Bc6afc0C5328bA36FaF03C514EF312287C")
FACILITATOR = Address(b"\x11" * 20)
OFFERS = {
    "permit2": Offer("exact", Network(84532), TOKEN, 10_000, PAYEE, 300, BY_PERMIT2),
    "upto": Offer(
        "upto", Network(84532), TOKEN, 10_000, PAYEE, 300, BY_PERMIT2,
        {"facilitatorAddress": address_text(FACILITATOR)},
    ),
}  # fmt: skip
NOW_S = 1_800_000_000

addresses = st.binary(min_size=20, max_size=20).map(Address)
words = st.integers(0, 2**256 - 1)


def authorization_for(rail: str, **change: Any) -> Authorization:
    agreed = Authorization(
        payer=KEY.address,
        payee=PAYEE,
        value_atomic=10_000,
        valid_after_s=0,
        valid_before_s=1_900_000_000,
        nonce=(7).to_bytes(32, "big"),
        facilitator=FACILITATOR if rail == "upto" else None,
    )
    return msgspec.structs.replace(agreed, **change)


@st.composite
def authorizations(draw: st.DrawFn, rail: str) -> Authorization:
    return Authorization(
        payer=draw(addresses),
        payee=draw(addresses),
        value_atomic=draw(words),
        valid_after_s=draw(words),
        valid_before_s=draw(words),
        nonce=draw(st.binary(min_size=32, max_size=32)),
        facilitator=draw(addresses) if rail == "upto" else None,
    )


def typed_data(authorization: Authorization, offer: Offer) -> dict[str, Any]:
    """Return what the SDK's own client gives its signer."""
    from x402.mechanisms.evm.exact.permit2_utils import _build_permit2_typed_data
    from x402.mechanisms.evm.types import ExactPermit2Payload, UptoPermit2Payload
    from x402.mechanisms.evm.upto.client import _build_upto_permit2_typed_data

    payload = rails.rail_of(offer).encode_payload(authorization, b"", offer)
    chain_id = offer.network.chain_id
    if offer.scheme == "upto":
        theirs = UptoPermit2Payload.from_dict(payload).permit2_authorization
        domain, types, primary, message = _build_upto_permit2_typed_data(theirs, chain_id)
    else:
        of_exact = ExactPermit2Payload.from_dict(payload).permit2_authorization
        domain, types, primary, message = _build_permit2_typed_data(of_exact, chain_id)
    members = {kind: [{"name": field.name, "type": field.type} for field in fields] for kind, fields in types.items()}
    return {"domain_data": domain, "message_types": members, "message_data": message, "primary": primary}


@pytest.mark.parametrize(
    ("rail", "digest"),
    [
        ("permit2", "0dd13a29a6bfd4f0b4833266a17bace5bf1d5f4d61c541c96c8cc173e66ba6f1"),
        ("upto", "865148c915dccb8ca70c43766eb04c1c62dfaa21be60f9894532a67427fc5712"),
    ],
)
def test_a_known_payment_has_a_known_digest(rail: str, digest: str) -> None:
    assert rails.rail_named(rail).digest(authorization_for(rail), OFFERS[rail]).hex() == digest


@pytest.mark.parametrize("rail", ["permit2", "upto"])
@given(data=st.data())
def test_digests_equal_the_sdks(rail: str, data: st.DataObject) -> None:
    authorization, offer = data.draw(authorizations(rail)), OFFERS[rail]
    theirs = typed_data(authorization, offer)
    assert theirs.pop("primary") == "PermitWitnessTransferFrom"
    signable = encode_typed_data(**theirs)
    expected = keccak(b"\x19" + signable.version + signable.header + signable.body)
    assert rails.rail_of(offer).digest(authorization, offer) == expected


def test_the_types_hash_to_what_is_published() -> None:
    assert keccak(exact_permit2.PROXY.permit_type).hex().startswith("ebc156cd23678a74")
    assert keccak(upto_permit2.PROXY.permit_type).hex().startswith("51dff6974ad4388c")
    base = "3b6f35e4fce979ef8eac3bcdc8c3fc38fe7911bb0c69c8fe72bf1fd1a17e6f07"
    assert permit2.domain_separator(8453).hex() == base


@pytest.mark.parametrize("rail", ["permit2", "upto"])
@given(data=st.data(), signature=st.binary(max_size=400))
def test_a_payload_is_read_back_as_it_was_written_and_is_the_sdks(
    rail: str, data: st.DataObject, signature: bytes
) -> None:
    from x402.mechanisms.evm.types import ExactPermit2Payload, UptoPermit2Payload

    authorization, offer = data.draw(authorizations(rail)), OFFERS[rail]
    module = rails.rail_of(offer)
    written = module.encode_payload(authorization, signature, offer)
    assert module.decode_payload(json.dumps(written).encode(), offer) == (authorization, signature)
    theirs = UptoPermit2Payload if rail == "upto" else ExactPermit2Payload
    assert theirs.from_dict(written).to_dict() == written


def changed(rail: str, *path: str, to: object) -> bytes:
    payload = rails.rail_named(rail).encode_payload(authorization_for(rail), b"\x01" * 65, OFFERS[rail])
    place = payload["permit2Authorization"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return json.dumps(payload).encode()


@pytest.mark.parametrize("rail", ["permit2", "upto"])
@pytest.mark.parametrize("spender", [PERMIT2, PAYEE, X402_EXACT_PROXY, X402_UPTO_PROXY])
def test_another_spender_is_refused_by_name(rail: str, spender: Address) -> None:
    own = X402_UPTO_PROXY if rail == "upto" else X402_EXACT_PROXY
    payload = changed(rail, "spender", to=address_text(spender))
    if spender == own:
        rails.rail_named(rail).decode_payload(payload, OFFERS[rail])
        return
    with pytest.raises(SpenderMismatch) as refused:
        rails.rail_named(rail).decode_payload(payload, OFFERS[rail])
    assert refused.value.x402_reason == "invalid_permit2_spender"


@pytest.mark.parametrize("rail", ["permit2", "upto"])
def test_another_token_is_refused_by_name(rail: str) -> None:
    with pytest.raises(TokenMismatch) as refused:
        rails.rail_named(rail).decode_payload(changed(rail, "permitted", "token", to=address_text(PAYEE)), OFFERS[rail])
    assert refused.value.x402_reason == "permit2_token_mismatch"


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("nonce",), str(2**256)),
        (("nonce",), "0x07"),
        (("nonce",), 7),
        (("deadline",), "-1"),
        (("permitted", "amount"), "1_000"),
        (("witness", "to"), "0x12"),
        (("witness", "validAfter"), " 0"),
        (("from",), None),
        (("witness",), None),
    ],
)
@pytest.mark.parametrize("rail", ["permit2", "upto"])
def test_a_member_that_does_not_parse_is_malformed(rail: str, path: tuple[str, ...], wrong: object) -> None:
    with pytest.raises(MalformedMessage):
        rails.rail_named(rail).decode_payload(changed(rail, *path, to=wrong), OFFERS[rail])


def test_a_witness_of_the_other_scheme_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match=r"witness\.facilitator"):
        exact_permit2.decode_payload(
            changed("permit2", "witness", "facilitator", to=address_text(PAYEE)), OFFERS["permit2"]
        )
    with pytest.raises(MalformedMessage, match=r"witness\.facilitator"):
        upto_permit2.decode_payload(changed("upto", "witness", "facilitator", to=None), OFFERS["upto"])


def sign(authorization: Authorization, offer: Offer) -> bytes:
    return KEY.sign(rails.rail_of(offer).digest(authorization, offer))


@pytest.mark.parametrize("rail", ["eip3009", "permit2", "upto"])
def test_a_payment_signed_for_the_offer_is_accepted(rail: str) -> None:
    offer = OFFERS.get(rail) or Offer("exact", Network(84532), TOKEN, 10_000, PAYEE, 300)
    authorization = authorization_for(rail)
    rails.check(authorization, sign(authorization, offer), offer, NOW_S, 6)


@pytest.mark.parametrize("rail", ["permit2", "upto"])
def test_the_zero_address_is_refused_before_its_signature_is_looked_at(rail: str) -> None:
    authorization = authorization_for(rail, payer=Address(bytes(20)))
    with pytest.raises(InvalidSignature, match="the zero address"):
        rails.check(authorization, b"", OFFERS[rail], NOW_S, 6)


@pytest.mark.parametrize(
    ("change", "refusal", "reason"),
    [
        ({"payee": Address(b"\x05" * 20)}, RecipientMismatch, "invalid_permit2_recipient_mismatch"),
        ({"value_atomic": 9_999}, AmountMismatch, "permit2_amount_mismatch"),
        ({"value_atomic": 10_001}, AmountMismatch, "permit2_amount_mismatch"),
        ({"valid_before_s": NOW_S + 5}, PaymentExpired, "permit2_deadline_expired"),
        ({"valid_after_s": NOW_S + 1}, PaymentNotYetValid, "permit2_not_yet_valid"),
        ({"payer": Address(bytes(20))}, InvalidSignature, "invalid_permit2_signature"),
    ],
)
@pytest.mark.parametrize("rail", ["permit2", "upto"])
def test_terms_that_are_not_the_offers_are_refused_by_name(
    rail: str, change: dict[str, Any], refusal: type[PaymentRefused], reason: str
) -> None:
    authorization = authorization_for(rail, **change)
    with pytest.raises(refusal) as refused:
        rails.check(authorization, sign(authorization, OFFERS[rail]), OFFERS[rail], NOW_S, 6)
    assert refused.value.x402_reason == reason


@pytest.mark.parametrize("extra", [{}, {"facilitatorAddress": "0x12"}, {"facilitatorAddress": 7}])
def test_an_offer_by_usage_that_names_no_account_to_settle_it_is_malformed(extra: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage, match="facilitatorAddress"):
        upto_permit2.facilitator_of(replace(OFFERS["upto"], extra=extra))


@pytest.mark.parametrize("facilitator", [PAYEE, KEY.address])
def test_a_cap_that_another_account_may_charge_is_refused_by_name(facilitator: Address) -> None:
    authorization = authorization_for("upto", facilitator=facilitator)
    with pytest.raises(FacilitatorMismatch) as refused:
        rails.check(authorization, sign(authorization, OFFERS["upto"]), OFFERS["upto"], NOW_S, 6)
    assert refused.value.x402_reason == "upto_facilitator_mismatch"


@pytest.mark.parametrize("signed_as", ["eip3009", "permit2", "upto"])
@pytest.mark.parametrize("rail", ["eip3009", "permit2", "upto"])
def test_a_signature_for_one_rail_is_worthless_on_another(signed_as: str, rail: str) -> None:
    offers = OFFERS | {"eip3009": Offer("exact", Network(84532), TOKEN, 10_000, PAYEE, 300)}
    signature = KEY.sign(rails.rail_named(signed_as).digest(authorization_for(signed_as), offers[signed_as]))
    authorization = authorization_for(rail)
    if rail == signed_as:
        rails.check(authorization, signature, offers[rail], NOW_S, 6)
        return
    with pytest.raises(InvalidSignature):
        rails.check(authorization, signature, offers[rail], NOW_S, 6)


@pytest.mark.parametrize("chain_id", [8453, 1])
@pytest.mark.parametrize("rail", ["permit2", "upto"])
def test_a_signature_for_another_chain_is_refused(rail: str, chain_id: int) -> None:
    authorization, offer = authorization_for(rail), OFFERS[rail]
    twin = replace(offer, network=Network(chain_id))
    with pytest.raises(InvalidSignature) as refused:
        rails.check(authorization, sign(authorization, twin), offer, NOW_S, 6)
    assert refused.value.x402_reason == "invalid_permit2_signature"


PERMIT = "((address,uint256),uint256,uint256)"
SETTLE = {
    "permit2": ([PERMIT], ["address", "(address,uint256)", "bytes"]),
    "upto": ([PERMIT, "uint256"], ["address", "(address,address,uint256)", "bytes"]),
}


@pytest.mark.parametrize("permit", [None, TokenPermit(77, 88, b"\x0a" * 32 + b"\x0b" * 32 + b"\x1c")])
@pytest.mark.parametrize("rail", ["permit2", "upto"])
@given(data=st.data(), signature=st.binary(max_size=400))
def test_the_call_is_the_one_the_abi_says(
    rail: str, permit: TokenPermit | None, data: st.DataObject, signature: bytes
) -> None:
    authorization = data.draw(authorizations(rail))
    before, after = SETTLE[rail]
    types = before + after
    values: list[Any] = [
        (
            (TOKEN.address_text, authorization.value_atomic),
            int.from_bytes(authorization.nonce, "big"),
            authorization.valid_before_s,
        )
    ]
    witness: list[Any] = [address_text(authorization.payee), authorization.valid_after_s]
    if rail == "upto":
        assert authorization.facilitator is not None
        values.append(1234)
        witness.insert(1, address_text(authorization.facilitator))
    values += [address_text(authorization.payer), tuple(witness), signature]
    name = "settle"
    if permit is not None:
        name = "settleWithPermit"
        types = ["(uint256,uint256,bytes32,bytes32,uint8)", *types]
        values.insert(0, (77, 88, b"\x0a" * 32, b"\x0b" * 32, 28))
    expected = keccak(f"{name}({','.join(types)})".encode())[:4] + encode(types, values)
    module = upto_permit2 if rail == "upto" else exact_permit2
    call = module.settle_call(authorization, signature, TOKEN.address, 1234, permit=permit)
    assert call == Call(X402_UPTO_PROXY if rail == "upto" else X402_EXACT_PROXY, expected)


@given(signature=st.binary(max_size=400))
def test_a_contract_pays_by_the_tokens_overload_for_any_signature(signature: bytes) -> None:
    authorization = authorization_for("eip3009")
    types = ["address", "address", "uint256", "uint256", "uint256", "bytes32", "bytes"]
    values = [
        *(address_text(authorization.payer), address_text(PAYEE), 10_000),
        *(0, 1_900_000_000, authorization.nonce, signature),
    ]  # fmt: skip
    selector = keccak(f"transferWithAuthorization({','.join(types)})".encode())[:4]
    call = exact_eip3009.settle_call(authorization, signature, TOKEN.address, 10_000, contract_payer=True)
    assert call == Call(TOKEN.address, selector + encode(types, values))


def test_each_rail_burns_its_nonces_in_its_own_registry() -> None:
    registries = {name: rails.rail_named(name).registry(TOKEN.address) for name in ("eip3009", "permit2", "upto")}
    assert registries == {"eip3009": TOKEN.address, "permit2": PERMIT2, "upto": PERMIT2}


@pytest.mark.parametrize(
    ("scheme", "method"), [("upto", EIP3009), ("exact", "erc7710"), ("batch-settlement", "permit2")]
)
def test_an_offer_of_an_unknown_rail_is_no_match(scheme: str, method: str) -> None:
    with pytest.raises(NoMatchingOffer, match="no such way of payment"):
        rails.rail_of(Offer(scheme, Network(84532), TOKEN, 1, PAYEE, 300, method))


def test_the_modules_are_rails() -> None:
    modules: list[Rail] = [exact_eip3009, exact_permit2, upto_permit2]
    assert [rails.rail_named(module.NAME) for module in modules] == modules


@given(number=words)
def test_a_nonce_is_one_bit_of_one_word(number: int) -> None:
    word, bit = permit2.word_and_bit(number.to_bytes(32, "big"))
    assert (word << 8) + bit == number
    assert 0 <= bit < 256


def test_revoking_a_word_is_permit2s_own_call() -> None:
    expected = keccak(b"invalidateUnorderedNonces(uint256,uint256)")[:4] + encode(
        ["uint256", "uint256"], [3, 2**256 - 1]
    )
    assert permit2.invalidate_call(3, 2**256 - 1) == Call(PERMIT2, expected)


def test_the_key_of_the_vectors_is_the_documented_one() -> None:
    assert Account.from_key(b"\x01" * 32).address == "0x1a642f0E3c3aF545E7AcBD38b07251B3990914F1"
