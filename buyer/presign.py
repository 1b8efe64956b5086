"""Pre-signing: probe → choose → ask the chain → reserve and write down → sign → store.

`prepare` decides everything and changes nothing, so that a person can be shown the worst-case loss first; `carry_out`
does it. Both run under the purchase's lock. Money is reserved, in one synced transaction with every cap, before a
signer is asked; a crash between signing and storing leaves intents that the next run signs again, unchanged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from buyer.asked import PaymentAsked
from buyer.bounded import BoundedSigner, Bounds
from buyer.chain import (
    ChainFacts,
    check_before_signing,
    endpoints_by_chain,
    read_allowances,
    read_holdings,
    with_chain_decimals,
)
from buyer.day_slots import SlotBook, missing
from buyer.fresh import facilitator_of, fresh_authorization
from buyer.journal import (
    Intent,
    check_allowance,
    expire_overdue,
    forget_expired,
    intend,
    intents_of,
    store_signed,
)
from buyer.key_signer import KeySigner
from buyer.limits import (
    CLAIM_MARGIN_S,
    EXPIRY_CHAIN_MARGIN_S,
    SIGN_CHUNK,
    SIGN_CHUNK_OWN_KEY,
    SIGN_COUNT_MAX,
    TTL_S_DEFAULT,
    TTL_S_MIN,
)
from buyer.nonces import draw_nonces
from buyer.policy import Choice, SpendPolicy, acceptable, choose
from buyer.pool import Pool
from buyer.purchase import Purchase, RefillPolicy, Terms
from buyer.rows import find_purchase, insert_purchase, insert_terms, refill_text, urls_text
from buyer.signing import PaymentSigner, Signer
from buyer.slot_signer import SlotSigner
from buyer.sponsoring import is_sponsored
from contracts.address import Address, address_text
from contracts.crash import checkpoint
from contracts.errors import BudgetExceeded, InsufficientBalance, TermsNotAllowed, UsageError
from contracts.evm.agent_wallet import Policy, slot_authorization, slot_window
from contracts.limits import VALIDITY_S_MAX
from contracts.money import format_amount
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization
from contracts.schemes.rails import rail_of
from contracts.storage import Connection

__all__ = ["Draft", "Plan", "carry_out", "check_wallet", "choose_option", "count_for_budget", "prepare"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Draft:
    """A purchase as asked for, before anything is on disk. `existing` is the one of that name that is topped up.

    Where `payer` is an AgentWallet, its `agent` signs, so many calls a day; `ttl_s` says nothing then.
    """

    name: str
    kind: str
    endpoint: str
    model: str
    payer: Address
    terms: Terms
    price_cap_atomic: int
    ttl_s: int
    refill: RefillPolicy | None
    rpc_urls: tuple[str, ...]
    existing: Purchase | None = None
    agent: Address | None = None
    calls_per_day: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be signed. `count` new authorizations, after `resumed` unfinished ones of an earlier run.

    `worst_case_loss_atomic` is what this run adds; `live_atomic` is what the wallet has promised before, over all
    purchases, unfinished ones of this purchase included. `days` are (day, count) of what an AgentWallet pays.
    """

    draft: Draft
    count: int
    resumed: tuple[Intent, ...]
    facts: ChainFacts
    live_atomic: int
    valid_before_s: int
    days: tuple[tuple[int, int], ...] = ()

    @property
    def price_atomic(self) -> int:
        """What one call costs; where the seller charges by usage, at most."""
        return self.draft.terms.offer.amount_atomic

    @property
    def worst_case_loss_atomic(self) -> int:
        """Count times price, resumed signings included: all that can be lost by what this run signs."""
        resumed_atomic = sum(intent.authorization.value_atomic for intent in self.resumed)
        return self.count * self.price_atomic + resumed_atomic


