"""The official SDK as oracle for the wire: same headers, same digests, same networks and tokens."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from x402.http import utils as sdk_headers
from x402.mechanisms.evm import V1_NETWORK_CHAIN_IDS
from x402.mechanisms.evm.default_assets import DEFAULT_ASSETS
from x402.mechanisms.evm.eip712 import build_typed_data_for_signing, hash_eip3009_authorization
from x402.mechanisms.evm.types import ExactEIP3009Authorization, ExactEIP3009Payload
from x402.schemas import (
    PaymentPayload,
    PaymentRequired,
    PaymentRequirements,
    ResourceInfo,
    SettleResponse,
    SupportedResponse,
    VerifyResponse,
)
from x402.schemas.v1 import PaymentPayloadV1, PaymentRequiredV1, PaymentRequirementsV1

from contracts import wire
from contracts.address import Address, address_text
from contracts.headers import (
    PAYMENT_SIGNATURE,
    X_PAYMENT,
    decode_payment,
    decode_payment_required,
    decode_settlement_response,
    encode_header,
)
from contracts.networks import ASSETS, Network, parse_network
from contracts.schemes import exact_eip3009
from contracts.schemes.authorization import Authorization
from contracts.signature import SigningKey
from contracts.typed_data import Domain
from contracts.wire import decode_json, encode_json

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

words = st.text(max_size=12)
json_values = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(words, json_values, min_size=1, max_size=3)
addresses = st.binary(min_size=20, max_size=20).map(Address)
uints = st.integers(0, 2**256 - 1)
nonces = st.binary(min_size=32, max_size=32)
authorizations = st.builds(Authorization, addresses, addresses, uints, uints, uints, nonces)
domains = st.builds(Domain, words, words, st.integers(1, 2**64), addresses)


def optional(**members: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=members)


requirements = st.builds(
    lambda required, extra: {**required, **extra},
    st.fixed_dictionaries(
        {
            "scheme": words,
            "network": words,
            "amount": words,
            "asset": words,
            "payTo": words,
            "maxTimeoutSeconds": st.integers(0, 2**31),
        }
    ),
    optional(extra=objects),
)
requirements_v1 = st.builds(
    lambda required, more: {**required, **more},
    st.fixed_dictionaries(
        {
            "scheme": words,
            "network": words,
            "maxAmountRequired": words,
            "resource": words,
            "payTo": words,
            "maxTimeoutSeconds": st.integers(0, 2**31),
            "asset": words,
        }
    ),
    optional(description=words, mimeType=words, outputSchema=objects, extra=objects),
)
resources = st.builds(
    lambda url, more: {"url": url, **more},
    words,
    optional(description=words, mimeType=words, serviceName=words, tags=st.lists(words, max_size=3), iconUrl=words),
)
required = st.builds(
    lambda accepts, more: {"x402Version": 2, "accepts": accepts, **more},
    st.lists(requirements, max_size=3),
    optional(error=words, resource=resources, extensions=objects),
)
required_v1 = st.builds(
    lambda accepts, more: {"x402Version": 1, "accepts": accepts, **more},
    st.lists(requirements_v1, max_size=3),
    optional(error=words),
)
payments = st.builds(
    lambda accepted, payload, more: {"x402Version": 2, "accepted": accepted, "payload": payload, **more},
    requirements,
    objects,
    optional(resource=resources, extensions=objects),
)
payments_v1 = st.builds(
    lambda scheme, network, payload: {"x402Version": 1, "scheme": scheme, "network": network, "payload": payload},
    words,
    words,
    objects,
)
receipts = st.builds(
    lambda required, more: {**required, **more},
    st.fixed_dictionaries({"success": st.booleans(), "transaction": words, "network": words}),
    optional(payer=words, amount=words, errorReason=words, errorMessage=words, extensions=objects, extra=objects),
)
verdicts = st.builds(
    lambda valid, more: {"isValid": valid, **more},
    st.booleans(),
    optional(payer=words, invalidReason=words, invalidMessage=words),
)
supported = st.builds(
    lambda kinds, extensions, signers: {"kinds": kinds, "extensions": extensions, "signers": signers},
    st.lists(
        st.builds(
            lambda version, scheme, network, more: {
                "x402Version": version,
                "scheme": scheme,
                "network": network,
                **more,
            },
            st.integers(1, 2),
            words,
            words,
            optional(extra=objects),
        ),
        max_size=3,
    ),
    st.lists(words, max_size=2),
    st.dictionaries(words, st.lists(words, max_size=2), max_size=2),
)


def theirs(message: BaseModel) -> dict[str, Any]:
    """Return the SDK's message as JSON members; it writes an `extra` that was never set as {}."""
    document = message.model_dump(by_alias=True, exclude_none=True)
    for terms in [document, document.get("accepted"), *document.get("accepts", [])]:
        if terms and terms.get("extra") == {}:
            del terms["extra"]
    return document


