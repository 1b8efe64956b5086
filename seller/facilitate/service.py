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
from dataclasses import replace
from pathlib import Path

from cachetools import TTLCache

from contracts.address import Address, address_text
from contracts.errors import (
    ContractPayer,
    FacilitatorUnavailable,
    FareboxError,
    InsufficientFunds,
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
from contracts.evm.token import Token
from contracts.lifecycle import Money
from contracts.offers import EIP3009, Offer, offer_from_wire
from contracts.wire import (
    FacilitatorRequest,
    SettlementResponse,
    SupportedKind,
    SupportedResponse,
    VerifyResponse,
)
from seller.claims import AlreadyServed, Claim
from seller.clock import ChainClock, is_in_doubt, verify_in_time, why_not_in_time
from seller.facilitate.config import FacilitatorConfig
from seller.ledger import Found, Ledger
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
from seller.payers import KnownPayer, Payers
from seller.policy import Caps
from seller.settlement.chain import ChainSettler
from seller.settlement.engine import REFUSALS, Counter, Worker
from seller.settlement.evidence import would_settle
from seller.settlement.finality import Finality
from seller.settlement.key import GasKey, read_gas_key
from seller.settlement.outbox import Outbox
from seller.tokens import check_token
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


class Facilitator:
    """Verifies and settles EIP-3009 payments of one asset. `open` and `close` it on the event loop that serves."""

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
        self._payers = Payers(self._rpc, token)
        self._clock = ChainClock(self._rpc)
        self._counter = Counter(self._ledger)
        self._outbox = Outbox(self._ledger.database, chain_id, token, self._ledger.owner.id)
        self._key.prepare()
        settler = ChainSettler(self._outbox, self._rpc, chain_id, token, self._key)
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
        kind = SupportedKind(x402_version=_VERSION, scheme="exact", network=self._network.caip2)
        return SupportedResponse(kinds=[kind], extensions=[], signers={"eip155:*": [self.gas_account]})

    async def verify(self, request: FacilitatorRequest) -> VerifyResponse:
        """Tell whether a payment would be settled now. Raises a failure of ours (503)."""
        payer: str | None = None
        try:
            offer, payment = self._parts(request)
            payer = address_text(payment.authorization.payer)
            await self._check(request, offer)
        except (PaymentRefused, MalformedMessage) as error:
            return VerifyResponse(
                is_valid=False, payer=payer, invalid_reason=reason_of(error), invalid_message=error.message
            )
        return VerifyResponse(is_valid=True, payer=payer)

    async def settle(self, request: FacilitatorRequest) -> SettlementResponse:
        """Settle a payment, or return what became of it. Raises a failure of ours (503) when nothing was sent."""
        payer: str | None = None
        try:
            offer, payment = self._parts(request)
            payer = address_text(payment.authorization.payer)
            return self._paid(payment, await self._settled(request, offer, payment))
        except _Pending as pending:
            return self._failed(payer, _PENDING, "it is on its way; ask again", pending.transaction_hash)
        except (PaymentRefused, MalformedMessage) as error:
            return self._failed(payer, reason_of(error), error.message)

    # Verifying

    def _parts(self, request: FacilitatorRequest) -> tuple[Offer, VerifiedPayment]:
        """Return the terms, which are ones we settle, and the payment's parts, which nobody has verified."""
        if request.x402_version != _VERSION or request.payment_payload.x402_version != _VERSION:
            raise _Unsupported("invalid_x402_version", f"x402Version: must be {_VERSION}")
        stated = request.payment_requirements
        if stated.scheme != "exact":
            raise _Unsupported("unsupported_scheme", f"scheme: {stated.scheme[:40]!r} is not served here")
        if stated.network != self._network.caip2:
            raise _Unsupported("invalid_network", f"network: {stated.network[:40]!r} is not served here")
        try:
            offer = offer_from_wire(stated, field="paymentRequirements", decimals=self._asset.decimals)
        except FareboxError as error:
            raise NoMatchingOffer(error.message) from None
        if offer.asset.address != self._asset.address or offer.method != EIP3009:
            raise NoMatchingOffer("paymentRequirements: the asset, or its way of transfer, is not served here")
        if (offer.asset.name, offer.asset.version) != (self._asset.name, self._asset.version):
            raise NoMatchingOffer("paymentRequirements.extra: name or version is not the token's")
        if self._payees and offer.pay_to not in self._payees:
            raise NoMatchingOffer("paymentRequirements.payTo: is not served here")
        if offer.amount_atomic < self._minimum_atomic:
            raise NoMatchingOffer(f"paymentRequirements.amount: at least {self._minimum_atomic} is settled here")
        ours = replace(offer, asset=self._asset)
        return ours, unverified(request.payment_payload, ours)

    async def _check(
        self, request: FacilitatorRequest, offer: Offer, *, settling: bool = False
    ) -> tuple[VerifiedPayment, KnownPayer]:
        """Verify terms, time and signature, then what only the chain knows; a simulation has the last word."""
        payment = await verify_in_time(request.payment_payload, offer, URGENT_LIFE_S, self._clock.head_s)
        authorization = payment.authorization
        payer = authorization.payer
        if self._failures.get(payer, 0) >= FACILITATE_FAILURES_MAX:
            raise SettlementFailed(f"{FACILITATE_FAILURES_MAX} settlements of this payer failed; try again later")
        await self.check_token()
        facts = await self._payers.facts(payer, lambda: self._ledger.settled_atomic(payer), fresh=True)
        key = payer, authorization.nonce
        known = settling and key in self._seen
        self._seen.setdefault(key, facts.block)
        if facts.has_code:
            raise ContractPayer(f"payload.authorization.from: {address_text(payer)} is a contract")
        in_doubt = is_in_doubt(authorization, int(time.time()), facts.chain_time_s, URGENT_LIFE_S)
        block = "pending" if in_doubt else "latest"
        if not await would_settle(self._rpc, self._asset.address, authorization, payment.signature, block=block):
            token = Token(self._rpc, self._asset.address)
            (used,) = await token.used_nonces(payer, [authorization.nonce])
            if used and not known:
                raise PaymentReplayed("the token shows this authorization used or revoked")
            if used:
                return payment, facts  # since we have seen it: the ledger's judge tells whether that paid it
            if facts.balance_atomic < authorization.value_atomic:
                raise InsufficientFunds("the payer's balance does not cover the amount")
            untimely = why_not_in_time(authorization, int(time.time()), facts.chain_time_s, URGENT_LIFE_S)
            raise untimely or SettlementFailed("the chain would refuse this transfer")
        return payment, facts

    # Settling

    async def _settled(self, request: FacilitatorRequest, offer: Offer, payment: VerifiedPayment) -> str:
        """Return the transaction that settled the payment, once it is mined. Raises `_Pending`, or why not."""
        if self._at_once >= FACILITATE_AT_ONCE_MAX:
            raise FacilitatorUnavailable(f"{FACILITATE_AT_ONCE_MAX} settlements are under way", remedy="ask again")
        self._at_once += 1
        try:
            async with asyncio.timeout(FACILITATE_WAIT_S):
                return await self._settle_once(request, offer, payment)
        except TimeoutError:
            raise self._unfinished(payment) from None
        finally:
            self._at_once -= 1

    async def _settle_once(self, request: FacilitatorRequest, offer: Offer, payment: VerifiedPayment) -> str:
        poll_s = SETTLE_POLL_S
        while True:
            found = self._find(payment)
            if found is not None and found.money is Money.SETTLED:
                return found.transaction_hash
            if found is not None and found.money is Money.LOST:
                raise REFUSALS.get(found.reason, SettlementFailed)("the transfer can never happen")
            if found is None or found.money is Money.VOID:
                try:
                    return await self._settle_first(request, offer)
                except (RequestInProgress, AlreadyServed):
                    pass  # another request took it meanwhile
            await asyncio.sleep(poll_s)
            poll_s = min(poll_s * 2, SETTLE_POLL_MAX_S)

    async def _settle_first(self, request: FacilitatorRequest, offer: Offer) -> str:
        payment, facts = await self._check(request, offer, settling=True)
        authorization = payment.authorization
        claim = await self._ledger.reserve(
            payment,
            _terms_digest(payment),
            "settle",
            setting="before",
            caps=_NO_CREDIT,
            balance_atomic=lambda _: facts.balance_atomic,
            since_block=self._seen.get((authorization.payer, authorization.nonce), facts.block),
            now_s=int(time.time()),
        )
        if not isinstance(claim, Claim):
            raise AlreadyServed("it was settled before")
        if claim.credit:
            await self._ledger.finish(claim)
            return claim.transaction_hash
        try:
            transaction_hash = await self._counter.settle_now(claim)
        except PaymentRefused as error:
            await self._ledger.give_up(claim, error.code)
            self._failures[authorization.payer] = self._failures.get(authorization.payer, 0) + 1
            raise
        except BaseException:
            await self._ledger.give_up(claim, SettlementUnavailable.code)
            raise
        await self._ledger.finish(claim)
        return transaction_hash

    def _unfinished(self, payment: VerifiedPayment) -> Exception:
        found = self._find(payment)
        if found is None or found.money is not Money.SUBMITTED:
            return SettlementUnavailable("nothing was sent in time", remedy="ask again")
        return _Pending(self._outbox.newest_hash(found.id) or "")

    def _find(self, payment: VerifiedPayment) -> Found | None:
        found = self._ledger.find(payment)
        if found is not None and found.request_digest != _terms_digest(payment):
            raise PaymentReplayed("this payer and nonce were presented with other terms")
        return found

    # Answers

    def _paid(self, payment: VerifiedPayment, transaction_hash: str) -> SettlementResponse:
        authorization = payment.authorization
        return SettlementResponse(
            success=True,
            transaction=transaction_hash,
            network=self._network.caip2,
            payer=address_text(authorization.payer),
            amount=str(authorization.value_atomic),
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


def _terms_digest(payment: VerifiedPayment) -> bytes:
    """Return what must be equal for two requests to mean one settlement."""
    authorization = payment.authorization
    terms = (
        authorization.payee.hex(),
        authorization.value_atomic,
        authorization.valid_after_s,
        authorization.valid_before_s,
    )
    return hashlib.sha256(repr(terms).encode()).digest()
