"""Whether a payer vouches for a signature that its key did not make: contract wallets (ERC-1271, EIP-7702, ERC-6492).

An account with code is asked, always: neither the length of a signature nor a key's recovery says anything for it,
because the token asks it, too. Its code is a stranger's, so it is called with little gas and from nobody's address, and
not without end: garbage for wallets costs us a bounded number of questions.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from contracts.address import Address, address_text
from contracts.errors import ChainUnavailable, ContractPayer, FactoryNotAllowed, InvalidSignature, MalformedMessage
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.keccak import keccak
from contracts.schemes.erc6492 import bare, unwrap
from contracts.schemes.rails import rail_of
from contracts.typed_data import padded_bytes, word_of_uint
from seller.bucket import Bucket
from seller.limits import GAS_PER_SIGNATURE_CHECK, WALLET_QUESTIONS_MAX, WALLET_QUESTIONS_PER_S
from seller.settlement.calls import payment_calls, refusal_of
from seller.verify import VerifiedPayment

__all__ = ["Wallets"]

_IS_VALID_SIGNATURE = keccak(b"isValidSignature(bytes32,bytes)")[:4]
# The first four bytes of the answer, which is that selector again.
_VALID = "0x1626ba7e"


class Wallets:
    """Asks contract wallets. `factories` may deploy those that pay before they exist."""

    def __init__(self, rpc: Rpc, factories: AbstractSet[Address]) -> None:
        self._rpc = rpc
        self._factories = factories
        self._questions = Bucket(WALLET_QUESTIONS_MAX, WALLET_QUESTIONS_PER_S)

    def take_question(self) -> None:
        """Count one question that an unproven payment costs. Raises `ChainUnavailable` while there are too many."""
        if not self._questions.take():
            raise ChainUnavailable("too many signatures of contract wallets are to be checked", remedy="try again")

    async def vouch(self, payment: VerifiedPayment) -> None:
        """Ask the payer, which has code, for its word on the signature. Raises `ContractPayer`, `ChainUnavailable`."""
        self.take_question()
        digest = rail_of(payment.offer).digest(payment.authorization, payment.offer)
        payer = address_text(payment.authorization.payer)
        data = _IS_VALID_SIGNATURE + digest + word_of_uint(64) + padded_bytes(bare(payment.signature))
        request = {"to": payer, "data": "0x" + data.hex(), "gas": hex(GAS_PER_SIGNATURE_CHECK)}
        try:
            answer = await self._rpc.call("eth_call", request, "latest")
        except RpcRefused:
            answer = ""
        if not isinstance(answer, str) or answer.lower()[:10] != _VALID or len(answer) != 66:
            raise ContractPayer(f"payload.signature: the contract at {payer} does not vouch for it")

    async def check_undeployed(self, payment: VerifiedPayment) -> None:
        """Check a wallet that is deployed on the way: its signature is wrapped with its factory's call (ERC-6492).

        Raises `InvalidSignature`, `FactoryNotAllowed`, `ContractPayer` or `ChainUnavailable`.
        """
        try:
            wrapped = unwrap(payment.signature)
        except MalformedMessage as error:
            raise InvalidSignature(error.message) from None
        assert wrapped is not None, "only wrapped signatures come here"
        if wrapped.deployment.to not in self._factories:
            raise FactoryNotAllowed(
                f"payload.signature: the wallet is not deployed, and its factory {address_text(wrapped.deployment.to)} "
                "is not one of ours"
            )
        self.take_question()
        sender = payment.authorization.facilitator
        refusal = await refusal_of(self._rpc, payment_calls(payment), sender=sender, capped=True)
        if refusal is not None:
            raise ContractPayer("payload.signature: the wallet, once deployed, would not pay with it")
