"""A seller at work: its parts, opened and closed together, and the one question a request asks: may I serve this?"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from contracts.address import Address, address_text
from contracts.crash import checkpoint
from contracts.errors import (
    ChainUnavailable,
    ConfigInvalid,
    ExposureExceeded,
    FareboxError,
    InsufficientFunds,
    InvalidSignature,
    LocalError,
    PaymentRefused,
    SettlementUnavailable,
)
from contracts.evm.rpc import Rpc
from contracts.lifecycle import Money
from contracts.schemes.rails import rail_of
from contracts.wire import PaymentPayload
from seller.admission import Admission
from seller.answers import Answers
from seller.claims import Claim, Replay
from seller.config import SellerConfig
from seller.extensions import check_echo
from seller.ledger import Ledger
from seller.limits import QUEUE_WAIT_S, QUEUED_LIFE_S, URGENT_LIFE_S
from seller.metrics import Metrics
from seller.payers import KnownPayer
from seller.policy import Caps, Mode
from seller.pricebook import PriceBook, Quote
from seller.settlement.chain import ChainSettler
from seller.settlement.engine import Counter, Settler, Worker
from seller.settlement.evidence import Evidence
from seller.settlement.facilitator import FacilitatorSettler
from seller.settlement.finality import Finality
from seller.settlement.key import GasKey, read_gas_key
from seller.settlement.outbox import Outbox
from seller.settlement.supported import warn_of_changed_facilitator
from seller.tokens import check_rails, check_token
from seller.verifier import Verifier
from seller.verify import Payment, VerifiedPayment, unverified

__all__ = ["Seller"]

_log = logging.getLogger("farebox.seller")


class Seller:
    """Everything behind a price list. `open` and `close` it on the event loop that serves.

    `settles` says whether this process settles: by default only through a facilitator, because settling on chain takes
    the gas key, which a server that mounts the middleware must not hold.
    """

    def __init__(self, config: SellerConfig, *, settles: bool | None = None) -> None:
        self.config = config
        self.settles = config.settler.kind == "facilitator" if settles is None else settles
        self._key: GasKey | None = None
        if self.settles and config.settler.key_file is not None:
            self._key = read_gas_key(Path(config.settler.key_file))
        self.book = PriceBook(config, self._facilitator())
        self.answers = Answers(self.book, config.base_url)
        self.admission = None if config.capacity is None else Admission(config)
        self.metrics = Metrics()
        self._caps = Caps(*config.exposure_atomic)
        self._asset = config.token
        self._opening: asyncio.Lock | None = None
        self._ledger: Ledger | None = None
        self._rpc: Rpc | None = None
        self._verifier: Verifier | None = None
        self._counter: Counter | None = None
        self._worker: Worker | None = None
        self._task: asyncio.Task[None] | None = None
        self._comparing: asyncio.Task[None] | None = None
        self._token_is_checked = False

    def _facilitator(self) -> Address | None:
        """Return who settles prices by usage. Raises `ConfigInvalid` where the settings name another account."""
        stated, own = self.config.upto_facilitator, None if self._key is None else self._key.address
        if stated is not None and own is not None and stated != own:
            raise ConfigInvalid(
                f"upto.facilitator: is {address_text(stated)}, but settler.key_file is the key of {address_text(own)}",
                remedy="leave it out, or write the account whose key settles",
            )
        return stated or own

    # Life

    @property
    def is_open(self) -> bool:
        """Whether the parts are there."""
        return self._ledger is not None

    @property
    def gas_account(self) -> str | None:
        """The address that pays for settlements, where this process settles on chain."""
        return None if self._key is None else address_text(self._key.address)

    @property
    def ledger(self) -> Ledger:
        """The books. Only while open."""
        assert self._ledger is not None, "the seller is not open"
        return self._ledger

    @property
    def verifier(self) -> Verifier:
        """Who judges payments. Only while open."""
        assert self._verifier is not None, "the seller is not open"
        return self._verifier

    @property
    def counter(self) -> Counter:
        """Where requests wait for settlement. Only while open."""
        assert self._counter is not None, "the seller is not open"
        return self._counter

    async def open(self) -> None:
        """Open the store and start to settle, once. Raises `StoreUnavailable`."""
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._ledger is not None:
                return
            chain_id, token = self.config.chain.chain_id, self._asset.address
            ledger = Ledger(self.config.store, chain_id, token)
            self._rpc = Rpc(self.config.rpc)
            factories = self.config.wallet_factories
            self._verifier = Verifier(self._rpc, token, ledger.settled_atomic, factories)
            self._counter = Counter(ledger)
            self._ledger = ledger
            self._start_worker(ledger)
            self._comparing = self._compare_facilitator()

    def _compare_facilitator(self) -> asyncio.Task[None] | None:
        urls, pinned = self.config.settler.urls, self.config.upto_facilitator
        if not (urls and self.config.sells_by_usage and pinned):
            return None
        return asyncio.create_task(warn_of_changed_facilitator(urls, self.config.chain, pinned))

    def _start_worker(self, ledger: Ledger) -> None:
        outbox = Outbox(ledger.database, ledger.chain_id, ledger.token, ledger.owner.id)
        if not self.settles:
            # Without a key its account is unknown here; the chain settler's worker is looked for under any name.
            self.counter.trouble = lambda: None if outbox.anybody_settles() else SettlementUnavailable("no worker")
            return
        if self._key is not None:
            self._key.prepare()
        worker = self._worker = Worker(ledger, outbox, self._settler(outbox), self.counter, self._finality(ledger))
        self.counter.trouble = lambda: worker.problem
        self._task = asyncio.create_task(worker.run(), name="settlement")

    def _finality(self, ledger: Ledger) -> Finality:
        assert self._rpc is not None
        return Finality(ledger.database, self._rpc, ledger.chain_id, ledger.token)

    def _settler(self, outbox: Outbox) -> Settler:
        if self._key is not None:
            assert self._rpc is not None
            chain_id, max_fee_wei = self.config.chain.chain_id, self.config.settler.max_fee_wei
            return ChainSettler(outbox, self._rpc, chain_id, self._asset.address, self._key, max_fee_wei=max_fee_wei)
        assert self._rpc is not None
        terms = {rail_of(offer).NAME: offer for offer in self.book.offers}
        return FacilitatorSettler(outbox, self.config.settler.urls, terms, Evidence(self._rpc, self._asset.address))

    async def close(self) -> None:
        """Stop settling after the present step, give back what never began, and close the store."""
        if self._ledger is None:
            return
        if self._comparing is not None:
            self._comparing.cancel()
            await asyncio.wait([self._comparing])
        if self._worker is not None and self._task is not None:
            self._worker.stop()
            await self._task
        if self._rpc is not None:
            await self._rpc.close()
        ledger, self._ledger = self._ledger, None
        ledger.close()

    # Claims

    async def claim(self, payment: Payment, quote: Quote, request_digest: bytes) -> Claim | Replay:
        """Verify a payment for `quote` and reserve it for one request, or return what it bought before.

        Raises `MalformedMessage` (400), a `PaymentRefused` leaf, `RequestInProgress` (409), or a failure of ours
        (503). When it returns a claim, the reservation is durable and, where the work comes before the settlement, the
        chain would settle the payment now.
        """
        try:
            return await self._claim(payment, quote, request_digest)
        except InvalidSignature:
            raise
        except (PaymentRefused, ChainUnavailable):
            # Its time is over, the price another, its nonce used, by us, or the chain silent: what was paid stays paid.
            await self.open()
            known = await self.ledger.recall(unverified(payment, quote.offers), request_digest)
            if known is None:
                raise
            return known

    async def _claim(self, payment: Payment, quote: Quote, request_digest: bytes) -> Claim | Replay:
        started = time.perf_counter()
        is_queued = self.config.settle == "async" or quote.usage is not None
        life_s = QUEUED_LIFE_S if is_queued else URGENT_LIFE_S
        if self.admission is not None:
            life_s += int(QUEUE_WAIT_S)
        if not self.is_open:
            await self.open()
        if isinstance(payment, PaymentPayload):
            check_echo(payment.extensions, quote.extensions)
        verified = await self.verifier.verify(payment, quote.offers, life_s)
        checkpoint("seller.verified")
        if not self._token_is_checked:
            await self.check_token()
        verified, facts = await self.verifier.facts(verified)
        in_doubt = self.verifier.in_doubt(verified, facts)
        try:
            claim = await self._reserve(verified, quote, request_digest, facts, in_doubt=in_doubt)
        except (InsufficientFunds, ExposureExceeded):
            # Perhaps only our memory of the payer is old.
            verified, facts = await self.verifier.facts(verified, fresh=True)
            claim = await self._reserve(verified, quote, request_digest, facts, in_doubt=in_doubt)
        checkpoint("seller.reserved")
        if isinstance(claim, Claim) and not claim.credit:
            if in_doubt:
                await self._refuse_unsettleable(claim, facts, block="pending")
            elif claim.mode in (Mode.FIRST_BYTE, Mode.AFTER) or verified.contract_payer:
                await self._refuse_unsettleable(claim, facts)
        self.metrics.claimed(time.perf_counter() - started)
        return claim

    async def _reserve(
        self, payment: VerifiedPayment, quote: Quote, request_digest: bytes, facts: KnownPayer, *, in_doubt: bool
    ) -> Claim | Replay:
        """Reserve the payment. One whose time is in doubt settles before any work: the chain judges it."""
        allowance_atomic = facts.balance_atomic if payment.token_permit is not None else facts.allowance_atomic
        spendable_atomic = min(
            facts.balance_atomic, facts.balance_atomic if allowance_atomic is None else allowance_atomic
        )

        def balance_atomic(settled_atomic: int) -> int:
            # What was settled since the chain was asked has left the balance we remember.
            return spendable_atomic - (settled_atomic - facts.settled_atomic)

        return await self.ledger.reserve(
            payment,
            request_digest,
            quote.route,
            setting="before" if in_doubt else self.config.settle,
            caps=self._caps,
            balance_atomic=balance_atomic,
            since_block=facts.block,
            now_s=max(int(time.time()), facts.chain_time_s),
        )

    async def _refuse_unsettleable(self, claim: Claim, facts: KnownPayer, *, block: str = "latest") -> None:
        """Work before settlement is only worth beginning when the chain would settle now."""
        try:
            if await self.verifier.would_settle(claim.payment, block=block):
                return
            refusal = await self.verifier.why_not(claim.payment, facts)
        except BaseException:
            await self.ledger.give_up(claim, SettlementUnavailable.code)
            raise
        await self.ledger.give_up(claim, refusal.code)
        raise refusal

    async def settle(self, claim: Claim, charged_atomic: int | None = None) -> str:
        """Settle a claim while its request waits; return the transaction hash.

        `charged_atomic` is what a metered one came to. Raises a `PaymentRefused` leaf or `SettlementUnavailable`; then
        the claim has ended: its money is free, or, where it was sent already, it is a credit for the same request.
        """
        try:
            return await self.counter.settle_now(claim, charged_atomic)
        except asyncio.CancelledError:
            await self.ledger.give_up(claim, SettlementUnavailable.code)
            raise
        except FareboxError as error:
            money = await self.ledger.give_up(claim, error.code)
            if money in (Money.SETTLED, Money.SUBMITTED):
                raise SettlementUnavailable(
                    "the payment is on its way to the chain and not confirmed yet",
                    remedy="repeat the same request with the same payment; it is not charged twice",
                ) from None
            raise

    # Health

    async def check_token(self) -> None:
        """Compare the token on chain with the settings, once. Raises `ConfigInvalid` or `ChainUnavailable`."""
        if self._token_is_checked or self._rpc is None:
            return
        offers = self.book.offers
        await check_token(self._rpc, self.config.chain, self._asset, {offer.method for offer in offers})
        await check_rails(self._rpc, offers)
        self._token_is_checked = True

    async def why_not_ready(self) -> str | None:
        """Return what keeps this seller from selling, or None."""
        try:
            await self.open()
            self.ledger.sums()
            await self.check_token()
        except LocalError as error:
            return f"{error.code}: {error.message}"
        trouble = self.counter.trouble()
        return f"{trouble.code}: {trouble.message}" if trouble is not None else None
