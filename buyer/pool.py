"""The pool: pre-signed authorizations on disk, one store for all processes of a buyer.

A pool counts, leases and hands out; it never holds a key and cannot sign. At every instant, and after every crash,
the authorizations of a purchase in the seven states sum to what was signed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import msgspec

from buyer.claim import Claim, usable_until_s
from buyer.generation import Generation
from buyer.home import Home
from buyer.lease import recover
from buyer.limits import LEASE_SIZE
from buyer.purchase import Purchase
from buyer.receipts import Receipt, find_receipt, read_receipts
from buyer.rows import OPEN_IDS_SQL, PURCHASE_QUERY, find_purchase, purchase_from_row
from buyer.seal import Seal, begin_sealing, find_seal, make_seal_key, read_seal_id
from buyer.spender import Spender
from buyer.tails import Tails
from contracts.address import Address
from contracts.money import Asset
from contracts.offers import offer_from_wire
from contracts.storage import Connection, Database, open_database
from contracts.wire import Requirements

__all__ = ["Claim", "Counts", "Pool", "Spender"]


@dataclass(frozen=True, slots=True)
class Counts:
    """Authorizations of one purchase by state."""

    ready: int = 0
    claimed: int = 0
    sent: int = 0
    unknown: int = 0
    spent: int = 0
    expired: int = 0
    cancelled: int = 0

    @property
    def signed(self) -> int:
        """All that were ever signed."""
        return self.ready + self.claimed + self.sent + self.unknown + self.spent + self.expired + self.cancelled

    @property
    def live(self) -> int:
        """Those that may still cost money."""
        return self.ready + self.claimed + self.sent + self.unknown

    @property
    def remaining(self) -> int:
        """Those no request has taken yet."""
        return self.ready


class Pool:
    """The books of one buyer. Open once a process; `spender` gives it the right to spend."""

    def __init__(self, home: Home, database: Database, *, era: str | None = None) -> None:
        self.home = home
        self.database = database
        self._given_era = era
        self.generation = Generation(home, database, self.era())
        self.tails = None if database.folder is None else Tails(database.folder / "generation", self.generation)
        database.beside = self.tails

    @classmethod
    def open(cls, home: Home, *, era: str | None = None) -> Pool:
        """Open the pool of `home` and settle what dead workers left behind.

        A pool that was restored from a backup is noticed, and hands nothing out before `process` has asked the chain.
        `era` stands for the store's own (`Database.era`); tests give another one to stand for a power loss. Raises
        `StoreUnavailable`, and `ConfigInvalid` when other users can read it.
        """
        home.check_private()
        database = open_database(home.database_url, "buyer.migrations")
        try:
            pool = cls(home, database, era=era)
        except BaseException:
            database.close()
            raise
        try:
            pool.generation.check(int(time.time()))
            recover(pool.database, pool.era(), pool.tails)
        except BaseException:
            pool.close()
            raise
        return pool

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def era(self) -> str:
        """Return the era of the store; see `Database.era`."""
        return self._given_era or self.database.era()

    def exclusively(self, name: str) -> AbstractContextManager[None]:
        """Hold the lock `name` of this pool while a block runs, on every machine. Raises `RequestInProgress`."""
        return self.database.exclusively(name)

    def purchases(self, *, kind: str = "pool") -> list[Purchase]:
        """Return the purchases that are not removed, by name. `kind="once"` lists one-shot payments instead."""
        query = PURCHASE_QUERY + "WHERE state != 'removed' AND kind = ? ORDER BY name"
        return self.database.read(
            lambda connection: [purchase_from_row(row) for row in connection.execute(query, (kind,))], bare=True
        )

    def purchase(self, name: str) -> Purchase:
        """Return the purchase called `name`. Raises `NameUnknown`."""
        return self.database.read(lambda connection: find_purchase(connection, name), bare=True)

    def counts(self, name: str) -> Counts:
        """Return the authorizations of the purchase called `name` by state. Raises `NameUnknown`."""
        return self.database.read(lambda connection: count_states(connection, find_purchase(connection, name).id))

    def counts_of(self, purchase: Purchase) -> Counts:
        """`counts` for a purchase that may be removed already."""
        return self.database.read(lambda connection: count_states(connection, purchase.id))

    def state_of(self, purchase: Purchase) -> str:
        """Return the state of a purchase as it is now: active, draining or removed."""
        query = "SELECT state FROM purchases WHERE id = ?"
        state: str = self.database.read(
            lambda connection: connection.execute(query, (purchase.id,)).fetchone()[0], bare=True
        )
        return state

    def assets(self) -> dict[tuple[str, str], Asset]:
        """Return every token ever bought with, by CAIP-2 network and checksummed address."""
        query = "SELECT DISTINCT accepted, decimals FROM terms"
        offers = self.database.read(
            lambda connection: [
                offer_from_wire(msgspec.json.decode(row["accepted"], type=Requirements), decimals=row["decimals"])
                for row in connection.execute(query)
            ]
        )
        return {(offer.network.caip2, offer.asset.address_text): offer.asset for offer in offers}

    def spendable(self, purchase: Purchase, now_s: int) -> int:
        """Return how many authorizations can be claimed now: of the current terms, not too old, not of another day."""
        query = """SELECT count(*) FROM authorizations
                   WHERE state = 'ready' AND purchase_id = ? AND terms_id = ? AND valid_before_s >= ?
                       AND valid_after_s <= ?"""
        values = (purchase.id, purchase.terms_id, usable_until_s(purchase, now_s), now_s)
        count: int = self.database.read(lambda connection: connection.execute(query, values).fetchone()[0])
        return count

    def expires_first_s(self, purchase: Purchase) -> int | None:
        """Return the earliest validBefore of what is ready, unix seconds, or None when nothing is."""
        query = "SELECT min(valid_before_s) FROM authorizations WHERE state = 'ready' AND purchase_id = ?"
        first: int | None = self.database.read(
            lambda connection: connection.execute(query, (purchase.id,)).fetchone()[0]
        )
        return first

    def worst_case_loss_atomic(self, name: str) -> int:
        """Return the atomic units that all live authorizations and unfinished signings may still cost."""
        return self.exposure_of(self.purchase(name))

    def exposure_of(self, purchase: Purchase) -> int:
        """`worst_case_loss_atomic` for a purchase that may be removed already."""
        values = {"purchase": purchase.id}
        return self.database.read(lambda connection: exposure_atomic(connection, "purchase_id = :purchase", values))

    def payer_exposure_atomic(self, chain_id: int, token: Address, payer: Address) -> int:
        """Return what all live authorizations of one wallet in one token may still cost, over the whole home."""
        return self.database.read(lambda connection: payer_exposure(connection, chain_id, token, payer))

    def receipts(self, *, name: str | None = None, limit: int = 50) -> list[Receipt]:
        """Return the newest receipts first."""
        return self.database.read(lambda connection: read_receipts(connection, name=name, limit=limit))

    def receipt_of(self, request_key: str) -> Receipt | None:
        """Return the newest receipt of one logical request, or None when nothing ever left for it."""
        # A claim in somebody's tail is of a request that nobody can ask about yet.
        return self.database.read(lambda connection: find_receipt(connection, request_key), bare=True)

    def spender(self, *, lease_size: int = LEASE_SIZE) -> Spender:
        """Return the spending side for this process, which takes up to `lease_size` authorizations at a time."""
        return Spender(
            self.database, self.era, self.generation, lease_size=lease_size, seal=self.seal(), tails=self.tails
        )

    def begin_sealing(self, spec: str) -> None:
        """Encrypt all signatures of this pool with the key that `spec` names (`buyer.seal`). Raises `ConfigInvalid`."""
        seal = make_seal_key(self.home, spec)
        self.database.transact(lambda connection: begin_sealing(connection, seal))

    def seal(self) -> Seal | None:
        """Return what opens this pool's signatures; None where they are not sealed. Raises `ConfigInvalid`."""
        return find_seal(self.home, self.database.read(read_seal_id, bare=True))

    async def reconcile(
        self, name: str, rpc_urls: Sequence[str], *, ready_too: bool = False, clock: Callable[[], float] = time.time
    ) -> dict[str, int]:
        """Ask the chain what became of the UNKNOWN authorizations of a purchase.

        Returns how many were found `spent`, `expired` and `cancelled`, and how many stay `unknown`. With `ready_too`,
        those never handed out are asked about as well (a restored backup may hold used ones). `clock` tells unix
        seconds. Raises `NameUnknown`, `ChainUnavailable`, `TermsNotAllowed` when no endpoint is of its chain.
        """
        return await self.reconcile_purchase(self.purchase(name), rpc_urls, ready_too=ready_too, clock=clock)

    async def reconcile_purchase(
        self,
        purchase: Purchase,
        rpc_urls: Sequence[str],
        *,
        ready_too: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> dict[str, int]:
        """`reconcile` for a purchase that may be removed already."""
        from buyer.reconcile import reconcile

        return await reconcile(self.database, purchase, rpc_urls, ready_too=ready_too, clock=clock)

    def open_outcomes(self, purchase: Purchase) -> int:
        """Return of how many only the chain can say what they cost: UNKNOWN ones, and ceilings without proof."""
        query, values = f"SELECT count(*) FROM ({OPEN_IDS_SQL}) AS open", {"purchase": purchase.id}  # noqa: S608 - a constant
        count: int = self.database.read(lambda connection: connection.execute(query, values).fetchone()[0])
        return count

    def unsettled(self) -> list[Purchase]:
        """Return every purchase, removed and one-shot ones included, of which something may still cost money."""
        open_ids = OPEN_IDS_SQL.replace(":purchase", "purchases.id")
        query = f"""{PURCHASE_QUERY} WHERE EXISTS (SELECT 1 FROM authorizations WHERE purchase_id = purchases.id
                        AND authorizations.state IN ('ready', 'claimed', 'sent'))
                    OR EXISTS ({open_ids})
                    OR EXISTS (SELECT 1 FROM intents WHERE purchase_id = purchases.id) ORDER BY name, purchases.id"""  # noqa: S608 - constants
        return self.database.read(lambda connection: [purchase_from_row(row) for row in connection.execute(query)])

    def drain(self, purchase: Purchase) -> None:
        """Refill a purchase no more; what it holds may still be spent, and then it is removed."""
        query = "UPDATE purchases SET state = 'draining' WHERE id = ? AND state = 'active'"
        self.database.transact(lambda connection: connection.execute(query, (purchase.id,)))

    def finish_drained(self, purchase: Purchase) -> bool:
        """Remove a draining purchase of which nothing can be spent any more, and tell whether that was so."""
        query = """UPDATE purchases SET state = 'removed' WHERE id = :id AND state = 'draining'
                   AND NOT EXISTS (SELECT 1 FROM authorizations WHERE purchase_id = :id
                       AND authorizations.state IN ('ready', 'claimed', 'sent', 'unknown'))
                   AND NOT EXISTS (SELECT 1 FROM intents WHERE purchase_id = :id)"""
        return self.database.transact(lambda connection: connection.execute(query, {"id": purchase.id}).rowcount > 0)

    def remove(self, purchase: Purchase) -> None:
        """Hand out nothing of a purchase any more. What was signed stays counted until it is used or its time is over.

        A request that is waiting for its answer ends as it would have.
        """

        def take_back(connection: Connection) -> None:
            connection.execute("UPDATE purchases SET state = 'removed' WHERE id = ?", (purchase.id,))
            connection.execute(
                "UPDATE authorizations SET lease = NULL WHERE purchase_id = ? AND state = 'ready'", (purchase.id,)
            )

        self.database.transact(take_back)

    def close(self) -> None:
        """Close the store. Spenders must be closed before."""
        self.database.close()
        self.generation.close()


def count_states(connection: Connection, purchase_id: int) -> Counts:
    """Return the authorizations of one purchase by state."""
    query = "SELECT state, count(*) FROM authorizations WHERE purchase_id = ? GROUP BY state"
    by_state: dict[str, int] = dict(connection.execute(query, (purchase_id,)).fetchall())
    return Counts(**by_state)


def payer_exposure(
    connection: Connection, chain_id: int, token: Address, payer: Address, *, registry: Address | None = None
) -> int:
    """Return atomic units: everything signed by `payer` in `token` that may still be used, of all purchases.

    With `registry`, only what that contract would move.
    """
    where, values = (
        "chain_id = :chain AND token = :token AND payer = :payer",
        {"chain": chain_id, "token": token, "payer": payer},
    )
    if registry is not None:
        where, values = f"{where} AND registry = :registry", {**values, "registry": registry}
    return exposure_atomic(connection, where, values)


def exposure_atomic(connection: Connection, where: str, values: dict[str, Any]) -> int:
    """Return atomic units of live authorizations and of intents, which a signer may have signed already."""
    query = f"""
        SELECT value_atomic, count(*) FROM authorizations
        WHERE {where} AND state IN ('ready', 'claimed', 'sent', 'unknown') GROUP BY value_atomic
        UNION ALL SELECT value_atomic, count(*) FROM intents WHERE {where} GROUP BY value_atomic
    """  # noqa: S608 - the conditions are constants of this room
    return sum(int(value) * count for value, count in connection.execute(query, values))
