"""The signing side of the pool: intents before signatures, caps in the same transaction as the intents.

Order of a purchase on disk: intents (synced) → signer → authorizations replace their intents (synced). A crash in
between leaves intents, which count as exposure until the chain's clock is past them; the next run signs the very same
authorizations, so nothing is signed twice under two nonces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from buyer.moves import move_sql
from buyer.pool import exposure_atomic, payer_exposure
from buyer.purchase import Purchase, Terms
from buyer.rows import COST_SQL, authorization_from_row, terms_from_row
from buyer.seal import Seal, read_seal_id
from contracts.address import Address
from contracts.errors import BudgetExceeded, ConfigInvalid, InsufficientAllowance, InsufficientBalance
from contracts.lifecycle import AuthorizationEvent
from contracts.money import format_amount
from contracts.networks import PERMIT2
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization
from contracts.schemes.rails import rail_of
from contracts.storage import Connection

__all__ = [
    "Intent",
    "check_allowance",
    "expire_overdue",
    "forget_expired",
    "intend",
    "intents_of",
    "room_atomic",
    "store_signed",
]

_DAY_S = 86_400

_TIME_OVER = move_sql(
    AuthorizationEvent.TIME_OVER,
    "lease = NULL, reason = 'its time is over'",
    "purchase_id = :purchase AND terms_id = :terms AND valid_before_s < :over AND chain_id = :chain",
)
_NEXT_TERMS, _NEXT_PURCHASE = (
    f"""SELECT purchase_id, terms_id FROM authorizations WHERE state = 'ready' AND {after}
        ORDER BY purchase_id, terms_id LIMIT 1"""  # noqa: S608 - constants
    for after in ("purchase_id = :purchase AND terms_id > :terms", "purchase_id > :purchase")
)


@dataclass(frozen=True, slots=True)
class Intent:
    """An authorization that is about to be signed, or may have been when a process died."""

    purchase_id: int
    terms_id: int
    terms: Terms
    authorization: Authorization
    from_block: int


def intend(
    connection: Connection,
    purchase: Purchase,
    authorizations: Sequence[Authorization],
    *,
    balance_atomic: int,
    from_block: int,
    now_s: int,
    allowance_atomic: int | None = None,
) -> list[Intent]:
    """Reserve the money of `authorizations` under every cap and write them down as intents.

    Must run in one synced transaction. `allowance_atomic` is what the wallet lets Permit2 move, where that is how the
    money goes. Raises `InsufficientBalance` or `InsufficientAllowance` when these do not cover all that was ever signed
    and not spent plus these, `BudgetExceeded` when they would pass `max_total` or `max_per_day`.
    """
    if not authorizations:
        return []
    offer = purchase.offer
    value_atomic = sum(authorization.value_atomic for authorization in authorizations)
    _check_balance(connection, purchase, value_atomic, balance_atomic)
    if allowance_atomic is not None:
        check_allowance(
            connection, offer, purchase.payer, value_atomic, allowance_atomic, is_wallet=purchase.agent is not None
        )
    _check_budget(connection, purchase, value_atomic, now_s)
    rail = rail_of(offer)
    connection.executemany(
        """INSERT INTO intents (nonce, purchase_id, terms_id, chain_id, token, payer, payee, value_atomic,
               valid_after_s, valid_before_s, intended_s, from_block, rail, registry, facilitator)
           VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
        [
            (
                authorization.nonce,
                purchase.id,
                purchase.terms_id,
                offer.network.chain_id,
                offer.asset.address,
                authorization.payer,
                authorization.payee,
                str(authorization.value_atomic),
                authorization.valid_after_s,
                authorization.valid_before_s,
                now_s,
                from_block,
                rail.NAME,
                rail.registry(offer.asset.address),
                authorization.facilitator,
            )
            for authorization in authorizations
        ],
    )
    return [Intent(purchase.id, purchase.terms_id, purchase.terms, signed, from_block) for signed in authorizations]


def intents_of(connection: Connection, purchase: Purchase) -> list[Intent]:
    """Return the unfinished signings of a purchase, under the terms they were intended for."""
    rows = connection.execute(
        """SELECT intents.*, terms.x402_version, terms.accepted, terms.decimals, terms.resource, terms.extensions
           FROM intents JOIN terms ON terms.id = intents.terms_id
           WHERE purchase_id = ? ORDER BY valid_before_s, nonce""",
        (purchase.id,),
    )
    return [
        Intent(row["purchase_id"], row["terms_id"], terms_from_row(row), authorization_from_row(row), row["from_block"])
        for row in rows
    ]