def ours(message: msgspec.Struct) -> Any:
    return json.loads(encode_json(message))


def header_of(document: dict[str, Any]) -> str:
    return base64.b64encode(json.dumps(document).encode()).decode()


# Messages and headers: `document` is what travels; each side must read it, and read what the other side wrote of it.


@given(document=required)
def test_the_same_offers_are_read_and_written(document: dict[str, Any]) -> None:
    from_us = encode_header(decode_payment_required(header_of(document)))
    from_them = sdk_headers.encode_payment_required_header(PaymentRequired.model_validate(document))
    read_by_them = sdk_headers.decode_payment_required_header(from_us)
    assert isinstance(read_by_them, PaymentRequired)
    assert theirs(read_by_them) == document
    assert without_empty_extra(ours(decode_payment_required(from_them))) == document


@given(document=payments)
def test_the_same_payment_is_read_and_written(document: dict[str, Any]) -> None:
    from_us = encode_header(decode_payment(PAYMENT_SIGNATURE, header_of(document)))
    from_them = sdk_headers.encode_payment_signature_header(PaymentPayload.model_validate(document))
    read_by_them = sdk_headers.decode_payment_signature_header(from_us)
    assert isinstance(read_by_them, PaymentPayload)
    assert theirs(read_by_them) == document
    assert without_empty_extra(ours(decode_payment(PAYMENT_SIGNATURE, from_them))) == document


@given(document=payments_v1)
def test_the_same_v1_payment_is_read_and_written(document: dict[str, Any]) -> None:
    from_us = encode_header(decode_payment(X_PAYMENT, header_of(document)))
    from_them = sdk_headers.encode_payment_signature_header(PaymentPayloadV1.model_validate(document))
    read_by_them = sdk_headers.decode_payment_signature_header(from_us)
    assert isinstance(read_by_them, PaymentPayloadV1)
    assert theirs(read_by_them) == document
    assert ours(decode_payment(X_PAYMENT, from_them)) == document


@given(document=receipts)
def test_the_same_receipt_is_read_and_written(document: dict[str, Any]) -> None:
    from_us = encode_header(decode_settlement_response(header_of(document)))
    from_them = sdk_headers.encode_payment_response_header(SettleResponse.model_validate(document))
    assert theirs(sdk_headers.decode_payment_response_header(from_us)) == document
    assert ours(decode_settlement_response(from_them)) == document


@pytest.mark.parametrize(
    ("documents", "our_kind", "their_kind"),
    [
        (requirements, wire.Requirements, PaymentRequirements),
        (requirements_v1, wire.RequirementsV1, PaymentRequirementsV1),
        (required_v1, wire.PaymentRequiredV1, PaymentRequiredV1),
        (resources, wire.ResourceInfo, ResourceInfo),
        (verdicts, wire.VerifyResponse, VerifyResponse),
        (supported, wire.SupportedResponse, SupportedResponse),
    ],
    ids=["offer", "v1 offer", "v1 offers", "resource", "verdict", "supported"],
)
@given(data=st.data())
def test_the_same_bodies_are_read_and_written(
    documents: st.SearchStrategy[dict[str, Any]],
    our_kind: type[msgspec.Struct],
    their_kind: type[BaseModel],
    data: st.DataObject,
) -> None:
    document = data.draw(documents)
    from_us = encode_json(decode_json(json.dumps(document).encode(), our_kind, "body"))
    from_them = their_kind.model_validate(document).model_dump_json(by_alias=True, exclude_none=True).encode()
    assert theirs(their_kind.model_validate_json(from_us)) == document
    assert without_empty_extra(ours(decode_json(from_them, our_kind, "body"))) == document