async def choose_option(
    asked: PaymentAsked, policy: SpendPolicy, url: str, payer: Address, rpc_urls: Sequence[str]
) -> tuple[Choice, tuple[str, ...]]:
    """Return the option to pay and the RPC endpoints of its chain.

    Decimals of unknown tokens and the wallet's balances come from the chain. Raises the refusal of the nearest option,
    or `ChainUnavailable`.
    """
    if not rpc_urls and not acceptable(asked, policy, url)[0]:
        choose(asked, policy, url)  # no chain can make these acceptable, so say why at once
    endpoints = await endpoints_by_chain(rpc_urls)
    options = [await with_chain_decimals(option, endpoints) for option in asked.options]
    corrected = replace(asked, options=options)
    accepted, _ = acceptable(corrected, policy, url)
    holdings = await read_holdings(accepted, payer, endpoints)
    allowances = await read_allowances(accepted, payer, endpoints)
    try:
        choice = choose(corrected, policy, url, holdings, allowances)
    except InsufficientBalance as error:
        raise InsufficientBalance(error.message, remedy=_fund(payer)) from None
    return choice, endpoints[choice.terms.offer.network.chain_id]


def _fund(payer: Address) -> str:
    return f"fund {address_text(payer)}, or sign for less"


def count_for_budget(budget_atomic: int, price_atomic: int) -> int:
    """Return how many calls a budget buys. Raises `BudgetExceeded` when not even one."""
    count = budget_atomic // price_atomic
    if count == 0:
        raise BudgetExceeded("--budget: is less than the price of one call", remedy="raise --budget")
    return count


async def prepare(pool: Pool, draft: Draft, count: int, now_s: int, *, replace_spent: bool = True) -> Plan:
    """Check everything and return what would be signed; nothing is written and no signer asked.

    `count` are the authorizations wanted in all; unfinished ones of an earlier run count towards it. For an AgentWallet
    they are those of each day, today's and the next ones', spent ones counting unless `replace_spent`. Raises
    `UsageError`, `TermsNotAllowed`, `PayerHasCode`, `InsufficientBalance`, `InsufficientAllowance`, `ChainUnavailable`.
    """
    offer = draft.terms.offer
    _check_numbers(count, TTL_S_DEFAULT if draft.agent else draft.ttl_s, offer.max_timeout_s)
    facts = await check_before_signing(offer, draft.payer, draft.rpc_urls, agent=draft.agent)
    if is_sponsored(draft.terms):
        facts = replace(facts, allowance_atomic=None)  # its permit approves it on the way
    chain_now_s = facts.head.timestamp_s - EXPIRY_CHAIN_MARGIN_S
    resumed: tuple[Intent, ...] = ()
    if draft.existing is not None:
        existing = draft.existing
        pending = pool.database.read(lambda connection: intents_of(connection, existing))
        resumed = tuple(intent for intent in pending if intent.authorization.valid_before_s > chain_now_s)
    live_atomic = pool.payer_exposure_atomic(offer.network.chain_id, offer.asset.address, draft.payer)
    days: tuple[tuple[int, int], ...] = ()
    if facts.policy is not None:
        days = _days(pool, draft, facts.policy, count, facts.head.timestamp_s, replace_spent=replace_spent)
    plan = Plan(
        draft=draft,
        count=sum(more for _, more in days) if draft.agent else max(0, count - len(resumed)),
        days=days,
        resumed=resumed,
        facts=facts,
        live_atomic=live_atomic,
        # A chain whose clock is ahead of ours must not shorten what was asked for.
        valid_before_s=slot_window(days[-1][0])[1] if days else max(now_s, facts.head.timestamp_s) + draft.ttl_s,
    )
    if live_atomic + plan.count * plan.price_atomic > facts.balance_atomic:
        raise InsufficientBalance(
            f"the wallet holds {format_amount(facts.balance_atomic, offer.asset)}; live authorizations already promise "
            f"{format_amount(live_atomic, offer.asset)} and these would add "
            f"{format_amount(plan.count * plan.price_atomic, offer.asset)}",
            remedy=_fund(draft.payer),
        )
    allowance_atomic = facts.allowance_atomic
    if allowance_atomic is not None:
        new_atomic = plan.count * plan.price_atomic
        pool.database.read(
            lambda connection: check_allowance(
                connection, offer, draft.payer, new_atomic, allowance_atomic, is_wallet=draft.agent is not None
            )
        )
    return plan


