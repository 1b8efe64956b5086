"""Refill: keep a purchase supplied inside its caps. What cron runs.

One run at a time holds a purchase's lock, and caps are checked in the transaction that reserves the money, so two runs
can neither sign twice nor pass a cap together. A seller's new price is adopted only at or below the price cap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from buyer.agent_notes import recheck
from buyer.asked import PaymentAsked
from buyer.day_slots import missing
from buyer.journal import intents_of, room_atomic
from buyer.limits import SELLER_TIMEOUT_S_MAX, SIGN_COUNT_MAX
from buyer.policy import SpendPolicy
from buyer.pool import Pool
from buyer.presign import Draft, Progress, carry_out, check_wallet, choose_option, prepare
from buyer.probe import Probe, probe_base
from buyer.purchase import Purchase, Terms
from buyer.reconcile import settle_restored
from buyer.signers import Signer
from contracts.address import address_text
from contracts.errors import (
    BudgetExceeded,
    ChainUnavailable,
    FareboxError,
    LocalRefusal,
    TermsChanged,
)
from contracts.money import format_amount
from contracts.storage import Connection
from contracts.tiers import tier_of

__all__ = ["Processed", "process", "terms_now", "top_up"]


@dataclass(frozen=True, slots=True)
class Processed:
    """What one run did for one purchase. `signed` new authorizations; `chain` is what reconciling found."""

    name: str
    action: Literal["refilled", "skipped", "failed", "removed"]
    reason: str
    signed: int = 0
    chain: dict[str, int] = field(default_factory=dict)
    error: FareboxError | None = None


async def process(
    pool: Pool,
    purchase: Purchase,
    open_wallet: Callable[[], Signer],
    *,
    rpc_urls: Sequence[str] = (),
    progress: Progress | None = None,
    clock: Callable[[], float] = time.time,
    trust_unused: bool = False,
) -> Processed:
    """Ask the chain about open outcomes, finish an interrupted signing, and refill when the policy says so.

    Of a restored pool, what the chain does not show as used becomes UNKNOWN, unless `trust_unused`. A policy that says
    no is `skipped` with its reason; anything broken is `failed`. Raises only `RequestInProgress`,
    when another process is at work on this purchase.
    """
    urls = tuple(rpc_urls) or purchase.rpc_urls
    with pool.exclusively(f"sign-{purchase.name}"):
        chain: dict[str, int] = {}
        try:
            if not urls:
                raise ChainUnavailable(
                    "no RPC endpoint is known for it", remedy="name one with --rpc, or in FAREBOX_RPC"
                )
            chain = await pool.reconcile_purchase(purchase, urls, ready_too=True, clock=clock)
            if purchase.is_restored:
                pool.database.transact(
                    lambda connection: settle_restored(connection, purchase, trust_unused=trust_unused)
                )
            return await _refill(pool, purchase, urls, open_wallet, chain=chain, progress=progress, clock=clock)
        except LocalRefusal as error:
            return Processed(purchase.name, "skipped", error.message, chain=chain)
        except FareboxError as error:
            return Processed(purchase.name, "failed", error.message, chain=chain, error=error)


async def top_up(
    pool: Pool,
    purchase: Purchase,
    count: int,
    signer: Signer,
    *,
    rpc_urls: Sequence[str],
    progress: Progress | None = None,
    clock: Callable[[], float] = time.time,
    replace_spent: bool = True,
) -> int:
    """Sign `count` more for a purchase under its caps and return how many were signed.

    What an AgentWallet pays is signed by the day: so many that each day has `count` (see `prepare`).

    The caller holds the purchase's lock. Terms are what the seller offers now, if the price cap allows it.
    """
    check_wallet(purchase, signer)
    terms, urls = await terms_now(purchase, rpc_urls)
    await recheck(pool.home, purchase, urls)
    draft = Draft(
        name=purchase.name,
        kind=purchase.kind,
        endpoint=purchase.endpoint,
        model=purchase.model,
        payer=purchase.payer,
        terms=terms,
        price_cap_atomic=purchase.price_cap_atomic,
        ttl_s=purchase.ttl_s,
        refill=purchase.refill,
        rpc_urls=urls,
        existing=purchase,
        agent=purchase.agent,
    )
    plan = await prepare(pool, draft, count, int(clock()), replace_spent=replace_spent)
    carry_out(pool, plan, signer, progress=progress, clock=clock)
    return plan.count + len(plan.resumed)


async def terms_now(purchase: Purchase, rpc_urls: Sequence[str]) -> tuple[Terms, tuple[str, ...]]:
    """Return the terms to sign for now: the pinned ones while the seller still offers them, else the best allowed.

    Network and asset stay as they were pinned; a new payee is not adopted. Raises `PriceAboveCap`, `TermsChanged`,
    `SellerUnreachable` and what `choose_option` raises.
    """
    offer = purchase.offer
    probe = probe_base(purchase.endpoint, purchase.model)
    if any(option.terms is not None and option.terms.accepted == purchase.accepted for option in probe.asked.options):
        return purchase.terms, tuple(rpc_urls)
    _check_payee(purchase, probe)
    policy = SpendPolicy(
        max_price_atomic=purchase.price_cap_atomic,
        allowed_networks=[offer.network.caip2],
        allowed_assets=[offer.asset.address_text],
        max_validity_s=SELLER_TIMEOUT_S_MAX,
        allow_v1=purchase.x402_version == 1,
        schemes=[offer.scheme],
        tier=tier_of(offer.extra),
    )
    choice, urls = await choose_option(_same_payee(purchase, probe), policy, probe.url, purchase.payer, rpc_urls)
    return choice.terms, urls


async def _refill(
    pool: Pool,
    purchase: Purchase,
    urls: tuple[str, ...],
    open_wallet: Callable[[], Signer],
    *,
    chain: dict[str, int],
    progress: Progress | None,
    clock: Callable[[], float],
) -> Processed:
    now_s = int(clock())
    if purchase.state != "active":
        if pool.finish_drained(purchase):
            return Processed(purchase.name, "removed", "drained: nothing of it is left to spend", chain=chain)
        return Processed(purchase.name, "skipped", f"{purchase.state}: it is not refilled", chain=chain)
    pending = len(pool.database.read(lambda connection: intents_of(connection, purchase)))
    if purchase.agent is not None:
        return await _sign_ahead(pool, purchase, urls, open_wallet, chain=chain, progress=progress, clock=clock)
    count = _wanted(pool, purchase, now_s)
    if not pending and count == 0:
        return Processed(purchase.name, "skipped", _why_not(pool, purchase, now_s), chain=chain)
    if not pending:
        count = _within_budget(pool, purchase, count, now_s)
    signer = open_wallet()
    try:
        # Unfinished ones count towards what is wanted.
        signed = await top_up(
            pool, purchase, max(count, pending), signer, rpc_urls=urls, progress=progress, clock=clock
        )
    finally:
        signer.close()
    reason = "an interrupted signing was finished" if pending else f"{signed} more were signed"
    return Processed(purchase.name, "refilled", reason, signed=signed, chain=chain)


async def _sign_ahead(
    pool: Pool,
    purchase: Purchase,
    urls: tuple[str, ...],
    open_wallet: Callable[[], Signer],
    *,
    chain: dict[str, int],
    progress: Progress | None,
    clock: Callable[[], float],
) -> Processed:
    """Sign the calls of today and of the days ahead that an AgentWallet's purchase has not signed yet."""
    calls, now_s = purchase.calls_per_day or 0, int(clock())

    def look(connection: Connection) -> bool:
        short = missing(connection, purchase, purchase.offer, calls, now_s, replace_spent=False)
        return bool(short or intents_of(connection, purchase))

    if not pool.database.read(look):
        return Processed(purchase.name, "skipped", "today and the days ahead are signed", chain=chain)
    signer = open_wallet()
    try:
        signed = await top_up(
            pool,
            purchase,
            max(calls, 1),
            signer,
            rpc_urls=urls,
            progress=progress,
            clock=clock,
            replace_spent=False,
        )
    finally:
        signer.close()
    return Processed(purchase.name, "refilled", f"{signed} were signed for the days ahead", signed=signed, chain=chain)


