"""Reserves payments: one, or all that wait for the same commit, with the same outcome for each.

Payments that were never here are entered together: every payer and the books are read once and written once, and all
rows go into one statement. Whatever is special about a payment (it was here before, is refused, or has a name of its
own) is judged by itself, after the others. Every function runs inside a write transaction of the ledger's.
"""

from __future__ import annotations

from collections.abc import Sequence

from contracts.address import Address
from contracts.errors import FareboxError
from contracts.storage import Connection
from seller import books, payments
from seller.claims import Claim, Replay, Wanted, check_payment_id, judge_known
from seller.policy import Mode, Standing

__all__ = ["Reservations"]


class Reservations:
    """Reserves payments in one token."""

    def __init__(self, chain_id: int, token: Address) -> None:
        self._chain_id = chain_id
        self._token = token

    def one(self, connection: Connection, wanted: Wanted) -> Claim | Replay:
        """Reserve one payment. Raises as `Ledger.reserve` does, and has then written nothing."""
        payment = wanted.payment
        row = payments.find(connection, self._chain_id, self._token, payment)
        if row is None:
            check_payment_id(connection, self._chain_id, payment)
            (entered,) = self._enter(connection, [wanted])
            assert entered is not None, "writers take turns, so what was not found is not there"
            if isinstance(entered, FareboxError):
                raise entered
            return entered
        known = judge_known(connection, row, payment, wanted.request_digest, wanted.owner)
        if known is not None:
            return known
        standing = self._standings(connection, [wanted]).of(wanted)
        return payments.reserve_again(connection, row, payment, wanted.mode(standing), wanted.owner)

    def together(self, connection: Connection, wanted: Sequence[Wanted]) -> list[Claim | Replay | FareboxError]:
        """Reserve many; return what `one` would return or raise for each, in order."""
        plain: dict[tuple[Address, bytes], int] = {}
        for place, each in enumerate(wanted):
            if each.payment.payment_id is None:
                authorization = each.payment.authorization
                plain.setdefault((authorization.payer, authorization.nonce), place)
        entered = self._enter(connection, [wanted[place] for place in plain.values()])
        claims = {
            place: claim for place, claim in zip(plain.values(), entered, strict=True) if isinstance(claim, Claim)
        }
        return [claims.get(place) or self._outcome(connection, each) for place, each in enumerate(wanted)]

    def _outcome(self, connection: Connection, wanted: Wanted) -> Claim | Replay | FareboxError:
        try:
            return self.one(connection, wanted)
        except FareboxError as error:
            return error

    def _enter(self, connection: Connection, wanted: Sequence[Wanted]) -> list[Claim | FareboxError | None]:
        """Enter payments, each once; return a claim, why not, or None for one that is here already."""
        standings = self._standings(connection, wanted)
        modes = {each.owner: standings.judge(each) for each in wanted}
        rows = [
            payments.new_row(self._chain_id, self._token, each, mode)
            for each in wanted
            if isinstance(mode := modes[each.owner], Mode)
        ]
        ids = payments.insert(connection, rows)
        claims: list[Claim | FareboxError | None] = []
        changes = books.Changes()
        for each in wanted:
            mode, payment_id = modes[each.owner], ids.get(each.owner)
            if payment_id is None or not isinstance(mode, Mode):
                claims.append(None if isinstance(mode, Mode) else mode)
                continue
            authorization = each.payment.authorization
            changes.add(authorization.payer, authorization.value_atomic, on_credit=mode is Mode.ASYNC)
            claims.append(Claim(payment_id, each.payment, mode, each.owner))
        books.count_entered(connection, self._chain_id, self._token, standings.before, changes)
        return claims

    def _standings(self, connection: Connection, wanted: Sequence[Wanted]) -> _Standings:
        payers = {each.payment.authorization.payer for each in wanted}
        return _Standings(books.read_before(connection, self._chain_id, self._token, payers))


class _Standings:
    """Where payers stand while one payment after the other is judged; each that may enter counts for the next.

    Also one that turns out to be here already, so that at the edge of a cap the next may settle first without need.
    """

    def __init__(self, before: books.Before) -> None:
        self.before = before
        self._outstanding_atomic = before.books_atomic.get("outstanding", 0)
        self._changes = books.Changes()

    def of(self, wanted: Wanted) -> Standing:
        """Return where the payer of one payment stands."""
        payer = wanted.payment.authorization.payer
        sums, changes = self.before.payers[payer], self._changes
        return Standing(
            settled_count=sums.settled_count,
            outstanding_atomic=sums.outstanding_atomic + changes.outstanding_atomic[payer],
            exposure_atomic=sums.exposure_atomic + changes.exposure_atomic[payer],
            total_outstanding_atomic=self._outstanding_atomic + changes.total_atomic,
            withdrawn_count=sums.withdrawn_count,
            balance_atomic=wanted.balance_atomic(sums.settled_atomic),
        )

    def judge(self, wanted: Wanted) -> Mode | FareboxError:
        """Return how a payment is settled, and count it; or why it is refused."""
        try:
            mode = wanted.mode(self.of(wanted))
        except FareboxError as refusal:
            return refusal
        authorization = wanted.payment.authorization
        self._changes.add(authorization.payer, authorization.value_atomic, on_credit=mode is Mode.ASYNC)
        return mode
