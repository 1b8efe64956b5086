"""Fills books by bulk SQL, so that a bench can ask what millions of rows cost without signing a payment for each.

What it writes has the shape of real books, with random nonces, and with signatures that are good for nothing: copies of
one row that the rooms themselves wrote. Nothing in the product does this.
"""

from __future__ import annotations

from collections.abc import Mapping

from bench.workload import an_offer, presign
from buyer.pool import Pool
from buyer.purchase import Purchase
from buyer.signers import KeySigner
from contracts.offers import Offer
from contracts.storage import Connection, Database
from seller.ledger import Ledger

__all__ = ["fill_ledger", "fill_pool", "fill_purchases", "first_purchase"]

# Rows of one transaction: a server ends statements that take too long.
_ROWS_AT_ONCE = 100_000
_NUMBERS = "WITH RECURSIVE numbers (n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM numbers WHERE n < {last})"
# Payments of one payer in a filled ledger.
PAYMENTS_PER_PAYER = 10


def first_purchase(pool: Pool, offer: Offer | None = None) -> Purchase:
    """Return the purchase that the others are copies of, with one signed authorization."""
    return presign(pool, offer or an_offer(), KeySigner(b"\x01" * 32), 1)


def fill_pool(pool: Pool, purchase: Purchase, present: int, wanted: int) -> None:
    """Let `purchase` have `wanted` authorizations instead of `present`: every second one is spent and has a receipt."""
    spent = "n % 2 = 0"
    changes = {
        "nonce": _random_bytes(pool.database),
        "state": f"CASE WHEN {spent} THEN 'spent' ELSE 'ready' END",
        "request_key": f"CASE WHEN {spent} THEN 'request ' || n END",
        "fingerprint": f"CASE WHEN {spent} THEN 'fingerprint ' || n END",
        "claimed_s": f"CASE WHEN {spent} THEN signed_s + n % 1000 END",
        "delivered_s": f"CASE WHEN {spent} THEN signed_s + n % 1000 END",
        "status": f"CASE WHEN {spent} THEN 200 END",
    }
    _copy(pool.database, "authorizations", _free_one(purchase), changes, first=present + 1, last=wanted)
    _count_signed(pool.database)


def fill_purchases(pool: Pool, purchase: Purchase, wanted: int, *, authorizations: int) -> None:
    """Let the pool have `wanted` purchases instead of one; the others divide `authorizations` among themselves."""
    if wanted == 1:
        return
    names = {"name": "'bench-' || n", "model": "'m' || n"}
    _copy(pool.database, "purchases", f"id = {purchase.id}", names, first=2, last=wanted)
    owner = f"(SELECT id FROM purchases WHERE name = 'bench-' || (2 + n % {wanted - 1}) AND state != 'removed')"
    changes = {"nonce": _random_bytes(pool.database), "purchase_id": owner}
    _copy(pool.database, "authorizations", _free_one(purchase), changes, first=1, last=authorizations)
    _count_signed(pool.database)


def fill_ledger(ledger: Ledger, present: int, wanted: int) -> None:
    """Let a ledger in a SQLite file have `wanted` settled payments instead of `present`, each payer having made some.

    They are copies of its first payment.
    """
    if present <= 1:
        ledger.database.transact(_settle_all)
    payer = f"CAST(printf('%020d', (n / {PAYMENTS_PER_PAYER}) * 2654435761 % 1000000007) AS BLOB)"
    changes = {"nonce": "randomblob(32)", "payer": payer, "transaction_hash": "'0x' || hex(randomblob(32))"}
    _copy(ledger.database, "payments", "money = 'settled' ORDER BY id LIMIT 1", changes, first=present + 1, last=wanted)
    ledger.database.transact(_sum_up)


def _free_one(purchase: Purchase) -> str:
    """Return the condition that finds an authorization as it was signed."""
    return f"purchase_id = {purchase.id} AND state = 'ready' AND lease IS NULL ORDER BY id LIMIT 1"


def _copy(database: Database, table: str, template: str, changes: Mapping[str, str], *, first: int, last: int) -> None:
    """Insert copies of one row numbered `first` to `last`; `changes` are expressions by column, which may use `n`."""

    def insert(connection: Connection, begin: int, end: int) -> None:
        columns = _columns(connection, database, table)
        values = [changes.get(column, f"template.{column}") for column in columns]
        connection.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) {_NUMBERS.format(first=begin, last=end)}"
            f" SELECT {', '.join(values)} FROM numbers, (SELECT * FROM {table} WHERE {template}) AS template"
        )

    for begin in range(first, last + 1, _ROWS_AT_ONCE):
        end = min(last, begin + _ROWS_AT_ONCE - 1)
        database.transact(lambda connection: insert(connection, begin, end), durable=False)  # noqa: B023 - runs at once
    if not database.is_local:
        # What a server does by itself a minute after so many rows have come.
        database.transact(lambda connection: connection.execute(f"ANALYZE {table}"))


def _columns(connection: Connection, database: Database, table: str) -> list[str]:
    """Return the names of a table's columns, without its number."""
    if database.is_local:
        rows = connection.execute(f"SELECT name FROM pragma_table_info('{table}')").fetchall()
    else:
        rows = connection.execute(
            "SELECT column_name FROM information_schema.columns"
            " WHERE table_name = ? AND table_schema = current_schema() ORDER BY ordinal_position",
            (table,),
        ).fetchall()
    return [row[0] for row in rows if row[0] != "id"]


def _random_bytes(database: Database) -> str:
    return "randomblob(32)" if database.is_local else "sha256((random()::text || n)::bytea)"


def _count_signed(database: Database) -> None:
    database.transact(
        lambda connection: connection.execute(
            "UPDATE purchases SET signed_count ="
            " (SELECT count(*) FROM authorizations WHERE authorizations.purchase_id = purchases.id)"
        )
    )


def _settle_all(connection: Connection) -> None:
    """Call every payment settled: what a settlement would have written, without the chain."""
    connection.execute(
        "UPDATE payments SET money = 'settled', work = 'delivered', owner = NULL, transaction_hash = '0x'"
    )


def _sum_up(connection: Connection) -> None:
    """Set the sums that the ledger keeps to what the payments say."""
    connection.execute("DELETE FROM payers")
    connection.execute("DELETE FROM payment_counts")
    connection.execute(
        "INSERT INTO payers (chain_id, token, payer, settled_count, settled_atomic)"
        " SELECT chain_id, token, payer, count(*), CAST(sum(CAST(value_atomic AS INTEGER)) AS TEXT) FROM payments"
        " WHERE money = 'settled' GROUP BY chain_id, token, payer"
    )
    connection.execute(
        "INSERT INTO payment_counts (chain_id, token, money, payments)"
        " SELECT chain_id, token, money, count(*) FROM payments WHERE money = 'settled' GROUP BY chain_id, token, money"
    )
