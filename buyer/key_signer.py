"""A signer whose key is in this process's memory."""

from __future__ import annotations

from collections.abc import Sequence

from buyer.signing import Transaction
from contracts.address import Address, address_text
from contracts.evm.agent_wallet import approval_digest
from contracts.nesting import recursion_limit_kept
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization
from contracts.schemes.exact_eip3009 import cancel_digest
from contracts.schemes.gas_sponsoring import Permit, permit_digest
from contracts.schemes.rails import rail_of
from contracts.signature import SigningKey
from contracts.typed_data import Domain

__all__ = ["KeySigner"]


class KeySigner:
    """A key in this process's memory."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._key = SigningKey(secret)

    @property
    def address(self) -> Address:
        """The wallet that pays."""
        return self._key.address

    def sign_authorizations(self, authorizations: Sequence[Authorization], offer: Offer) -> list[bytes]:
        """Return one 65-byte signature for each, in order, made in the way `offer` is paid."""
        digest, sign = rail_of(offer).digest, self._key.sign
        return [sign(digest(authorization, offer)) for authorization in authorizations]

    def sign_cancellations(self, nonces: Sequence[bytes], domain: Domain) -> list[bytes]:
        """Return one signature over `CancelAuthorization` for each nonce, in order."""
        return [self._key.sign(cancel_digest(self.address, nonce, domain)) for nonce in nonces]

    def sign_digest(self, digest: bytes) -> bytes:
        """Return the 65-byte signature over an EIP-712 digest that our own command made."""
        return self._key.sign(digest)

    def sign_approvals(self, digests: Sequence[bytes], domain: Domain) -> list[bytes]:
        """Return one 65-byte signature over an AgentWallet's `Approve` for each 32-byte digest, in order."""
        wallet, chain_id = domain.verifying_contract, domain.chain_id
        return [self._key.sign(approval_digest(wallet, chain_id, digest)) for digest in digests]

    def sign_permit(self, permit: Permit, domain: Domain) -> bytes:
        """Return the 65-byte signature over an EIP-2612 permit of the token in `domain`."""
        return self._key.sign(permit_digest(permit, domain))

    def sign_transaction(self, transaction: Transaction) -> bytes:
        """Return the raw signed transaction."""
        with recursion_limit_kept():
            from eth_account import Account

        signed = Account.sign_transaction(
            {
                "type": 2,
                "chainId": transaction.chain_id,
                "to": address_text(transaction.to),
                "nonce": transaction.nonce,
                "gas": transaction.gas_limit,
                "maxFeePerGas": transaction.max_fee_per_gas,
                "maxPriorityFeePerGas": transaction.max_priority_fee_per_gas,
                "value": 0,
                "data": transaction.data,
            },
            self._secret,
        )
        return bytes(signed.raw_transaction)

    def close(self) -> None:
        """Nothing is held open."""

    def __repr__(self) -> str:
        return f"KeySigner({address_text(self.address)})"
