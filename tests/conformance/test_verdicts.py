"""One payment, two judges: our checks and the official SDK's facilitator on the same chain.

Every row changes one thing of a good payment. Both sides must accept, or both must refuse for the same reason. The rows
of `DIFFERENCES` are where we are stricter on purpose, or say it in other words, each with its reason.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest
from x402.mechanisms.evm import constants as sdk_constants
from x402.mechanisms.evm.exact import facilitator as sdk_facilitator
from x402.schemas import PaymentPayload, PaymentRequirements, SchemeNotFoundError, VerifyResponse

from contracts.address import Address, address_text, parse_address
from contracts.errors import (
    ContractPayer,
    FareboxError,
    InsufficientFunds,
    InvalidSignature,
    PaymentRefused,
    PaymentReplayed,
)
from contracts.evm.devnet import DevAccount, Devnet
from contracts.headers import PAYMENT_SIGNATURE, decode_payment
from contracts.money import Asset
from contracts.networks import Network
from contracts.offers import Offer, match_offer, requirements
from contracts.schemes.authorization import Authorization
from contracts.schemes.exact_eip3009 import decode_payload, encode_payload, transfer_call, transfer_digest
from contracts.schemes.rails import check
from contracts.signature import SigningKey
from contracts.wire import PaymentPayload as OurPayload
from tests.conformance.sdk_peers import facilitator
from tests.patience import PATIENCE_S

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
PRICE_ATOMIC = 1000
# The SDK's fixed margin before validBefore.
MARGIN_S = 6
ACCEPTED = "accepted"


@dataclass
class Case:
    """A good payment that a row then spoils. Signing happens after `authorization`, before the wire changes."""

    offer: Offer
    authorization: Authorization
    key: SigningKey
    now_s: int
    signed_offer: Offer | None = None
    signature_change: Callable[[bytes], bytes] = field(default=lambda signature: signature)
    wire_change: Callable[[dict[str, Any]], None] = field(default=lambda payload: None)

    def payment(self) -> dict[str, Any]:
        """Return the PaymentPayload as JSON members."""
        domain = (self.signed_offer or self.offer).domain
        signature = self.signature_change(self.key.sign(transfer_digest(self.authorization, domain)))
        document: dict[str, Any] = {
            "x402Version": 2,
            "accepted": msgspec.to_builtins(requirements(self.offer)),
            "payload": encode_payload(self.authorization, signature),
        }
        self.wire_change(document)
        return document


Row = Callable[[Case], Case]


def authorizing(**changes: Any) -> Row:
    return lambda case: replace(case, authorization=msgspec.structs.replace(case.authorization, **changes))


def timed(member: str, offset_s: int) -> Row:
    return lambda case: authorizing(**{member: case.now_s + offset_s})(case)


def signing(change: Callable[[bytes], bytes]) -> Row:
    return lambda case: replace(case, signature_change=change)


def signed_for(**asset_changes: Any) -> Row:
    return lambda case: replace(
        case, signed_offer=replace(case.offer, asset=replace(case.offer.asset, **asset_changes))
    )


def written(member: str, spelling: Callable[[str], Any]) -> Row:
    def change(document: dict[str, Any]) -> None:
        stated = document["payload"]["authorization"]
        stated[member] = spelling(stated[member])

    return lambda case: replace(case, wire_change=change)


def written_signature(spelling: Callable[[str], Any]) -> Row:
    def change(document: dict[str, Any]) -> None:
        document["payload"]["signature"] = spelling(document["payload"]["signature"])

    return lambda case: replace(case, wire_change=change)


def accepting(member: str, value: Any) -> Row:
    def change(document: dict[str, Any]) -> None:
        document["accepted"][member] = value

    return lambda case: replace(case, wire_change=change)


def high_s(signature: bytes) -> bytes:
    s = ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes((55 - signature[64],))


def with_v(v: int) -> Callable[[bytes], bytes]:
    return lambda signature: signature[:64] + bytes((v,))


STRANGER = Address(b"\x11" * 20)

SAME: dict[str, Row] = {
    "nothing": lambda case: case,
    "the payee": authorizing(payee=STRANGER),
    "the payee to nobody": authorizing(payee=Address(bytes(20))),
    "one unit less": authorizing(value_atomic=PRICE_ATOMIC - 1),
    "one unit more": authorizing(value_atomic=PRICE_ATOMIC + 1),
    "no value": authorizing(value_atomic=0),
    "the largest value": authorizing(value_atomic=2**256 - 1),
    "expiry long past": timed("valid_before_s", -3600),
    "expiry now": timed("valid_before_s", 0),
    "expiry one second inside the margin": timed("valid_before_s", MARGIN_S - 1),
    "expiry on the margin": timed("valid_before_s", MARGIN_S),
    "expiry in a month": timed("valid_before_s", 30 * 86_400),
    "expiry at the end of time": authorizing(valid_before_s=2**256 - 1),
    "start a second ahead": timed("valid_after_s", 1),
    "start at the end of time": authorizing(valid_after_s=2**256 - 1),
    "start ten minutes ago": timed("valid_after_s", -600),
    "another payer than the signer": authorizing(payer=STRANGER),
    "another token name": signed_for(name="USD Coin"),
    "another token version": signed_for(version="1"),
    "another token": signed_for(address=STRANGER),
    "a flipped bit of r": signing(lambda signature: bytes((signature[0] ^ 1,)) + signature[1:]),
    "a flipped bit of s": signing(lambda signature: signature[:63] + bytes((signature[63] ^ 1,)) + signature[64:]),
    "the other parity": signing(lambda signature: signature[:64] + bytes((55 - signature[64],))),
    "v as 0 or 1": signing(lambda signature: signature[:64] + bytes((signature[64] - 27,))),
    "r zero": signing(lambda signature: bytes(32) + signature[32:]),
    "s zero": signing(lambda signature: signature[:32] + bytes(32) + signature[64:]),
    "all bytes zero but v": signing(lambda signature: bytes(64) + signature[64:]),
    "the nonce in upper case": written("nonce", lambda text: "0x" + text[2:].upper()),
    "the signature in upper case": written_signature(lambda text: "0x" + text[2:].upper()),
}

# What we answer and what the SDK answers, by the reason why they differ.
MALFORMED = "malformed"
NOT_SIMULATED = "invalid_exact_evm_transaction_simulation_failed"
DIFFERENCES: dict[str, tuple[Row, str, str]] = {
    # One spelling a number: Python's int() reads more than the specification allows.
    "an underscore in a number": (written("value", lambda text: f"{text[0]}_{text[1:]}"), MALFORMED, ACCEPTED),
    "spaces round a number": (written("validBefore", lambda text: f" {text} "), MALFORMED, ACCEPTED),
    "a plus sign": (written("value", lambda text: f"+{text}"), MALFORMED, ACCEPTED),
    "a leading zero": (written("value", lambda text: f"0{text}"), MALFORMED, ACCEPTED),
    "full-width digits": (
        written("value", lambda text: "".join(chr(ord(digit) + 0xFEE0) for digit in text)),
        MALFORMED,
        ACCEPTED,
    ),
    # One spelling of bytes: 0x is part of it.
    "a nonce without 0x": (written("nonce", lambda text: text[2:]), MALFORMED, ACCEPTED),
    "a signature without 0x": (written_signature(lambda text: text[2:]), MALFORMED, ACCEPTED),
    # A payment that does not parse is a 400 here, whatever the SDK calls the step at which it noticed.
    "a short nonce": (
        written("nonce", lambda text: text[:-2]),
        MALFORMED,
        "invalid_exact_evm_payload_signature",
    ),
    "a signature that is no hex": (
        written_signature(lambda text: text[:-1] + "z"),
        MALFORMED,
        "invalid_exact_evm_failed_to_verify_signature",
    ),
    # Letter case decides nothing here. The SDK's facilitator hands the text to web3.py, which wants EIP-55; so we write
    # EIP-55.
    "the payer in lower case": (written("from", str.lower), ACCEPTED, NOT_SIMULATED),
    "the payee in lower case": (written("to", str.lower), ACCEPTED, NOT_SIMULATED),
    # The SDK leaves it to the token to refuse s in the upper half.
    "s in the upper half": (signing(high_s), "invalid_exact_evm_payload_signature", NOT_SIMULATED),
    # Only 65 bytes can be an account's signature; the SDK suspects an undeployed wallet behind any other length.
    "64 bytes": (
        signing(lambda signature: signature[:64]),
        "invalid_exact_evm_payload_signature",
        "invalid_exact_evm_payload_undeployed_smart_wallet",
    ),
    "66 bytes": (
        signing(lambda signature: signature + b"\x00"),
        "invalid_exact_evm_payload_signature",
        "invalid_exact_evm_payload_undeployed_smart_wallet",
    ),
    "no signature": (
        signing(lambda _signature: b""),
        "invalid_exact_evm_payload_signature",
        "invalid_exact_evm_payload_undeployed_smart_wallet",
    ),
    # The SDK's recovery raises on a v it does not know; the verdict is the same.
    "v of 29": (
        signing(with_v(29)),
        "invalid_exact_evm_payload_signature",
        "invalid_exact_evm_failed_to_verify_signature",
    ),
    # The SDK's facilitator trusts the server to have matched the echo, and looks at scheme and network alone.
    "another price echoed": (accepting("amount", "1"), "invalid_payment_requirements", ACCEPTED),
    "another payee echoed": (accepting("payTo", "0x" + "11" * 20), "invalid_payment_requirements", ACCEPTED),
    "another scheme echoed": (accepting("scheme", "upto"), "invalid_payment_requirements", "unsupported_payload_type"),
    "another network echoed": (accepting("network", "eip155:1"), "invalid_payment_requirements", "network_mismatch"),
}


@pytest.fixture
def case(chain: Devnet, payer: DevAccount, pay_to: str) -> Case:
    asset = Asset(parse_address(chain.token), "USDC", "2", 6, "USDC")
    offer = Offer("exact", Network(chain.chain_id), asset, PRICE_ATOMIC, parse_address(pay_to), 60)
    # Ahead of the chain, so that a slow machine does not let the chain's clock pass a limit set by the judges'.
    now_s = int(time.time()) + 50
    key = SigningKey(payer.key)
    authorization = Authorization(key.address, offer.pay_to, PRICE_ATOMIC, 0, now_s + 3600, secrets.token_bytes(32))
    return Case(offer, authorization, key, now_s)


@pytest.fixture
def same_second(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Show the SDK the second that we are given as an argument."""

    class Clock:
        @staticmethod
        def time() -> float:
            return float(case.now_s)

    monkeypatch.setattr(sdk_facilitator, "time", Clock)


