"""A facilitator at work: the same verification, ledger and settlement as a seller's, for payments to others.

A payment is settled once, whoever asks how often: its key (chain, token, payer, nonce) is taken in the ledger before
anything is sent, a second request for it waits for the first, and one that comes later is told the same result. What is
known of a payment outlives a restart.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

from cachetools import TTLCache

from contracts.address import Address, address_text
from contracts.errors import (
    AmountMismatch,
    FacilitatorUnavailable,
    FareboxError,
    LocalError,
    MalformedMessage,
    NoMatchingOffer,
    PaymentRefused,
    PaymentReplayed,
    RequestInProgress,
    SettlementFailed,
    SettlementUnavailable,
)
from contracts.evm.rpc import Rpc
from contracts.lifecycle import Money
from contracts.offers import EIP3009, Offer, offer_from_wire
from contracts.schemes.gas_sponsoring import GAS_SPONSORING
from contracts.schemes.rails import rail_of
from contracts.wire import (
    FacilitatorRequest,
    SettlementResponse,
    SupportedKind,
    SupportedResponse,
    VerifyResponse,
)
from seller.claims import AlreadyServed, Claim
from seller.facilitate.config import FacilitatorConfig
from seller.ledger import Ledger
from seller.limits import (
    FACILITATE_AT_ONCE_MAX,
    FACILITATE_FAILURES_MAX,
    FACILITATE_FAILURES_WINDOW_S,
    FACILITATE_WAIT_S,
    PAYER_FACTS_MAX,
    SETTLE_POLL_MAX_S,
    SETTLE_POLL_S,
    URGENT_LIFE_S,
)
from seller.payers import KnownPayer
from seller.policy import Caps
from seller.settlement.chain import ChainSettler
from seller.settlement.engine import REFUSALS, Counter, Worker
from seller.settlement.finality import Finality
from seller.settlement.key import GasKey, read_gas_key
from seller.settlement.outbox import Outbox
from seller.statement import Found
from seller.tokens import check_token
from seller.verifier import Verifier
from seller.verify import VerifiedPayment, unverified

__all__ = ["Facilitator"]

_log = logging.getLogger("farebox.facilitator")

_VERSION = 2
# "Broadcast, but not confirmed in time": the caller asks again and gets the same payment's result.
_PENDING = "settlement_pending"
_NO_CREDIT = Caps(0, 0)


class _Unsupported(PaymentRefused):
    """A version, scheme or network this facilitator does not serve."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a request is about: terms, the payment as nobody has verified it yet, and what is due of it."""

    offer: Offer
    payment: VerifiedPayment
    due_atomic: int

    @property
    def digest(self) -> bytes:
        """What must be equal for two requests to mean one settlement."""
        authorization = self.payment.authorization
        terms = (
            rail_of(self.offer).NAME,
            authorization.payee.hex(),
            authorization.value_atomic,
            authorization.valid_after_s,
            authorization.valid_before_s,
            self.due_atomic,
        )
        return hashlib.sha256(repr(terms).encode()).digest()