def without_empty_extra(document: dict[str, Any]) -> dict[str, Any]:
    for terms in [document, document.get("accepted"), *document.get("accepts", [])]:
        if terms and terms.get("extra") == {}:
            del terms["extra"]
    return document


def test_a_facilitator_request_of_ours_is_the_sdks() -> None:
    accepted = wire.Requirements(
        scheme="exact", network="eip155:1", amount="1", asset="0x", pay_to="0x", max_timeout_seconds=60, extra={"a": 1}
    )
    payment = wire.PaymentPayload(x402_version=2, accepted=accepted, payload=msgspec.Raw(b'{"signature":"0x"}'))
    request = ours(wire.FacilitatorRequest(x402_version=2, payment_payload=payment, payment_requirements=accepted))
    assert theirs(PaymentPayload.model_validate(request["paymentPayload"])) == request["paymentPayload"]
    assert theirs(PaymentRequirements.model_validate(request["paymentRequirements"])) == request["paymentRequirements"]


# The signed message


def as_theirs(authorization: Authorization) -> ExactEIP3009Authorization:
    stated = exact_eip3009.encode_payload(authorization, b"")["authorization"]
    return ExactEIP3009Authorization(
        from_address=stated["from"],
        to=stated["to"],
        value=stated["value"],
        valid_after=stated["validAfter"],
        valid_before=stated["validBefore"],
        nonce=stated["nonce"],
    )


@given(authorization=authorizations, domain=domains)
def test_digests_equal_the_sdks_and_eth_accounts(authorization: Authorization, domain: Domain) -> None:
    digest = exact_eip3009.transfer_digest(authorization, domain)
    token = (domain.chain_id, address_text(domain.verifying_contract), domain.name, domain.version)
    assert digest == hash_eip3009_authorization(as_theirs(authorization), *token)

    their_domain, types, primary, message = build_typed_data_for_signing(as_theirs(authorization), *token)
    signable = encode_typed_data(
        domain_data={
            "name": their_domain.name,
            "version": their_domain.version,
            "chainId": their_domain.chain_id,
            "verifyingContract": their_domain.verifying_contract,
        },
        message_types={primary: types[primary]},
        message_data=message,
    )
    assert digest == keccak(b"\x19" + signable.version + signable.header + signable.body)


@given(
    authorization=authorizations,
    domain=domains,
    secret=st.integers(1, ORDER - 1).map(lambda secret: secret.to_bytes(32, "big")),
)
def test_the_payload_of_a_signed_authorization_is_the_sdks_byte_for_byte(
    authorization: Authorization, domain: Domain, secret: bytes
) -> None:
    digest = exact_eip3009.transfer_digest(authorization, domain)
    payload = exact_eip3009.encode_payload(authorization, SigningKey(secret).sign(digest))
    signed_by_them = "0x" + bytes(Account.from_key(secret).unsafe_sign_hash(digest).signature).hex()
    assert ExactEIP3009Payload(as_theirs(authorization), signed_by_them).to_dict() == payload
    assert ExactEIP3009Payload.from_dict(payload).to_dict() == payload
    assert exact_eip3009.decode_payload(json.dumps(payload).encode())[0] == authorization


# The tables


def test_the_v1_names_of_networks_are_the_sdks() -> None:
    for name, chain_id in V1_NETWORK_CHAIN_IDS.items():
        assert parse_network(name) == Network(chain_id)


def test_every_token_we_know_is_the_sdks() -> None:
    for chain_id, assets in ASSETS.items():
        known = {asset["asset"].lower(): asset for asset in DEFAULT_ASSETS[f"eip155:{chain_id}"]}
        for asset in assets:
            peer = known["0x" + asset.address.hex()]
            stated = (peer["name"], peer["version"], peer["decimals"], peer["symbol"])
            assert stated == (asset.name, asset.version, asset.decimals, asset.symbol)


def test_what_a_dollar_means_on_a_network_is_what_the_sdk_means() -> None:
    for chain_id, assets in ASSETS.items():
        assert DEFAULT_ASSETS[f"eip155:{chain_id}"][0]["asset"].lower() == "0x" + assets[0].address.hex()
