"""Orders: what a person asks for, as text, turned into a plan, and one-shot payments."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from buyer.endpoint import normalise_endpoint, origin_of
from buyer.flow import Incoming, Lost, NeverLeft, Outcome, Outgoing, PaymentFlow, advance, pay_with_pool
from buyer.funds import fingerprint
from buyer.http import open_client, send
from buyer.limits import (
    CLAIM_MARGIN_S,
    PAID_TIMEOUT_S,
    PAY_BODY_BYTES_MAX,
    SELLER_TIMEOUT_S_MAX,
    SIGN_COUNT_MAX,
    TTL_S_DEFAULT,
    TTL_S_MIN,
)
from buyer.policy import Choice, SpendPolicy
from buyer.pool import Pool
from buyer.presign import Draft, Plan, carry_out, check_wallet, choose_option, count_for_budget, prepare
from buyer.probe import probe_base, probe_request
from buyer.purchase import Purchase, RefillPolicy, check_model, check_name
from buyer.signers import Signer
from buyer.sponsoring import sponsored
from contracts.address import address_text, parse_address
from contracts.errors import BudgetExceeded, NameUnknown, PriceAboveCap, TermsChanged, UsageError
from contracts.money import Asset, format_amount, parse_amount
from contracts.tiers import tier_of

__all__ = ["BuyOrder", "PayOrder", "RefillOrder", "parse_ttl", "pay_once", "plan_buy"]

_TTL = re.compile(r"([1-9][0-9]{0,8})([smhd]?)", re.ASCII)
_OPTIONS = {
    "max_price": "--max-price",
    "allowed_networks": "--network",
    "allowed_assets": "--asset",
    "scheme": "--scheme",
    "tier": "--tier",
}
_TTL_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, kw_only=True)
class RefillOrder:
    """Refill flags as given; None leaves a purchase's own value, or the default of a new one."""

    auto: bool | None = None
    threshold: int | None = None
    count: int | None = None
    max_total: str | None = None
    max_per_day: str | None = None

    @property
    def is_given(self) -> bool:
        """Whether any flag was given."""
        return self != RefillOrder()


@dataclass(frozen=True, kw_only=True)
class BuyOrder:
    """`farebox buy` as given: amounts are text, since only the offer tells the asset."""

    name: str
    endpoint: str
    model: str
    count: int | None
    budget: str | None
    max_price: str | None
    accept_quote: bool
    ttl_s: int | None
    refill: RefillOrder
    networks: Sequence[str]
    assets: Sequence[str]
    rpc_urls: Sequence[str]
    allow_http: bool = False
    allow_v1: bool = False
    schemes: Sequence[str] = ()
    wallet: str | None = None
    tier: str | None = None


@dataclass(frozen=True, kw_only=True)
class PayOrder:
    """`farebox pay` as given."""

    request: Outgoing
    max_price: str
    networks: Sequence[str]
    assets: Sequence[str]
    rpc_urls: Sequence[str]
    allow_v1: bool = False
    schemes: Sequence[str] = ()


def parse_ttl(text: str) -> int:
    """Return seconds for `7d`, `12h`, `30m`, `900s` or `900`. Raises `UsageError`."""
    found = _TTL.fullmatch(text)
    if found is None:
        raise UsageError(f"--ttl: expected a number with s, m, h or d, as 7d, got {text[:40]!r}")
    return int(found[1]) * _TTL_UNITS_S[found[2]]


async def plan_buy(pool: Pool, order: BuyOrder, signer: Signer, now_s: int) -> tuple[Plan, Choice | None]:
    """Return what would be signed, and for a new purchase how the option was chosen.

    Under an existing name it is a top-up on the same terms. The caller holds the purchase's lock. Raises `UsageError`,
    refusals of policy and chain, `SellerUnreachable`, `NotForSale`, `TermsChanged`.
    """
    check_name(order.name)
    check_model(order.model)
    if (order.count is None) == (order.budget is None):
        raise UsageError("--count or --budget: give one of them")
    if order.wallet is not None and order.count is None:
        raise UsageError("--wallet: is bought for with --count, the calls of one day")
    choice: Choice | None = None
    try:
        existing = pool.purchase(order.name)
    except NameUnknown:
        with _named_as_options():
            draft, choice = await _new_draft(order, signer)
    else:
        draft = await _top_up_draft(order, existing, signer)
    offer = draft.terms.offer
    if order.budget is not None:
        count = count_for_budget(parse_amount(order.budget, offer.asset, "--budget"), offer.amount_atomic)
    else:
        count = order.count or 0
    refill = _refill_policy(order.refill, draft.refill, count, offer.asset)
    plan = await prepare(pool, replace(draft, refill=refill), count, now_s)
    if draft.existing is None:
        _check_first_batch(refill, plan, offer.asset)
    return plan, choice


