"""What holds a wallet key, as a protocol. Policy stands in front (`buyer.bounded`), never in here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from contracts.address import Address
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization
from contracts.schemes.gas_sponsoring import Permit
from contracts.typed_data import Domain

__all__ = ["PaymentSigner", "Signer", "Transaction"]


class Transaction(msgspec.Struct, frozen=True):
    """An EIP-1559 transaction without ether: what `approve` and `remove --cancel-onchain` submit."""

    chain_id: int
    to: Address
    nonce: int
    gas_limit: int
    max_fee_per_gas: int
    max_priority_fee_per_gas: int
    data: bytes


class PaymentSigner(Protocol):
    """Signs payments of one address. Every method raises `SignerFailed`."""

    @property
    def address(self) -> Address:
        """The wallet that pays."""

    def sign_authorizations(self, authorizations: Sequence[Authorization], offer: Offer) -> list[bytes]:
        """Return one 65-byte signature for each, in order, made in the way `offer` is paid.

        What a contract wallet signs is longer.
        """


class Signer(PaymentSigner, Protocol):
    """Holds the key of one address."""

    def sign_cancellations(self, nonces: Sequence[bytes], domain: Domain) -> list[bytes]:
        """Return one signature over `CancelAuthorization` for each nonce, in order."""

    def sign_approvals(self, digests: Sequence[bytes], domain: Domain) -> list[bytes]:
        """Return one 65-byte signature over an AgentWallet's `Approve` for each 32-byte digest, in order."""

    def sign_permit(self, permit: Permit, domain: Domain) -> bytes:
        """Return the 65-byte signature over an EIP-2612 permit of the token in `domain`."""

    def sign_transaction(self, transaction: Transaction) -> bytes:
        """Return the raw signed transaction."""

    def close(self) -> None:
        """Let go of the key or the connection."""