class Facilitator:
    """Verifies and settles payments of one asset. `open` and `close` it on the event loop that serves."""

    def __init__(self, config: FacilitatorConfig) -> None:
        self.config = config
        self._asset = config.token
        self._network = config.chain
        self._minimum_atomic = config.minimum_atomic
        self._payees = config.payees
        self._key: GasKey = read_gas_key(Path(config.key_file))
        self._failures: TTLCache[Address, int] = TTLCache(PAYER_FACTS_MAX, FACILITATE_FAILURES_WINDOW_S, time.monotonic)
        # At which block a payment was seen first: who submits it between verification and settlement has paid it.
        self._seen: TTLCache[tuple[Address, bytes], int] = TTLCache(
            PAYER_FACTS_MAX, FACILITATE_FAILURES_WINDOW_S, time.monotonic
        )
        self._at_once = 0
        self._token_is_checked = False
        self._task: asyncio.Task[None] | None = None

    # Life

    @property
    def gas_account(self) -> str:
        """The address that pays for settlements."""
        return address_text(self._key.address)

    async def open(self) -> None:
        """Open the store and start to settle. Raises `StoreUnavailable`."""
        token, chain_id = self._asset.address, self._network.chain_id
        self._ledger = Ledger(self.config.store, chain_id, token)
        self._rpc = Rpc(self.config.rpc)
        self._verifier = Verifier(self._rpc, token, self._ledger.settled_atomic, self.config.wallet_factories)
        self._counter = Counter(self._ledger)
        self._outbox = Outbox(self._ledger.database, chain_id, token, self._ledger.owner.id)
        self._key.prepare()
        settler = ChainSettler(self._outbox, self._rpc, chain_id, token, self._key, max_fee_wei=self.config.max_fee_wei)
        self._worker = worker = Worker(
            self._ledger,
            self._outbox,
            settler,
            self._counter,
            Finality(self._ledger.database, self._rpc, chain_id, token),
        )
        self._counter.trouble = lambda: worker.problem
        self._task = asyncio.create_task(worker.run(), name="settlement")

    async def close(self) -> None:
        """Stop after the present step and close the store."""
        if self._task is None:
            return
        self._worker.stop()
        await self._task
        self._task = None
        await self._rpc.close()
        self._ledger.close()

    async def check_token(self) -> None:
        """Compare the token on chain with the settings, once. Raises `ConfigInvalid` or `ChainUnavailable`."""
        if not self._token_is_checked:
            await check_token(self._rpc, self._network, self._asset)
            self._token_is_checked = True

    async def why_not_ready(self) -> str | None:
        """Return what keeps payments from being settled, or None."""
        try:
            self._ledger.sums()
            await self.check_token()
        except LocalError as error:
            return f"{error.code}: {error.message}"
        trouble = self._counter.trouble()
        return None if trouble is None else f"{trouble.code}: {trouble.message}"

    # The three questions

    def supported(self) -> SupportedResponse:
        """Return what is served here."""
        network, metered = self._network.caip2, {"facilitatorAddress": self.gas_account}
        return SupportedResponse(
            kinds=[
                SupportedKind(x402_version=_VERSION, scheme="exact", network=network),
                SupportedKind(x402_version=_VERSION, scheme="upto", network=network, extra=metered),
            ],
            extensions=[GAS_SPONSORING] if self._asset.has_permit else [],
            signers={"eip155:*": [self.gas_account]},
        )

    async def verify(self, request: FacilitatorRequest) -> VerifyResponse:
        """Tell whether a payment would be settled now. Raises a failure of ours (503)."""
        payer: str | None = None
        try:
            parts = self._parts(request)
            payer = address_text(parts.payment.authorization.payer)
            await self._check(request, parts.offer)
        except (PaymentRefused, MalformedMessage) as error:
            return VerifyResponse(
                is_valid=False, payer=payer, invalid_reason=reason_of(error), invalid_message=error.message
            )
        return VerifyResponse(is_valid=True, payer=payer)

    async def settle(self, request: FacilitatorRequest) -> SettlementResponse:
        """Settle a payment, or return what became of it. Raises a failure of ours (503) when nothing was sent."""
        payer: str | None = None
        try:
            parts = self._parts(request, settling=True)
            payer = address_text(parts.payment.authorization.payer)
            return self._paid(parts, await self._settled(request, parts))
        except _Pending as pending:
            return self._failed(payer, _PENDING, "it is on its way; ask again", pending.transaction_hash)
        except (PaymentRefused, MalformedMessage) as error:
            return self._failed(payer, reason_of(error), error.message)

    # Verifying

    def _parts(self, request: FacilitatorRequest, *, settling: bool = False) -> _Parts:
        """Return the terms, which are ones we settle, and the payment's parts, which nobody has verified."""
        if request.x402_version != _VERSION or request.payment_payload.x402_version != _VERSION:
            raise _Unsupported("invalid_x402_version", f"x402Version: must be {_VERSION}")
        stated = request.payment_requirements
        if stated.scheme not in ("exact", "upto"):
            raise _Unsupported("unsupported_scheme", f"scheme: {stated.scheme[:40]!r} is not served here")
        if stated.network != self._network.caip2:
            raise _Unsupported("invalid_network", f"network: {stated.network[:40]!r} is not served here")
        try:
            offer = offer_from_wire(stated, field="paymentRequirements", decimals=self._asset.decimals)
        except FareboxError as error:
            raise NoMatchingOffer(error.message) from None
        if offer.asset.address != self._asset.address:
            raise NoMatchingOffer("paymentRequirements: the asset is not served here")
        if offer.method == EIP3009 and (offer.asset.name, offer.asset.version) != (
            self._asset.name,
            self._asset.version,
        ):
            raise NoMatchingOffer("paymentRequirements.extra: name or version is not the token's")
        if self._payees and offer.pay_to not in self._payees:
            raise NoMatchingOffer("paymentRequirements.payTo: is not served here")
        due_atomic = offer.amount_atomic
        is_metered = offer.scheme == "upto"
        if due_atomic < self._minimum_atomic and not (is_metered and settling and due_atomic == 0):
            raise NoMatchingOffer(f"paymentRequirements.amount: at least {self._minimum_atomic} is settled here")
        ours = replace(offer, asset=self._asset)
        if is_metered:
            ours = replace(ours, extra=ours.extra | {"facilitatorAddress": self.gas_account})
        payment = unverified(request.payment_payload, [ours])
        if is_metered and settling:
            # What is due is stated anew; what was agreed is the cap that was signed.
            cap_atomic = payment.authorization.value_atomic
            if due_atomic > cap_atomic:
                raise AmountMismatch(
                    f"paymentRequirements.amount: {due_atomic} is more than the signed {cap_atomic}",
                    x402_reason="invalid_upto_evm_payload_settlement_exceeds_amount",
                )
            ours = replace(ours, amount_atomic=cap_atomic)
            payment = unverified(request.payment_payload, [ours])
        return _Parts(ours, payment, due_atomic)

    async def _check(
        self, request: FacilitatorRequest, offer: Offer, *, settling: bool = False
    ) -> tuple[VerifiedPayment, KnownPayer]:
        """Verify terms, time and signature, then what only the chain knows; a simulation has the last word."""
        payment = await self._verifier.verify(request.payment_payload, [offer], URGENT_LIFE_S)
        authorization = payment.authorization
        payer = authorization.payer
        if self._failures.get(payer, 0) >= FACILITATE_FAILURES_MAX:
            raise SettlementFailed(f"{FACILITATE_FAILURES_MAX} settlements of this payer failed; try again later")
        await self.check_token()
        key = payer, authorization.nonce
        seen_before = settling and key in self._seen
        try:
            payment, facts = await self._verifier.facts(payment, fresh=True)
        except PaymentReplayed:
            if not seen_before:
                raise
            facts = await self._verifier.payer(payment)
            return payment, facts
        self._seen.setdefault(key, facts.block)
        block = "pending" if self._verifier.in_doubt(payment, facts) else "latest"
        if not await self._verifier.would_settle(payment, block=block):
            if seen_before and await self._verifier.is_used(payment):
                return payment, facts  # since we have seen it: the ledger's judge tells whether that paid it
            raise await self._verifier.why_not(payment, facts)
        return payment, facts

    # Settling

    async def _settled(self, request: FacilitatorRequest, parts: _Parts) -> str:
        """Return the transaction that settled the payment, once it is mined. Raises `_Pending`, or why not."""
        if self._at_once >= FACILITATE_AT_ONCE_MAX:
            raise FacilitatorUnavailable(f"{FACILITATE_AT_ONCE_MAX} settlements are under way", remedy="ask again")
        self._at_once += 1
        try:
            async with asyncio.timeout(FACILITATE_WAIT_S):
                return await self._settle_once(request, parts)
        except TimeoutError:
            raise self._unfinished(parts) from None
        finally:
            self._at_once -= 1

    async def _settle_once(self, request: FacilitatorRequest, parts: _Parts) -> str:
        poll_s = SETTLE_POLL_S
        while True:
            found = self._find(parts)
            if found is not None and found.money is Money.SETTLED:
                return found.transaction_hash
            if found is not None and found.money is Money.LOST:
                raise REFUSALS.get(found.reason, SettlementFailed)("the transfer can never happen")
            if found is None or found.money is Money.VOID:
                try:
                    return await self._settle_first(request, parts)
                except (RequestInProgress, AlreadyServed):
                    pass  # another request took it meanwhile
            await asyncio.sleep(poll_s)
            poll_s = min(poll_s * 2, SETTLE_POLL_MAX_S)

    async def _settle_first(self, request: FacilitatorRequest, parts: _Parts) -> str:
        payment, facts = await self._check(request, parts.offer, settling=True)
        authorization = payment.authorization
        claim = await self._ledger.reserve(
            payment,
            parts.digest,
            "settle",
            setting="before",
            caps=_NO_CREDIT,
            balance_atomic=lambda _: facts.balance_atomic,
            since_block=self._seen.get((authorization.payer, authorization.nonce), facts.block),
            now_s=int(time.time()),
            amount_known=True,
        )
        if not isinstance(claim, Claim):
            raise AlreadyServed("it was settled before")
        if claim.credit:
            await self._ledger.finish(claim)
            return claim.transaction_hash
        try:
            due_atomic = parts.due_atomic if payment.is_metered else None
            transaction_hash = await self._counter.settle_now(claim, due_atomic)
        except PaymentRefused as error:
            await self._ledger.give_up(claim, error.code)
            self._failures[authorization.payer] = self._failures.get(authorization.payer, 0) + 1
            raise
        except BaseException:
            await self._ledger.give_up(claim, SettlementUnavailable.code)
            raise
        await self._ledger.finish(claim)
        return transaction_hash

    def _unfinished(self, parts: _Parts) -> Exception:
        found = self._find(parts)
        if found is None or found.money is not Money.SUBMITTED:
            return SettlementUnavailable("nothing was sent in time", remedy="ask again")
        return _Pending(self._outbox.newest_hash(found.id) or "")

    def _find(self, parts: _Parts) -> Found | None:
        found = self._ledger.find(parts.payment)
        if found is not None and found.request_digest != parts.digest:
            raise PaymentReplayed("this payer and nonce were presented with other terms")
        return found

    # Answers

    def _paid(self, parts: _Parts, transaction_hash: str) -> SettlementResponse:
        return SettlementResponse(
            success=True,
            transaction=transaction_hash,
            network=self._network.caip2,
            payer=address_text(parts.payment.authorization.payer),
            amount=str(parts.due_atomic),
        )

    def _failed(self, payer: str | None, reason: str, message: str, transaction_hash: str = "") -> SettlementResponse:
        return SettlementResponse(
            success=False,
            transaction=transaction_hash,
            network=self._network.caip2,
            payer=payer,
            error_reason=reason,
            error_message=message,
        )


class _Pending(Exception):
    """The transaction is signed and perhaps on its way."""

    def __init__(self, transaction_hash: str) -> None:
        super().__init__(transaction_hash)
        self.transaction_hash = transaction_hash


def reason_of(error: PaymentRefused | MalformedMessage) -> str:
    """Return the fixed word that x402 implementations use for a refusal."""
    return error.reason if isinstance(error, _Unsupported) else error.x402_reason