def _wanted(pool: Pool, purchase: Purchase, now_s: int) -> int:
    policy = purchase.refill
    if policy is None or not policy.enabled or pool.spendable(purchase, now_s) > policy.threshold:
        return 0
    return policy.count


def _why_not(pool: Pool, purchase: Purchase, now_s: int) -> str:
    policy = purchase.refill
    if policy is None or not policy.enabled:
        return "automatic refill is off"
    return f"{pool.spendable(purchase, now_s)} are left, more than the threshold of {policy.threshold}"


def _within_budget(pool: Pool, purchase: Purchase, count: int, now_s: int) -> int:
    """Return as many as `max_total` and `max_per_day` leave room for. Raises `BudgetExceeded` when that is none."""
    room = pool.database.read(lambda connection: room_atomic(connection, purchase, now_s))
    if room is None:
        return min(count, SIGN_COUNT_MAX)
    fitting = min(count, SIGN_COUNT_MAX, room // purchase.offer.amount_atomic)
    if fitting == 0:
        raise BudgetExceeded(f"the caps leave {format_amount(room, purchase.offer.asset)}, less than one call costs")
    return fitting


def _check_payee(purchase: Purchase, probe: Probe) -> None:
    """A seller may change its price; a new payee on an old endpoint may as well be a thief's."""
    offers = [option.terms.offer for option in probe.asked.options if option.terms is not None]
    if not any(offer.pay_to == purchase.offer.pay_to for offer in offers):
        raise TermsChanged(
            f"{purchase.name}: the seller no longer wants to be paid at {address_text(purchase.offer.pay_to)}",
            remedy="if you trust the change, buy again under another name",
        )


def _same_payee(purchase: Purchase, probe: Probe) -> PaymentAsked:
    kept = [
        option
        for option in probe.asked.options
        if option.terms is not None and option.terms.offer.pay_to == purchase.offer.pay_to
    ]
    return PaymentAsked(kept, probe.asked.x402_version, probe.asked.resource, probe.asked.error)