def carry_out(
    pool: Pool, plan: Plan, signer: Signer, *, progress: Progress | None = None, clock: Callable[[], float] = time.time
) -> Purchase:
    """Reserve, sign and store what `prepare` planned; return the purchase.

    Raises what the caps and the signer raise. After a failure everything signed so far is in the pool, and the rest is
    an intent.
    """
    if signer.address != (plan.draft.agent or plan.draft.payer):
        raise TermsNotAllowed("the signer's wallet is not the one that was checked")
    now_s = int(clock())
    book = SlotBook.of(pool.home, plan.draft.terms.offer, plan.draft.payer)

    def reserve(connection: Connection) -> tuple[Purchase, list[Intent]]:
        purchase = _purchase_on_disk(connection, plan.draft, now_s)
        chain_now_s = plan.facts.head.timestamp_s - EXPIRY_CHAIN_MARGIN_S
        forget_expired(connection, purchase, chain_now_s)
        expire_overdue(connection, purchase.offer.network.chain_id, min(chain_now_s, now_s))
        new = intend(
            connection,
            purchase,
            _fresh(connection, purchase, plan, book),
            balance_atomic=plan.facts.balance_atomic,
            allowance_atomic=plan.facts.allowance_atomic,
            from_block=plan.facts.head.number,
            now_s=now_s,
        )
        return purchase, [*plan.resumed, *new]

    purchase, intents = pool.database.transact(reserve)
    pool.generation.raise_lease()
    checkpoint("buyer.intended")
    book.note(intent.authorization for intent in intents)
    payer = signer if plan.draft.agent is None else SlotSigner(signer, plan.draft.payer)
    _sign_and_store(pool, intents, payer, progress, clock)
    return purchase


def check_wallet(purchase: Purchase, signer: Signer) -> None:
    """Refuse, with `TermsNotAllowed`, to sign for a purchase that another wallet pays."""
    if signer.address != (purchase.agent or purchase.payer):
        payer, held = address_text(purchase.agent or purchase.payer), address_text(signer.address)
        raise TermsNotAllowed(
            f"{purchase.name} is paid by {payer}, the signer holds {held}",
            remedy="name the wallet of the purchase with --signer, or buy under another name",
        )


def _sign_and_store(
    pool: Pool, intents: list[Intent], signer: PaymentSigner, progress: Progress | None, clock: Callable[[], float]
) -> None:
    by_terms: dict[int, list[Intent]] = {}
    for intent in intents:
        by_terms.setdefault(intent.terms_id, []).append(intent)
    done = 0
    seal = pool.seal()
    size = SIGN_CHUNK_OWN_KEY if type(signer) is KeySigner else SIGN_CHUNK
    for group in by_terms.values():
        offer = group[0].terms.offer
        latest_s = max(intent.authorization.valid_before_s for intent in group)
        bounded = BoundedSigner(signer, Bounds(offer, len(group), offer.amount_atomic, latest_s))
        for start in range(0, len(group), size):
            chunk = group[start : start + size]
            signatures = bounded.sign_authorizations([intent.authorization for intent in chunk], offer)
            checkpoint("buyer.signed")
            signed = list(zip(chunk, signatures, strict=True))
            signed_s = int(clock())
            # New rows are nobody's, so no lease need be called in for them.
            pool.database.transact(
                lambda connection: store_signed(connection, signed, signed_s, seal=seal),  # noqa: B023 - runs at once
                bare=True,
            )
            checkpoint("buyer.stored")
            done += len(chunk)
            if progress is not None:
                progress(done, len(intents))


