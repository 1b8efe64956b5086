"""Acts of an owner who signs and pays no gas: requests through the wallet's ERC-2771 forwarder, sent by a relay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import msgspec

from buyer.limits import FORWARD_LIFE_S
from buyer.signing import Signer, Transaction
from buyer.transact import next_nonce
from contracts.address import ZERO, Address
from contracts.errors import TermsNotAllowed, UsageError
from contracts.evm.forwarder import Forwarder, ForwardRequest, forward_call, read_forwarder
from contracts.evm.rpc import Rpc
from contracts.evm.token import read_head
from contracts.schemes.authorization import Call

__all__ = ["Forwarding", "forward", "sign_requests"]

# What the forwarder itself needs beside the call it makes, of which it hands on 63 parts of 64.
_OVERHEAD_GAS = 60_000


@runtime_checkable
class _DigestSigner(Protocol):
    def sign_digest(self, digest: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Forwarding:
    """The requests that an owner signs, one for each transaction of the relay."""

    forwarder: Forwarder
    requests: tuple[ForwardRequest, ...]


async def forward(
    rpc: Rpc, forwarder: Address, owner: Signer, relay: Signer, direct: Sequence[Transaction]
) -> tuple[Forwarding, list[Transaction]]:
    """Turn the owner's own transactions into requests, and transactions of the relay that lack only signatures.

    Raises `TermsNotAllowed` for a wallet without a forwarder, `UsageError` for a signer that signs no requests.
    """
    if forwarder == ZERO:
        raise TermsNotAllowed(
            "this wallet was created without a forwarder", remedy="leave --relay out and pay the gas with the owner"
        )
    if not isinstance(owner, _DigestSigner):
        raise UsageError("--signer: this kind of signer signs no forwarded requests", remedy="leave --relay out")
    known = await read_forwarder(rpc, forwarder, owner.address)
    deadline_s = (await read_head(rpc)).timestamp_s + FORWARD_LIFE_S
    requests = tuple(
        ForwardRequest(owner.address, Call(each.to, each.data), each.gas_limit, known.nonce + number, deadline_s)
        for number, each in enumerate(direct)
    )
    nonce = await next_nonce(rpc, relay.address)
    transactions = [
        msgspec.structs.replace(
            each,
            to=known.address,
            nonce=nonce + number,
            gas_limit=each.gas_limit * 64 // 63 + _OVERHEAD_GAS,
            data=b"",
        )
        for number, each in enumerate(direct)
    ]
    return Forwarding(known, requests), transactions


def sign_requests(forwarding: Forwarding, owner: Signer, transactions: Sequence[Transaction]) -> list[Transaction]:
    """Return the relay's transactions with the owner's signed requests in them. Raises `SignerFailed`."""
    assert isinstance(owner, _DigestSigner)
    forwarder = forwarding.forwarder
    return [
        msgspec.structs.replace(
            transaction,
            data=forward_call(forwarder.address, request, owner.sign_digest(request.digest(forwarder.domain))).data,
        )
        for transaction, request in zip(transactions, forwarding.requests, strict=True)
    ]
