"""The right to work for a payment, and what a payment that was here before is due."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import msgspec

from contracts.errors import PaymentReplayed, RequestInProgress, SettlementUnavailable
from contracts.lifecycle import Money, Work
from contracts.schemes.erc6492 import bare
from contracts.schemes.rails import rail_of
from contracts.storage import Connection, Row
from seller import spool
from seller.limits import ANSWER_BYTES_MAX, ANSWER_REPLAYS_MAX, ANSWER_TTL_S, RUNS_MAX
from seller.policy import Caps, Mode, Standing, choose_mode
from seller.spool import Kept, State
from seller.verify import VerifiedPayment

__all__ = [
    "AlreadyServed",
    "Claim",
    "PaymentIdReused",
    "Replay",
    "Wanted",
    "check_payment_id",
    "is_same_payment",
    "judge_known",
]


class AlreadyServed(PaymentReplayed):
    """The same payment for the same request, which was answered before; its answer is not kept."""

    http_status = 409
    remedy = "this request was answered; pay a new one with another authorization"


class PaymentIdReused(PaymentReplayed):
    """The payment-identifier was given to another payment of the same payer before."""

    code, http_status, x402_reason = "payment_id_reused", 409, "invalid_payload"
    remedy = "give every payment an id of its own; to repeat a request, send the same payment again"


class Wanted(msgspec.Struct, frozen=True):
    """One payment to reserve for a request, as `Ledger.reserve` is asked; `owner` will be the claim's name."""

    payment: VerifiedPayment
    request_digest: bytes
    route: str
    owner: str
    setting: Literal["auto", "before", "after", "async"]
    caps: Caps
    balance_atomic: Callable[[int], int | None]
    since_block: int
    now_s: int
    amount_known: bool

    def mode(self, standing: Standing) -> Mode:
        """Return how it is settled, by where its payer stands. Raises `InsufficientFunds` or `ExposureExceeded`."""
        payment = self.payment
        return choose_mode(
            self.setting,
            standing,
            self.caps,
            payment.offer.amount_atomic,
            payment.authorization.valid_before_s - self.now_s,
            metered=payment.is_metered and not self.amount_known,
            contract_payer=payment.contract_payer,
        )


class Claim(msgspec.Struct, frozen=True):
    """The right to work for one payment. `credit` means the money has moved already, as `transaction_hash`.

    `owner` names this claim and no other; "" where there is no work to do. `charged_atomic` is what a metered payment
    came to, where that is known.
    """

    id: int
    payment: VerifiedPayment
    mode: Mode
    owner: str
    credit: bool = False
    transaction_hash: str = ""
    charged_atomic: int | None = None


class Replay(msgspec.Struct, frozen=True):
    """The answer that a payment bought, for the client that asks again. The hash is "" until it is settled."""

    claim: Claim
    answer: Kept


def is_same_payment(row: Row, payment: VerifiedPayment) -> bool:
    """Tell whether `payment` is the one that was verified when `row` was written: same terms, same signature."""
    authorization = payment.authorization
    return (
        row["rail"],
        row["payer"],
        row["nonce"],
        row["payee"],
        row["value_atomic"],
        row["valid_after_s"],
        row["valid_before_s"],
        row["facilitator"],
        bare(bytes(row["signature"])),
    ) == (
        rail_of(payment.offer).NAME,
        authorization.payer,
        authorization.nonce,
        authorization.payee,
        str(authorization.value_atomic),
        str(authorization.valid_after_s),
        str(authorization.valid_before_s),
        authorization.facilitator,
        bare(payment.signature),
    )


def check_payment_id(connection: Connection, chain_id: int, payment: VerifiedPayment) -> None:
    """Raise `PaymentIdReused` (409) where the payer has named another payment so. The payment itself is not here."""
    if payment.payment_id is None:
        return
    known = connection.execute(
        "SELECT 1 FROM payments WHERE chain_id = ? AND payer = ? AND payment_id = ?",
        (chain_id, payment.authorization.payer, payment.payment_id),
    ).fetchone()
    if known is not None:
        raise PaymentIdReused("extensions.payment-identifier.info.id: was used for another payment")


def judge_known(
    connection: Connection, row: Row, payment: VerifiedPayment, request_digest: bytes, owner: str
) -> Claim | Replay | None:
    """Judge a payment that was here before: its answer, its credit, or None when it may be reserved again.

    Runs in a write transaction; a credit is claimed as `owner`. Raises `PaymentReplayed` (402), `AlreadyServed` or
    `RequestInProgress` (409), or `SettlementUnavailable` (503).
    """
    work, money = Work(row["work"]), Money(row["money"])
    if row["rail"] != rail_of(payment.offer).NAME or row["token"] != payment.offer.asset.address:
        raise PaymentReplayed("this payer has used this nonce for another way of payment; sign with another nonce")
    if row["request_digest"] != request_digest:
        raise PaymentReplayed("this authorization was presented for another request")
    if money is Money.LOST:
        raise PaymentReplayed(f"this authorization cannot be settled: {row['reason']}")
    if row["owner"] is not None:
        raise RequestInProgress("this payment is in use by the same request")
    if work is Work.DELIVERED:
        answer = _kept_answer(connection, row)
        if answer is not None:
            return Replay(_claim_of(row, payment, ""), answer)
    if row["runs"] >= RUNS_MAX and (money is not Money.SETTLED or work is Work.DELIVERED):
        raise PaymentReplayed(f"this authorization was tried {RUNS_MAX} times")
    if money is Money.VOID:
        return None
    if money is Money.SETTLED:
        connection.execute(
            "UPDATE payments SET work = 'running', runs = runs + 1, owner = ?, updated_ms = ? WHERE id = ?",
            (owner, _now_ms(), row["id"]),
        )
        return _claim_of(row, payment, owner, credit=True)
    raise SettlementUnavailable(
        "this payment is on its way to the chain and not confirmed yet; nothing more is charged",
        remedy="repeat the same request with the same payment",
    )


def _claim_of(row: Row, payment: VerifiedPayment, owner: str, *, credit: bool = False) -> Claim:
    charged = row["charged_atomic"]
    return Claim(
        row["id"],
        payment,
        Mode(row["mode"]),
        owner,
        credit,
        row["transaction_hash"] or "",
        None if charged is None else int(charged),
    )


def _kept_answer(connection: Connection, row: Row) -> Kept | None:
    """Return the answer of a delivered payment, or None when it broke off and a part of it is of no use.

    Raises `AlreadyServed` where it is not kept, and `RequestInProgress` while it is being produced.
    """
    answer = spool.find(connection, row["id"], _now_ms())
    if answer is None:
        raise AlreadyServed(
            f"this payment was used, and its request was answered; answers are kept for {ANSWER_TTL_S} s at most"
        )
    if answer.state is State.OPEN:
        raise RequestInProgress("the answer to this payment is still being produced")
    if answer.state is State.DROPPED:
        raise AlreadyServed(
            "this payment was used, and its request was answered; the answer was not kept, because it was larger than "
            f"{ANSWER_BYTES_MAX} bytes, took too long after its client had left, or found no room"
        )
    if answer.replays >= ANSWER_REPLAYS_MAX:
        raise AlreadyServed(f"the answer to this payment was given again {ANSWER_REPLAYS_MAX} times")
    return answer if answer.state is State.WHOLE or spool.is_event_stream(answer.headers) else None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