def _purchase_on_disk(connection: Connection, draft: Draft, now_s: int) -> Purchase:
    """Insert a new purchase, or bring an existing one to the draft's terms and policy."""
    existing = draft.existing
    if existing is None:
        insert_purchase(
            connection,
            name=draft.name,
            kind=draft.kind,
            endpoint=draft.endpoint,
            model=draft.model,
            payer=draft.payer,
            price_cap_atomic=draft.price_cap_atomic,
            ttl_s=draft.ttl_s,
            refill=draft.refill,
            rpc_urls=draft.rpc_urls,
            terms=draft.terms,
            now_s=now_s,
            agent=draft.agent,
            calls_per_day=draft.calls_per_day,
        )
        return find_purchase(connection, draft.name)
    terms_id = existing.terms_id
    if draft.terms.accepted != existing.terms.accepted or draft.terms.x402_version != existing.terms.x402_version:
        terms_id = insert_terms(connection, draft.terms, now_s)
        if draft.terms.offer.domain == existing.offer.domain and rail_of(draft.terms.offer) is rail_of(existing.offer):
            _carry_over(connection, existing, draft.terms.offer, terms_id)
    connection.execute(
        """UPDATE purchases SET terms_id = ?, price_cap_atomic = ?, ttl_s = ?, refill = ?, rpc_urls = ?,
               calls_per_day = coalesce(?, calls_per_day) WHERE id = ?""",
        (
            terms_id,
            str(draft.price_cap_atomic),
            draft.ttl_s,
            refill_text(draft.refill),
            urls_text(draft.rpc_urls),
            draft.calls_per_day,
            existing.id,
        ),
    )
    return find_purchase(connection, draft.name)


def _carry_over(connection: Connection, existing: Purchase, offer: Offer, terms_id: int) -> None:
    """Let what is signed already serve new terms that differ only in what a signature does not cover."""
    if facilitator_of(offer) != facilitator_of(existing.offer):
        return
    connection.execute(
        """UPDATE authorizations SET terms_id = ?
           WHERE purchase_id = ? AND terms_id = ? AND state = 'ready' AND payee = ? AND value_atomic = ?""",
        (terms_id, existing.id, existing.terms_id, offer.pay_to, str(offer.amount_atomic)),
    )


def _days(
    pool: Pool, draft: Draft, policy: Policy, count: int, now_s: int, *, replace_spent: bool
) -> tuple[tuple[int, int], ...]:
    """Return (day, how many) an AgentWallet's agent signs now. Raises `BudgetExceeded` when no day has a slot left."""
    offer = draft.terms.offer
    book = SlotBook.of(pool.home, offer, draft.payer)

    def read(connection: Connection) -> list[tuple[int, int, int]]:
        short = missing(connection, draft.existing, offer, count, now_s, replace_spent=replace_spent)
        return [(day, more, book.left(connection, policy, day)) for day, more in short]

    wanted = pool.database.read(read)
    days = tuple((day, min(more, left)) for day, more, left in wanted if left)
    if wanted and not days:
        raise BudgetExceeded(
            f"the wallet's policy allows {policy.slots} payments a day from day {policy.from_day} on, and leaves none "
            "for today and the days ahead",
            remedy="wait for the next day, or raise the policy with `farebox wallet policy`",
        )
    return days


def _fresh(connection: Connection, purchase: Purchase, plan: Plan, book: SlotBook) -> list[Authorization]:
    offer, policy = purchase.offer, plan.facts.policy
    if policy is None:
        return [
            fresh_authorization(offer, purchase.payer, nonce, plan.valid_before_s)
            for nonce in draw_nonces(connection, purchase, plan.count)
        ]
    return [
        slot_authorization(
            purchase.payer,
            policy,
            day=day,
            number=number,
            payee=offer.pay_to,
            value_atomic=offer.amount_atomic,
            facilitator=facilitator_of(offer),
        )
        for day, count in plan.days
        for number in book.draw(connection, policy, day, count)
    ]


def _check_numbers(count: int, ttl_s: int, max_timeout_s: int) -> None:
    if not 1 <= count <= SIGN_COUNT_MAX:
        raise UsageError(f"--count: expected 1 to {SIGN_COUNT_MAX} in one run, got {count}")
    shortest_s = max(TTL_S_MIN, max_timeout_s + 2 * CLAIM_MARGIN_S)
    if not shortest_s <= ttl_s <= VALIDITY_S_MAX:
        raise UsageError(
            f"--ttl: expected {shortest_s} s to {VALIDITY_S_MAX // 86_400} d for this seller, got {ttl_s} s",
            remedy="shorter ones expire before they are used, longer ones outlive every budget",
        )