async def pay_once(
    pool: Pool,
    order: PayOrder,
    open_wallet: Callable[[], Signer],
    announce: Callable[[Plan], None],
    clock: Callable[[], float],
) -> tuple[Outcome, Purchase]:
    """Pay for one request, through the same checks, books and crash safety as a pool.

    A request whose earlier payment is open is presented with that payment, and nothing is signed. `announce` is told
    what will be signed. Returns the outcome, whose `incoming` has the body, and the one-shot purchase. Raises refusals
    of policy and chain, and what a probe raises.
    """
    name = fingerprint(order.request)
    spender = pool.spender(lease_size=1)
    try:
        key = spender.unanswered(name, int(clock()))
        earlier = None if key is None else pool.receipt_of(key)
        if key is not None and earlier is not None:
            purchase = pool.purchase(earlier.purchase)
        else:
            with _named_as_options():
                purchase = await _sign_once(pool, order, open_wallet, announce, clock)
            key = f"once:{purchase.name}"
        route = urlsplit(order.request.url).path
        outcome = _drive(pay_with_pool(order.request, spender, purchase, key, clock, fingerprint=name, route=route))
    finally:
        spender.close()
    if outcome.kind == "refused" and outcome.claim is None:
        # Nothing left, so nobody else has seen it; a later request may not take it up.
        pool.remove(purchase)
    pool.finish_drained(purchase)
    return outcome, purchase


@contextlib.contextmanager
def _named_as_options() -> Iterator[None]:
    """Name the members of a policy as the command line does, where one of them cannot be read."""
    try:
        yield
    except UsageError as error:
        member, _, problem = error.message.partition(":")
        if member not in _OPTIONS:
            raise
        raise UsageError(f"{_OPTIONS[member]}:{problem}", remedy=error.advice) from None


async def _sign_once(
    pool: Pool,
    order: PayOrder,
    open_wallet: Callable[[], Signer],
    announce: Callable[[Plan], None],
    clock: Callable[[], float],
) -> Purchase:
    policy = SpendPolicy(
        max_price=order.max_price,
        allowed_networks=order.networks or None,
        allowed_assets=order.assets or None,
        max_validity_s=SELLER_TIMEOUT_S_MAX,
        allow_v1=order.allow_v1,
        schemes=order.schemes or ("exact",),
    )
    probe = probe_request(order.request)
    signer = open_wallet()
    try:
        choice, urls = await choose_option(probe.asked, policy, order.request.url, signer.address, order.rpc_urls)
        offer = choice.terms.offer
        ttl_s = max(TTL_S_MIN, offer.max_timeout_s + 2 * CLAIM_MARGIN_S)
        terms = await sponsored(pool, choice.terms, signer, urls, int(clock()) + ttl_s)
        draft = Draft(
            name=f"pay-{secrets.token_hex(5)}",
            kind="once",
            endpoint=order.request.url,
            model="",
            payer=signer.address,
            terms=terms,
            price_cap_atomic=offer.amount_atomic,
            ttl_s=ttl_s,
            refill=None,
            rpc_urls=urls,
        )
        plan = await prepare(pool, draft, 1, int(clock()))
        announce(plan)
        return carry_out(pool, plan, signer, clock=clock)
    finally:
        signer.close()


def _drive(flow: PaymentFlow) -> Outcome:
    step = advance(flow, None)
    with contextlib.closing(flow), open_client(PAID_TIMEOUT_S) as client:
        while isinstance(step, Outgoing):
            happened: Incoming | NeverLeft | Lost
            try:
                happened = send(client, step, PAY_BODY_BYTES_MAX, strict=False)
            except (NeverLeft, Lost) as problem:
                happened = problem
            step = advance(flow, happened)
    return step


async def _new_draft(order: BuyOrder, signer: Signer) -> tuple[Draft, Choice]:
    if order.max_price is None and not order.accept_quote:
        raise UsageError(
            "--max-price: is required, since a seller's quote is not your limit",
            remedy="name the most one call may cost, or say --accept-quote",
        )
    policy = SpendPolicy(
        max_price=order.max_price,
        accept_quote=order.accept_quote,
        allowed_networks=order.networks or None,
        allowed_assets=order.assets or None,
        max_validity_s=SELLER_TIMEOUT_S_MAX,
        allow_v1=order.allow_v1,
        schemes=order.schemes or ("exact",),
        tier=order.tier,
    )
    payer = signer.address if order.wallet is None else parse_address(order.wallet, "--wallet")
    endpoint = normalise_endpoint(order.endpoint, allow_http=order.allow_http)
    probe = probe_base(endpoint, order.model)
    choice, urls = await choose_option(probe.asked, policy, probe.url, payer, order.rpc_urls)
    offer = choice.terms.offer
    cap_atomic = policy.price_cap_atomic(offer.asset)
    draft = Draft(
        name=order.name,
        kind="pool",
        endpoint=endpoint,
        model=order.model,
        payer=payer,
        agent=None if order.wallet is None else signer.address,
        calls_per_day=None if order.wallet is None else order.count,
        terms=choice.terms,
        price_cap_atomic=offer.amount_atomic if cap_atomic is None else cap_atomic,
        ttl_s=TTL_S_DEFAULT if order.ttl_s is None else order.ttl_s,
        refill=None,
        rpc_urls=urls,
    )
    return draft, choice


