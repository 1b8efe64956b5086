"""`verify`: from the bytes of a payment header to the verdict on its signature, against the curve alone and peers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from coincurve import PublicKey
from coincurve._libsecp256k1 import ffi, lib  # type: ignore[import-not-found, unused-ignore]
from coincurve.context import GLOBAL_CONTEXT

from bench.harness import Call, Plan, measure
from bench.report import Report, Target, row
from bench.workload import SignedPayment, an_offer, keys, sign_payments, typed_data
from contracts.address import address_text
from contracts.headers import PAYMENT_SIGNATURE, decode_payment
from contracts.limits import EXPIRY_MARGIN_S
from contracts.nesting import recursion_limit_kept
from contracts.offers import PERMIT2, Offer, requirements
from contracts.schemes.exact_eip3009 import transfer_digest
from contracts.signature import recover
from seller.verify import verify

__all__ = ["raw_recover", "run"]

RAW = "libsecp256k1 recover, C call alone"
OURS = "Farebox: header to verdict"
OURS_SIGNATURE = "Farebox: digest and recover alone"
COINCURVE = "coincurve: recover alone"
ETH_ACCOUNT = "eth-account: encode and recover"
SDK = "official SDK: header to verdict, chain stand-in"
SDK_SIGNATURE = "official SDK: signature alone, chain stand-in"
OURS_PERMIT2 = "Farebox, Permit2: header to verdict"
SDK_PERMIT2 = "official SDK, Permit2: header to verdict, chain stand-in"

_PAYMENTS, _PAYERS = 256, 16


def run(plan: Plan) -> Report:
    """Measure local verification."""
    offer = an_offer()
    payments = sign_payments(offer, keys(_PAYERS), _PAYMENTS)
    samples = measure([*_cases(offer, payments), *_permit2_cases()], plan)
    ours = row(OURS, samples, RAW)
    assert ours.ratio is not None
    return Report(
        bench="verify",
        title="one payment header verified locally, without the chain",
        rounds=plan.rounds,
        rows=[row(name, samples, RAW) for name in samples],
        targets=[Target("local verify against raw libsecp256k1 recover", "at most", 1.3, ours.ratio)],
        notes=[
            f"{_PAYMENTS} payments of {_PAYERS} payers in turn; every verdict is checked once before the clock starts.",
            "Stand-in: the official SDK asks the chain for the payer's code and simulates; here both answer at once.",
            "A Permit2 payment has a third hash to make, for its witness and its token, and is longer.",
        ],
    )


def _cases(offer: Offer, payments: Sequence[SignedPayment]) -> list[Call]:
    now_s = int(time.time())
    digests = [transfer_digest(payment.authorization, offer.domain) for payment in payments]
    headers = [payment.header.encode() for payment in payments]
    documents = [typed_data(payment.authorization, offer) for payment in payments]

    def ours(index: int) -> bytes:
        payment = decode_payment(PAYMENT_SIGNATURE, headers[index % _PAYMENTS])
        return verify(payment, [offer], now_s, EXPIRY_MARGIN_S).authorization.payer

    def ours_signature(index: int) -> bytes:
        payment = payments[index % _PAYMENTS]
        return recover(transfer_digest(payment.authorization, offer.domain), payment.signature)

    def coincurve(index: int) -> PublicKey:
        signature = payments[index % _PAYMENTS].signature
        compact = signature[:64] + bytes((signature[64] - 27,))
        return PublicKey.from_signature_and_message(compact, digests[index % _PAYMENTS], hasher=None)

    # Peers that are only imported must not change how fast others are.
    with recursion_limit_kept():
        from eth_account import Account
        from eth_account.messages import encode_typed_data

    def eth_account(index: int) -> str:
        message = encode_typed_data(full_message=documents[index % _PAYMENTS])
        signer: str = Account.recover_message(message, signature=payments[index % _PAYMENTS].signature)
        return signer

    for index, payment in enumerate(payments):
        payer = payment.authorization.payer
        assert ours(index) == ours_signature(index) == payer
        assert eth_account(index) == address_text(payer)
    return [
        Call(RAW, raw_recover(digests, [payment.signature for payment in payments])),
        Call(COINCURVE, coincurve),
        Call(OURS_SIGNATURE, ours_signature),
        Call(OURS, ours),
        Call(ETH_ACCOUNT, eth_account),
        Call(SDK_SIGNATURE, _sdk_signature(offer, payments)),
        Call(SDK, _sdk_verdict(offer, payments)),
    ]


def _permit2_cases() -> list[Call]:
    """The same for `exact` over Permit2. General libraries have no path of their own for it."""
    offer = an_offer(PERMIT2)
    payments = sign_payments(offer, keys(_PAYERS), _PAYMENTS)
    headers = [payment.header.encode() for payment in payments]
    now_s = int(time.time())

    def ours(index: int) -> bytes:
        payment = decode_payment(PAYMENT_SIGNATURE, headers[index % _PAYMENTS])
        return verify(payment, [offer], now_s, EXPIRY_MARGIN_S).authorization.payer

    assert all(ours(index) == payment.authorization.payer for index, payment in enumerate(payments))
    return [Call(OURS_PERMIT2, ours), Call(SDK_PERMIT2, _sdk_verdict(offer, payments))]


def raw_recover(digests: Sequence[bytes], signatures: Sequence[bytes]) -> Callable[[int], object]:
    """Return the C call that no verification can do without, on signatures that are parsed already."""
    context, call = GLOBAL_CONTEXT.ctx, lib.secp256k1_ecdsa_recover
    public_key = ffi.new("secp256k1_pubkey *")
    parsed = [ffi.new("secp256k1_ecdsa_recoverable_signature *") for _ in signatures]
    for one, signature, message in zip(parsed, signatures, digests, strict=True):
        compact, recovery_id = signature[:64], signature[64] - 27
        assert lib.secp256k1_ecdsa_recoverable_signature_parse_compact(context, one, compact, recovery_id)
        assert call(context, public_key, one, message)
    count = len(parsed)
    return lambda index: call(context, public_key, parsed[index % count], digests[index % count])


class _ChainStandIn:
    """Answers the SDK's questions to the chain at once: only the token has code, and everybody has enough of it."""

    def __init__(self, token: str) -> None:
        self._token = token

    def get_code(self, address: str) -> bytes:
        return b"\x01" if address == self._token else b""

    def read_contract(self, *_: object) -> int:
        """Simulate nothing; every balance and allowance is large."""
        return 10**30


