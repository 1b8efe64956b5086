"""`sign`: pre-signing a pool, against the curve alone, eth-account and the official SDK's signer."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from coincurve import PrivateKey
from coincurve._libsecp256k1 import ffi, lib  # type: ignore[import-not-found, unused-ignore]
from coincurve.context import GLOBAL_CONTEXT

from bench.harness import Call, Plan, Slice, measure
from bench.report import Report, Target, ratio_of, row
from bench.workload import LIFE_S, an_offer, presign, typed_data
from buyer.home import Home
from buyer.pool import Pool
from buyer.signers import KeySigner
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization
from contracts.schemes.exact_eip3009 import transfer_digest
from contracts.signature import SigningKey

__all__ = ["run"]

RAW = "libsecp256k1 sign, C call alone"
SIGN = "Farebox: digest and sign"
POOL = "Farebox: pre-sign into the pool"
ETH_ACCOUNT = "eth-account: sign typed data"
SDK = "official SDK: its eth-account signer"

# What one pre-signing run holds, as in the promise.
_BATCH = 1000
_SECRET = b"\x01" * 32


def run(plan: Plan) -> Report:
    """Measure signing."""
    offer = an_offer()
    folder = Path(tempfile.mkdtemp(prefix="farebox-bench-"))
    pool = Pool.open(Home.open(folder))
    try:
        samples = measure([*_calls(offer), _Presign(pool, offer, quick=plan.quick)], plan)
    finally:
        pool.close()
        shutil.rmtree(folder)
    signing, pooling = (ratio_of(samples[ETH_ACCOUNT].cpu_us, samples[name].cpu_us) for name in (SIGN, POOL))
    return Report(
        bench="sign",
        title="one authorization signed",
        rounds=plan.rounds,
        rows=[row(name, samples, RAW, rate=True) for name in samples],
        targets=[
            Target(
                f"pre-sign {_BATCH:,}: nonce, digest, signature; times faster than eth-account", "at least", 10, signing
            ),
            Target(f"pre-sign {_BATCH:,} into the pool, where eth-account still only signs", "at least", 10, pooling),
        ],
        notes=[
            "The pool row is all of `farebox buy` after its questions to the chain: caps, intents, signatures checked,",
            "synced writes. Digest and sign is what eth-account and the SDK do in their rows.",
        ],
    )


class _Presign:
    """Signs batches into a pool on disk, as `farebox buy` does."""

    name = POOL

    def __init__(self, pool: Pool, offer: Offer, *, quick: bool) -> None:
        self._pool, self._offer = pool, offer
        self._batch = 50 if quick else _BATCH
        self._signer = KeySigner(_SECRET)

    def run(self, count: int) -> Slice:
        """Sign at least `count`, in whole batches."""
        batches = -(-count // self._batch)
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        for _ in range(batches):
            presign(self._pool, self._offer, self._signer, self._batch)
        return Slice(batches * self._batch, time.process_time() - cpu_s, time.perf_counter() - wall_s)


def _calls(offer: Offer) -> list[Call]:
    from eth_account import Account
    from x402.mechanisms.evm import eip712
    from x402.mechanisms.evm.signers import EthAccountSigner
    from x402.mechanisms.evm.types import ExactEIP3009Authorization

    key, raw_key = SigningKey(_SECRET), PrivateKey(_SECRET)
    account = Account.from_key(_SECRET)
    sdk = EthAccountSigner(account)
    valid_before_s = int(time.time()) + LIFE_S

    def new() -> Authorization:
        return Authorization(key.address, offer.pay_to, offer.amount_atomic, 0, valid_before_s, secrets.token_bytes(32))

    def ours(_: int) -> bytes:
        return key.sign(transfer_digest(new(), offer.domain))

    def eth_account(_: int) -> bytes:
        return bytes(account.sign_typed_data(full_message=typed_data(new(), offer)).signature)

    def official(_: int) -> bytes:
        authorization = new()
        document: dict[str, Any] = typed_data(authorization, offer)["message"]
        wire = ExactEIP3009Authorization(
            from_address=document["from"],
            to=document["to"],
            value=str(authorization.value_atomic),
            valid_after="0",
            valid_before=str(valid_before_s),
            nonce="0x" + authorization.nonce.hex(),
        )
        asset = offer.asset
        domain, types, primary_type, message = eip712.build_typed_data_for_signing(
            wire, offer.network.chain_id, asset.address_text, asset.name, asset.version
        )
        # The SDK's own types disagree with each other here.
        sign: Any = sdk.sign_typed_data
        signature: bytes = sign(domain, types, primary_type, message)
        return signature

    one = new()
    signed = account.sign_typed_data(full_message=typed_data(one, offer)).signature
    assert bytes(signed) == key.sign(transfer_digest(one, offer.domain))
    message, made = transfer_digest(one, offer.domain), ffi.new("secp256k1_ecdsa_recoverable_signature *")
    context, call, secret = GLOBAL_CONTEXT.ctx, lib.secp256k1_ecdsa_sign_recoverable, raw_key.secret
    assert call(context, made, message, secret, ffi.NULL, ffi.NULL)
    return [
        Call(RAW, lambda _: call(context, made, message, secret, ffi.NULL, ffi.NULL)),
        Call(SIGN, ours),
        Call(ETH_ACCOUNT, eth_account),
        Call(SDK, official),
    ]
