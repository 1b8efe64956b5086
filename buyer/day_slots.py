"""The slots of an AgentWallet: each is one payment on one day, and is drawn for one authorization for ever.

The wallet's contract takes a slot's nonce once, and only inside its day, so a slot that was drawn twice would be one
payment signed for two. Draws are kept in the pool, shared by all purchases of the wallet; and, before anything is
signed, in a note beside the generation's (`buyer.generation`), so that a pool restored from a backup does not draw them
again. Days are counted since 1970 (UTC).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from buyer.home import Home
from buyer.limits import CLAIM_MARGIN_S, SELLER_TIMEOUT_S_MAX, WALLET_DAYS_AHEAD
from buyer.purchase import Purchase
from contracts.address import Address
from contracts.errors import BudgetExceeded, StoreUnavailable
from contracts.evm.agent_wallet import Policy, day_of, slot_of, slot_window
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization
from contracts.storage import Connection

__all__ = ["SlotBook", "missing"]

_LIVE = "('ready', 'claimed', 'sent', 'unknown')"


@dataclass(frozen=True, slots=True)
class SlotBook:
    """The draws of one wallet for one token."""

    home: Home
    chain_id: int
    token: Address
    wallet: Address

    @classmethod
    def of(cls, home: Home, offer: Offer, wallet: Address) -> SlotBook:
        """Return the book from which payments of `offer` by `wallet` are drawn."""
        return cls(home, offer.network.chain_id, offer.asset.address, wallet)

    def left(self, connection: Connection, policy: Policy, day: int) -> int:
        """Return how many slots of a day were never drawn."""
        return max(0, policy.slots - self._next(connection, day)) if day >= policy.from_day else 0

    def draw(self, connection: Connection, policy: Policy, day: int, count: int) -> range:
        """Return the numbers of `count` slots of a day. Must run in one synced transaction, and `note` must follow.

        Raises `BudgetExceeded` when the wallet's policy has fewer left.
        """
        first = self._next(connection, day)
        if count > self.left(connection, policy, day):
            raise BudgetExceeded(
                f"the wallet's policy allows {policy.slots} payments a day, and {first} of day {day} are drawn",
                remedy="wait for the next day, or raise the policy with `farebox wallet policy`",
            )
        connection.execute(
            """INSERT INTO wallet_days (chain_id, token, wallet, day, next_slot) VALUES (?, ?, ?, ?, ?)
               ON CONFLICT (chain_id, token, wallet, day) DO UPDATE SET next_slot = excluded.next_slot""",
            (self.chain_id, self.token, self.wallet, day, first + count),
        )
        return range(first, first + count)

    def note(self, drawn: Iterable[Authorization]) -> None:
        """Note what is about to be signed. Raises `StoreUnavailable`: then nothing of it may be signed."""
        highest: dict[int, int] = {}
        for authorization in drawn:
            slot = slot_of(authorization.nonce)
            if slot is not None:
                highest[slot.day] = max(highest.get(slot.day, 0), slot.number + 1)
        for day, end in highest.items():
            if end > self._noted(day):
                self._write(day, end)
            # Nobody can use yesterday's any more; the day before stays for clocks that differ.
            with contextlib.suppress(OSError):
                self._file(day - WALLET_DAYS_AHEAD - 2).unlink()

    def _next(self, connection: Connection, day: int) -> int:
        query = "SELECT next_slot FROM wallet_days WHERE chain_id = ? AND token = ? AND wallet = ? AND day = ?"
        row = connection.execute(query, (self.chain_id, self.token, self.wallet, day)).fetchone()
        return max(0 if row is None else int(row["next_slot"]), self._noted(day))

    def _file(self, day: int) -> Path:
        name = f"slots-{self.chain_id}-{self.token.hex()}-{self.wallet.hex()}-{day}"
        return self.home.folder("generation") / name

    def _noted(self, day: int) -> int:
        try:
            return int(self._file(day).read_text("ascii"))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError):
            raise StoreUnavailable(f"generation: the note of day {day}'s slots cannot be read") from None

    def _write(self, day: int, end: int) -> None:
        path = self._file(day)
        fresh = path.with_suffix(".new")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(str(end))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError as error:
            raise StoreUnavailable(f"generation: {error.strerror}") from None


def missing(
    connection: Connection, purchase: Purchase | None, offer: Offer, wanted: int, now_s: int, *, replace_spent: bool
) -> list[tuple[int, int]]:
    """Return (day, how many more to sign) for today and the days ahead, so that each has `wanted`.

    With `replace_spent`, so many that are not spent; else spent ones count too. A day that is about to end is left out.
    """
    today = day_of(now_s)
    timeout_s = min(offer.max_timeout_s, SELLER_TIMEOUT_S_MAX)
    found = []
    for day in range(today, today + WALLET_DAYS_AHEAD + 1):
        _, end_s = slot_window(day)
        if end_s < now_s + CLAIM_MARGIN_S + timeout_s:
            continue
        short = wanted - (0 if purchase is None else _signed(connection, purchase, end_s, live_only=replace_spent))
        if short > 0:
            found.append((day, short))
    return found


def _signed(connection: Connection, purchase: Purchase, end_s: int, *, live_only: bool) -> int:
    """Return how many of the present terms are signed, or about to be, for the day that ends at `end_s`."""
    states = f"AND state IN {_LIVE}" if live_only else ""
    query = f"""SELECT (SELECT count(*) FROM authorizations WHERE purchase_id = :purchase AND terms_id = :terms
                            AND valid_before_s = :end {states})
                     + (SELECT count(*) FROM intents WHERE purchase_id = :purchase AND terms_id = :terms
                            AND valid_before_s = :end)"""  # noqa: S608 - constants
    values = {"purchase": purchase.id, "terms": purchase.terms_id, "end": end_s}
    return int(connection.execute(query, values).fetchone()[0])