def store_signed(
    connection: Connection, signed: Sequence[tuple[Intent, bytes]], now_s: int, *, seal: Seal | None = None
) -> None:
    """Put signed authorizations into the pool in place of their intents. Must run in one synced transaction.

    Raises `ConfigInvalid` unless `seal` is the one this pool is sealed with.
    """
    if read_seal_id(connection) != (None if seal is None else seal.id):
        raise ConfigInvalid("the pool is sealed with another key")
    by_purchase: dict[int, list[tuple[Intent, bytes]]] = {}
    for each in signed:
        by_purchase.setdefault(each[0].purchase_id, []).append(each)
    for purchase_id, group in by_purchase.items():
        stored = connection.executemany(
            """INSERT INTO authorizations (chain_id, token, payer, nonce, purchase_id, terms_id, payee, value_atomic,
                   valid_after_s, valid_before_s, signature, signed_s, from_block, rail, registry, facilitator, state)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'ready')
               ON CONFLICT (chain_id, token, payer, nonce) DO NOTHING""",
            [_signed_row(intent, signature, now_s, seal) for intent, signature in group],
        )
        connection.execute(
            "UPDATE purchases SET signed_count = signed_count + ? WHERE id = ?", (stored.rowcount, purchase_id)
        )
    connection.executemany(
        "DELETE FROM intents WHERE chain_id = ? AND token = ? AND payer = ? AND nonce = ?",
        [_key(intent) for intent, _ in signed],
    )


def _key(intent: Intent) -> tuple[int, Address, Address, bytes]:
    offer, authorization = intent.terms.offer, intent.authorization
    return offer.network.chain_id, offer.asset.address, authorization.payer, authorization.nonce


def _signed_row(intent: Intent, signature: bytes, now_s: int, seal: Seal | None) -> tuple[Any, ...]:
    authorization, offer = intent.authorization, intent.terms.offer
    rail = rail_of(offer)
    return (
        *_key(intent),
        intent.purchase_id,
        intent.terms_id,
        authorization.payee,
        str(authorization.value_atomic),
        authorization.valid_after_s,
        authorization.valid_before_s,
        signature if seal is None else seal.close(signature, authorization.nonce),
        now_s,
        intent.from_block,
        rail.NAME,
        rail.registry(offer.asset.address),
        authorization.facilitator,
    )


def forget_expired(connection: Connection, purchase: Purchase, chain_now_s: int) -> None:
    """Drop intents whose time is over by the chain's clock: signed or not, nobody can use them any more."""
    connection.execute(
        "DELETE FROM intents WHERE purchase_id = ? AND chain_id = ? AND valid_before_s < ?",
        (purchase.id, purchase.offer.network.chain_id, chain_now_s),
    )


def expire_overdue(connection: Connection, chain_id: int, over_s: int) -> None:
    """Mark what never left and whose validBefore is before `over_s`, by the clock of its chain, as EXPIRED."""
    for group in _ready_groups(connection):
        connection.execute(_TIME_OVER, {**group, "chain": chain_id, "over": over_s})


def _ready_groups(connection: Connection) -> Iterator[dict[str, int]]:
    """Yield every purchase and terms of which something is ready, by a few steps of an index each.

    A pool is large, and what is overdue in it is little.
    """
    purchase, terms = -1, -1
    while True:
        row = connection.execute(_NEXT_TERMS, {"purchase": purchase, "terms": terms}).fetchone()
        row = row or connection.execute(_NEXT_PURCHASE, {"purchase": purchase}).fetchone()
        if row is None:
            return
        purchase, terms = row
        yield {"purchase": purchase, "terms": terms}


def room_atomic(connection: Connection, purchase: Purchase, now_s: int) -> int | None:
    """Return how many atomic units `max_total` and `max_per_day` still leave for signing, or None without such caps."""
    policy = purchase.refill
    rooms = []
    if policy is not None and policy.max_total_atomic is not None:
        rooms.append(policy.max_total_atomic - _used_atomic(connection, purchase))
    if policy is not None and policy.max_per_day_atomic is not None:
        rooms.append(policy.max_per_day_atomic - _signed_today_atomic(connection, purchase, now_s))
    return max(0, min(rooms)) if rooms else None


