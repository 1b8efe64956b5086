"""What must be true before a payment is reserved, the chain's part included, and the name of what is not.

Cheap checks come first: terms, time and signature are ours to judge; of the chain one cached question is asked per
payer. Whether it would settle is tried where work begins before the money has moved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from contracts.address import Address, address_text
from contracts.errors import (
    AllowanceRequired,
    ChainUnavailable,
    InsufficientFunds,
    InvalidSignature,
    PartyBlocked,
    PaymentRefused,
    PaymentReplayed,
    SettlementFailed,
    TokenPaused,
)
from contracts.evm.gathered import Gathered
from contracts.evm.permit2 import Permit2
from contracts.evm.rpc import Rpc
from contracts.evm.token import Token
from contracts.keccak import keccak
from contracts.networks import PERMIT2
from contracts.offers import Offer
from contracts.schemes import exact_eip3009
from contracts.schemes.erc6492 import MAGIC, bare
from contracts.schemes.gas_sponsoring import token_permit
from contracts.schemes.rails import rail_of
from contracts.signature import ACCOUNT_SIGNATURE_BYTES
from contracts.typed_data import word_of_address
from contracts.wire import PaymentPayload
from seller.clock import ChainClock, is_in_doubt, verify_in_time, why_not_in_time
from seller.extensions import payment_id
from seller.limits import URGENT_LIFE_S
from seller.payers import KnownPayer, Payers
from seller.settlement.calls import payment_calls, refusal_of
from seller.verify import Payment, VerifiedPayment, unverified
from seller.wallets import Wallets

__all__ = ["Verifier"]

# USDC's word, and USDT's.
_BLOCKED = (keccak(b"isBlacklisted(address)")[:4], keccak(b"isBlackListed(address)")[:4])


class Verifier:
    """Judges payments in one token. `settled_atomic` tells what our ledger has settled of a payer."""

    def __init__(
        self,
        rpc: Rpc,
        token: Address,
        settled_atomic: Callable[[Address], int],
        factories: frozenset[Address] = frozenset(),
    ) -> None:
        self._rpc = rpc
        self._together = Gathered(rpc)
        self._token = Token(rpc, token)
        self._payers = Payers(self._together, token)
        self._clock = ChainClock(rpc)
        self._wallets = Wallets(rpc, factories)
        self._settled_atomic = settled_atomic

    async def verify(self, payment: Payment, offers: Sequence[Offer], life_s: int) -> VerifiedPayment:
        """Return the payment as far as we can judge it ourselves; `facts` is what makes it complete.

        Raises a `PaymentRefused` leaf or `MalformedMessage`. Where it is not the payer's key that signed, the payer
        must be a contract that vouches: that is asked here.
        """
        try:
            verified = await verify_in_time(payment, offers, life_s, self._clock.head_s)
        except InvalidSignature as error:
            candidate = self._with_extensions(payment, unverified(payment, offers))
            candidate = msgspec.structs.replace(candidate, contract_payer=True)
            return await self._by_contract(candidate, error)
        return self._with_extensions(payment, verified)

    async def facts(self, payment: VerifiedPayment, *, fresh: bool = False) -> tuple[VerifiedPayment, KnownPayer]:
        """Return the payment, marked where its payer is a contract, and what the chain says of the payer.

        Raises `ContractPayer`, `PaymentReplayed`, `AllowanceRequired` or `ChainUnavailable`.
        """
        known = await self._known(payment, fresh=fresh)
        if known.has_code and not payment.contract_payer:
            await self._wallets.vouch(payment)
            payment = msgspec.structs.replace(payment, contract_payer=True)
        authorization = payment.authorization
        if _is_over_permit2(payment):
            if known.has_used(authorization.nonce):
                raise PaymentReplayed("Permit2 shows this nonce used or revoked", x402_reason="permit2_invalid_nonce")
            allowance_atomic = known.allowance_atomic
            if payment.token_permit is None and allowance_atomic is not None:
                if allowance_atomic < authorization.value_atomic and not fresh:
                    return await self.facts(payment, fresh=True)
                if allowance_atomic < authorization.value_atomic:
                    raise AllowanceRequired(
                        f"Permit2 may move {allowance_atomic} atomic units of {address_text(self._token.address)}, "
                        f"the payment is {authorization.value_atomic}",
                        remedy=f"let the token approve {address_text(PERMIT2)}, then send the same payment again",
                    )
        return payment, known

    async def payer(self, payment: VerifiedPayment) -> KnownPayer:
        """Return what the chain says of the payer. Raises `ChainUnavailable`."""
        return await self._known(payment)

    def in_doubt(self, payment: VerifiedPayment, known: KnownPayer) -> bool:
        """Tell whether only the chain can say that the payment is in time. Raises a refusal where it would say no."""
        return is_in_doubt(payment.authorization, int(time.time()), known.chain_time_s, URGENT_LIFE_S)

    async def would_settle(self, payment: VerifiedPayment, *, block: str = "latest") -> bool:
        """Try the whole settlement on the chain, without a transaction. Raises `ChainUnavailable`."""
        # A stranger's contract may take its time, for which nobody else shall wait.
        chain = self._rpc if payment.contract_payer else self._together
        sender = payment.authorization.facilitator
        refusal = await refusal_of(
            chain, payment_calls(payment), sender=sender, block=block, capped=payment.contract_payer
        )
        return refusal is None

    async def is_used(self, payment: VerifiedPayment) -> bool:
        """Tell whether the chain shows the nonce used or revoked. Raises `ChainUnavailable`."""
        registry = Permit2(self._rpc) if _is_over_permit2(payment) else self._token
        (used,) = await registry.used_nonces(payment.authorization.payer, [payment.authorization.nonce])
        return used

    async def why_not(self, payment: VerifiedPayment, known: KnownPayer) -> PaymentRefused:
        """Return the name of what keeps the chain from settling the payment. Raises `ChainUnavailable`."""
        authorization = payment.authorization
        by_permit2 = _is_over_permit2(payment)
        if await self.is_used(payment):
            registry, reason = ("Permit2", "permit2_invalid_nonce") if by_permit2 else ("the token", None)
            return PaymentReplayed(f"{registry} shows this authorization used or revoked", x402_reason=reason)
        payer = await self._token.payer_facts(authorization.payer, permit2=by_permit2)
        if payer.balance_atomic < authorization.value_atomic:
            return InsufficientFunds(
                "the payer's balance does not cover the price",
                x402_reason="permit2_insufficient_balance" if by_permit2 else None,
            )
        if by_permit2 and (payer.allowance_atomic or 0) < authorization.value_atomic:
            return AllowanceRequired("the payer lets Permit2 move less than the price")
        if await self._token.is_paused():
            return TokenPaused("the token is paused and moves nothing")
        for party, name in ((authorization.payer, "payer"), (authorization.payee, "payee")):
            for question in _BLOCKED:
                if await self._token.says(question + word_of_address(party)):
                    return PartyBlocked(f"the token's issuer has blocked the {name} {address_text(party)}")
        untimely = why_not_in_time(authorization, int(time.time()), known.chain_time_s, URGENT_LIFE_S)
        return untimely or SettlementFailed("the chain would refuse this transfer")

    async def _by_contract(self, candidate: VerifiedPayment, error: InvalidSignature) -> VerifiedPayment:
        """Return the payment where its payer is a contract that vouches for it; else raise `error`, or what is wrong.

        What looks like a key's signature is most likely one, and a wrong one, when nobody can be asked.
        """
        permit2 = _is_over_permit2(candidate)
        try:
            # A wallet is deployed by its first payment: what is remembered of one that was not may be over.
            is_wrapped = candidate.signature.endswith(MAGIC)
            if is_wrapped or not self._payers.remembered(candidate.authorization.payer, permit2=permit2):
                self._wallets.take_question()
            if (await self._known(candidate, fresh=is_wrapped)).has_code:
                # Deployed once more, it would fail and burn all gas.
                candidate = msgspec.structs.replace(candidate, signature=bare(candidate.signature))
                await self._wallets.vouch(candidate)
            elif is_wrapped:
                await self._wallets.check_undeployed(candidate)
            else:
                raise error
        except ChainUnavailable:
            if len(candidate.signature) != ACCOUNT_SIGNATURE_BYTES:
                raise
            raise error from None
        return candidate

    async def _known(self, payment: VerifiedPayment, *, fresh: bool = False) -> KnownPayer:
        authorization = payment.authorization
        return await self._payers.facts(
            authorization.payer,
            lambda: self._settled_atomic(authorization.payer),
            fresh=fresh,
            permit2_nonce=authorization.nonce if _is_over_permit2(payment) else None,
        )

    def _with_extensions(self, payment: Payment, verified: VerifiedPayment) -> VerifiedPayment:
        """Add what the extensions of a payment bring along. Raises a refusal or `MalformedMessage`."""
        if not isinstance(payment, PaymentPayload) or payment.extensions is None:
            return verified
        permit = None
        if _is_over_permit2(verified):
            authorization, now_s = verified.authorization, int(time.time())
            permit = token_permit(payment.extensions, authorization, verified.offer, now_s, URGENT_LIFE_S)
        return msgspec.structs.replace(verified, token_permit=permit, payment_id=payment_id(payment.extensions))


def _is_over_permit2(payment: VerifiedPayment) -> bool:
    return rail_of(payment.offer).NAME != exact_eip3009.NAME