def our_verdict(case: Case) -> str:
    try:
        payment = decode_payment(PAYMENT_SIGNATURE, base64.b64encode(json.dumps(case.payment()).encode()))
        assert isinstance(payment, OurPayload)
        offer = match_offer(payment.accepted, [case.offer])
        authorization, signature = decode_payload(payment.payload)
        check(authorization, signature, offer, case.now_s, MARGIN_S)
    except FareboxError as error:
        return MALFORMED if error.http_status == 400 else str(getattr(error, "x402_reason", error.code))
    return ACCEPTED


async def their_verdict(chain: Devnet, case: Case) -> str:
    payload = PaymentPayload.model_validate(case.payment())
    terms = PaymentRequirements.model_validate(msgspec.to_builtins(requirements(case.offer)))
    try:
        answer: VerifyResponse = await facilitator(chain, chain.accounts[1]).verify(payload, terms)
    except SchemeNotFoundError:
        return "no such scheme"
    return ACCEPTED if answer.is_valid else str(answer.invalid_reason)


@pytest.mark.usefixtures("same_second")
@pytest.mark.parametrize("row", SAME.values(), ids=SAME)
async def test_both_judges_give_the_same_verdict_for_the_same_reason(chain: Devnet, case: Case, row: Row) -> None:
    changed = row(case)
    assert our_verdict(changed) == await their_verdict(chain, changed)