def _sdk_verdict(offer: Offer, payments: Sequence[SignedPayment]) -> Callable[[int], bool]:
    with recursion_limit_kept():
        from x402.http.utils import decode_payment_signature_header
        from x402.mechanisms.evm.exact import ExactEvmFacilitatorScheme
        from x402.schemas import PaymentRequirements

    chain: Any = _ChainStandIn(offer.asset.address_text)
    scheme = ExactEvmFacilitatorScheme(chain)
    wanted = PaymentRequirements.model_validate(msgspec.to_builtins(requirements(offer)))
    headers = [payment.header for payment in payments]

    def verdict(index: int) -> bool:
        payment: Any = decode_payment_signature_header(headers[index % _PAYMENTS])
        return payment.accepted == wanted and scheme.verify(payment, wanted).is_valid

    assert all(verdict(index) for index in range(len(payments)))
    return verdict


def _sdk_signature(offer: Offer, payments: Sequence[SignedPayment]) -> Callable[[int], bool]:
    with recursion_limit_kept():
        from x402.http.utils import decode_payment_signature_header
        from x402.mechanisms.evm.exact.eip3009_utils import classify_eip3009_signature
        from x402.mechanisms.evm.types import ExactEIP3009Payload

    chain: Any = _ChainStandIn(offer.asset.address_text)
    decoded = [decode_payment_signature_header(payment.header) for payment in payments]
    authorizations = [ExactEIP3009Payload.from_dict(each.payload).authorization for each in decoded]

    def signature(index: int) -> bool:
        return classify_eip3009_signature(
            chain,
            authorizations[index % _PAYMENTS],
            payments[index % _PAYMENTS].signature,
            offer.network.chain_id,
            offer.asset.address_text,
            offer.asset.name,
            offer.asset.version,
        ).valid

    assert all(signature(index) for index in range(len(payments)))
    return signature