def _check_balance(connection: Connection, purchase: Purchase, value_atomic: int, balance_atomic: int) -> None:
    offer = purchase.offer
    live_atomic = payer_exposure(connection, offer.network.chain_id, offer.asset.address, purchase.payer)
    if live_atomic + value_atomic > balance_atomic:
        raise InsufficientBalance(
            f"the wallet holds {_shown(balance_atomic, offer)}; live authorizations already promise "
            f"{_shown(live_atomic, offer)} and these would add {_shown(value_atomic, offer)}"
        )


def check_allowance(
    connection: Connection, offer: Offer, payer: Address, value_atomic: int, allowance_atomic: int, *, is_wallet: bool
) -> None:
    """Raise `InsufficientAllowance` unless Permit2 may move all that was promised through it plus `value_atomic`.

    `is_wallet`: the payer is an AgentWallet, whose owner alone approves.
    """
    live_atomic = payer_exposure(connection, offer.network.chain_id, offer.asset.address, payer, registry=PERMIT2)
    needed_atomic = live_atomic + value_atomic
    if needed_atomic > allowance_atomic:
        needed = format_amount(needed_atomic, offer.asset, symbol=False)
        raise InsufficientAllowance(
            f"the wallet lets Permit2 move {_shown(allowance_atomic, offer)} of its {offer.asset.symbol}; live "
            f"authorizations already promise {_shown(live_atomic, offer)} and these would add "
            f"{_shown(value_atomic, offer)}",
            remedy=f"its owner runs `farebox wallet policy` with the same policy and --allowance {needed}"
            if is_wallet
            else f"run `farebox approve --token {offer.asset.address_text} --amount {needed}`",
        )


def _check_budget(connection: Connection, purchase: Purchase, value_atomic: int, now_s: int) -> None:
    policy, offer = purchase.refill, purchase.offer
    if policy is not None and policy.max_total_atomic is not None:
        used_atomic = _used_atomic(connection, purchase)
        _check_cap("--max-total", policy.max_total_atomic, used_atomic, value_atomic, offer)
    if policy is not None and policy.max_per_day_atomic is not None:
        signed_atomic = _signed_today_atomic(connection, purchase, now_s)
        _check_cap("--max-per-day", policy.max_per_day_atomic, signed_atomic, value_atomic, offer)


def _used_atomic(connection: Connection, purchase: Purchase) -> int:
    """Return what the purchase has cost and may still cost; what expired or was revoked costs nothing."""
    here = {"purchase": purchase.id}
    query = f"""SELECT {COST_SQL} AS cost, count(*) FROM authorizations
                WHERE purchase_id = :purchase AND state = 'spent' GROUP BY cost"""  # noqa: S608 - a constant
    return _sum(connection, query, here) + exposure_atomic(connection, "purchase_id = :purchase", here)


def _signed_today_atomic(connection: Connection, purchase: Purchase, now_s: int) -> int:
    """Return what was signed since midnight UTC, whatever became of it."""
    query = """SELECT value_atomic, count(*) FROM authorizations
               WHERE purchase_id = :purchase AND signed_s >= :day GROUP BY value_atomic
               UNION ALL SELECT value_atomic, count(*) FROM intents
               WHERE purchase_id = :purchase AND intended_s >= :day GROUP BY value_atomic"""
    return _sum(connection, query, {"purchase": purchase.id, "day": now_s - now_s % _DAY_S})


def _check_cap(flag: str, cap_atomic: int, used_atomic: int, value_atomic: int, offer: Offer) -> None:
    if used_atomic + value_atomic > cap_atomic:
        raise BudgetExceeded(
            f"{flag} {_shown(cap_atomic, offer)}: {_shown(used_atomic, offer)} are taken and "
            f"{_shown(value_atomic, offer)} more would pass it"
        )


def _sum(connection: Connection, query: str, values: dict[str, int]) -> int:
    return sum(int(value) * count for value, count in connection.execute(query, values))


def _shown(amount_atomic: int, offer: Offer) -> str:
    return format_amount(amount_atomic, offer.asset)