async def _top_up_draft(order: BuyOrder, existing: Purchase, signer: Signer) -> Draft:
    """Return the draft that adds to a purchase on its own terms."""
    endpoint = normalise_endpoint(order.endpoint, allow_http=order.allow_http)
    if (origin_of(endpoint), endpoint, order.model) != (existing.origin, existing.endpoint, existing.model):
        raise UsageError(
            f"{existing.name}: is a purchase of {existing.model} at {existing.endpoint} already",
            remedy="buy under another name, or give its own --endpoint and --model to add to it",
        )
    if existing.state != "active":
        raise UsageError(f"{existing.name}: is {existing.state}", remedy="buy under another name")
    if order.wallet is not None and parse_address(order.wallet, "--wallet") != existing.payer:
        raise UsageError(f"{existing.name}: is paid by {address_text(existing.payer)}", remedy="leave out --wallet")
    if order.tier not in (None, tier_of(existing.offer.extra)):
        raise UsageError(f"{existing.name}: is of another tier", remedy="buy the other tier under another name")
    check_wallet(existing, signer)
    offer = existing.offer
    cap_atomic = existing.price_cap_atomic
    if order.max_price is not None:
        cap_atomic = parse_amount(order.max_price, offer.asset, "--max-price")
    if offer.amount_atomic > cap_atomic:
        price, cap = (format_amount(amount, offer.asset) for amount in (offer.amount_atomic, cap_atomic))
        raise PriceAboveCap(f"{existing.name}: the pinned price is {price}, the cap {cap}")
    offered = [option.terms for option in probe_base(endpoint, order.model).asked.options if option.terms is not None]
    if not any(terms.offer == offer for terms in offered):
        raise TermsChanged(
            f"{existing.name}: the seller no longer offers {format_amount(offer.amount_atomic, offer.asset)} a call "
            f"to {address_text(offer.pay_to)}",
            remedy=f"run `farebox refill {existing.name} --count N` to go on under its new terms, within the price cap",
        )
    return Draft(
        name=existing.name,
        kind=existing.kind,
        endpoint=endpoint,
        model=existing.model,
        payer=existing.payer,
        terms=existing.terms,
        price_cap_atomic=cap_atomic,
        ttl_s=existing.ttl_s if order.ttl_s is None else order.ttl_s,
        refill=existing.refill,
        rpc_urls=tuple(order.rpc_urls) or existing.rpc_urls,
        existing=existing,
        agent=existing.agent,
        calls_per_day=None if existing.agent is None else order.count,
    )


def _refill_policy(order: RefillOrder, current: RefillPolicy | None, count: int, asset: Asset) -> RefillPolicy | None:
    """Return the policy after the flags given; a new one refills as much as was bought, at a fifth of it."""
    if not order.is_given:
        return current
    if current is None:
        if not order.auto and (order.threshold is not None or order.count is not None):
            raise UsageError("--refill-threshold and --refill-count need --auto-refill")
        current = RefillPolicy(threshold=max(1, count // 5), count=count, enabled=False)
    policy = RefillPolicy(
        threshold=current.threshold if order.threshold is None else order.threshold,
        count=current.count if order.count is None else order.count,
        max_total=_cap_text(order.max_total, current.max_total, asset, "--max-total"),
        max_per_day=_cap_text(order.max_per_day, current.max_per_day, asset, "--max-per-day"),
        enabled=current.enabled if order.auto is None else order.auto,
    )
    if policy.threshold < 0:
        raise UsageError("--refill-threshold: expected 0 or more")
    if not 1 <= policy.count <= SIGN_COUNT_MAX:
        raise UsageError(f"--refill-count: expected 1 to {SIGN_COUNT_MAX}")
    return policy


def _cap_text(given: str | None, current: str | None, asset: Asset, flag: str) -> str | None:
    return current if given is None else str(parse_amount(given, asset, flag))


def _check_first_batch(refill: RefillPolicy | None, plan: Plan, asset: Asset) -> None:
    """Refuse before anything is shown as possible; for a top-up the books decide when the money is reserved."""
    if refill is None:
        return
    for flag, cap_atomic in (("--max-total", refill.max_total_atomic), ("--max-per-day", refill.max_per_day_atomic)):
        if cap_atomic is not None and plan.worst_case_loss_atomic > cap_atomic:
            cost, cap = (format_amount(amount, asset) for amount in (plan.worst_case_loss_atomic, cap_atomic))
            raise BudgetExceeded(f"{flag}: {plan.count} calls cost {cost}, the cap is {cap}")