@pytest.mark.usefixtures("same_second")
@pytest.mark.parametrize(("row", "ours", "theirs"), DIFFERENCES.values(), ids=DIFFERENCES)
async def test_the_judges_differ_only_where_it_is_written_down(
    chain: Devnet, case: Case, row: Row, ours: str, theirs: str
) -> None:
    changed = row(case)
    assert (our_verdict(changed), await their_verdict(chain, changed)) == (ours, theirs)


# What only the chain knows: `check` cannot tell, so the error we raise elsewhere must carry the SDK's reason.


async def test_a_used_authorization_is_refused_with_our_word_for_it(chain: Devnet, case: Case) -> None:
    settle_by_hand(chain, case)
    assert our_verdict(case) == ACCEPTED
    assert await their_verdict(chain, case) == PaymentReplayed.x402_reason


async def test_an_empty_purse_is_refused_in_the_specifications_word_by_us_and_in_a_longer_one_by_the_sdk(
    chain: Devnet, case: Case
) -> None:
    poor = SigningKey(secrets.token_bytes(32))
    unfunded = replace(case, key=poor, authorization=msgspec.structs.replace(case.authorization, payer=poor.address))
    assert our_verdict(unfunded) == ACCEPTED
    assert await their_verdict(chain, unfunded) == "invalid_exact_evm_insufficient_balance"
    assert InsufficientFunds.x402_reason == "insufficient_funds"


async def test_a_payer_with_code_is_refused_by_the_sdk_on_the_chains_word(chain: Devnet, case: Case) -> None:
    chain.rpc("anvil_setCode", address_text(case.key.address), "0x60006000fd")
    assert our_verdict(case) == ACCEPTED
    assert await their_verdict(chain, case) == NOT_SIMULATED
    assert ContractPayer.x402_reason == InvalidSignature.x402_reason


def settle_by_hand(chain: Devnet, case: Case) -> None:
    data = transfer_call(case.authorization, case.key.sign(transfer_digest(case.authorization, case.offer.domain)))
    transaction = {"from": chain.accounts[9].address, "to": chain.token, "data": "0x" + data.hex()}
    sent = chain.rpc("eth_sendTransaction", transaction)
    deadline = time.monotonic() + PATIENCE_S
    while (receipt := chain.rpc("eth_getTransactionReceipt", sent)) is None:
        assert time.monotonic() < deadline, "the transaction was not mined"
    assert receipt["status"] == "0x1"


# The specification's reasons that the SDK's EVM code does not use itself.
SPECIFIED = {
    "extension_echo_mismatch",
    "insufficient_funds",
    "invalid_payload",
    "invalid_payment_requirements",
    "unexpected_settle_error",
}


def test_every_reason_we_give_is_one_that_other_implementations_know() -> None:
    known = {value for name, value in vars(sdk_constants).items() if name.startswith("ERR_")} | SPECIFIED
    assert {kind.x402_reason for kind in all_refusals()} <= known


def all_refusals() -> list[type[PaymentRefused]]:
    found, kinds = [], [PaymentRefused]
    while kinds:
        kind = kinds.pop()
        found.append(kind)
        kinds += kind.__subclasses__()
    return found
