"""The seller's books against themselves and against the chain. Reads only; asks, decides nothing.

What is on its way, or what the chain is ahead with, is a note. What the books say and the chain or another row
contradicts is a difference.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from contracts.address import Address, address_text
from contracts.audit import Finding
from contracts.errors import ChainUnavailable
from contracts.evm.evidence import Fate, Shown, read_fates, read_permit2_fates
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.evm.token import Head, read_head
from contracts.lifecycle import Money
from contracts.money import Asset, format_amount
from contracts.schemes import exact_eip3009
from contracts.storage import Connection, Database
from seller import books
from seller.settlement.outbox import Item, item_of

__all__ = ["audit_accounts", "audit_books", "audit_chain"]

# A transaction without a verdict for longer than this wants somebody's attention.
_STANDING_MS = 60_000
_CLAIMED = ("reserved", "queued", "submitted")
_COLUMNS = {"earned": "settled_atomic", "outstanding": "outstanding_atomic", "exposure": "exposure_atomic"}


@dataclass(frozen=True, slots=True)
class _Payment:
    """One payment as the books have it."""

    item: Item
    money: Money

    @property
    def name(self) -> str:
        """What it is called in a finding."""
        return f"payment {self.item.id} of {address_text(self.item.authorization.payer)}"

    @property
    def is_free(self) -> bool:
        """Whether it was served for nothing, so that the chain has nothing to show."""
        return self.money is Money.SETTLED and self.item.charged_atomic == 0


def audit_books(database: Database, chain_id: int, asset: Asset) -> list[Finding]:
    """Return whether the sums that are kept equal the sums over all payments of one token."""

    def examine(connection: Connection) -> list[Finding]:
        key = (chain_id, asset.address)
        where = "WHERE chain_id = ? AND token = ?"
        rows = connection.execute(f"SELECT * FROM payments {where}", key).fetchall()  # noqa: S608 - a constant
        kept = connection.execute(f"SELECT name, amount_atomic FROM books {where}", key).fetchall()  # noqa: S608 - as above
        payers = connection.execute(f"SELECT * FROM payers {where}", key).fetchall()  # noqa: S608 - as above
        return [
            _audit_sums(rows, {row["name"]: int(row["amount_atomic"]) for row in kept}, asset),
            _audit_payers(rows, payers),
        ]

    # Inside a write transaction, so that nobody writes between two of its questions.
    return database.transact(examine, durable=False)


async def audit_chain(database: Database, chain_id: int, asset: Asset, rpc: Rpc, *, depth: int) -> Finding:
    """Compare every payment with the chain: what is settled must be there, what is not must not have been paid.

    A transfer counts as settled on chain once `depth` blocks, its own included, hold it. Raises `ChainUnavailable`.
    """
    finding = Finding("seller against the chain")
    payments = database.read(lambda connection: _payments(connection, chain_id, asset.address))
    head = await read_head(rpc)
    shown = await _shown(rpc, asset.address, payments)
    # A payment may have moved on since it was read, and before the chain was.
    later = database.read(lambda connection: _payments(connection, chain_id, asset.address))
    states = {it.item.id: it.money for it in later}
    _judge(asset, [(it, what) for it, what in shown if states.get(it.item.id) is it.money], head, depth, finding)
    return finding


async def _shown(rpc: Rpc, token: Address, payments: Sequence[_Payment]) -> list[tuple[_Payment, Shown]]:
    """Return what the chain shows of each payment that it can show, by the way it was paid."""
    by_token = [it for it in payments if it.item.rail.NAME == exact_eip3009.NAME]
    by_permit2 = [it for it in payments if it.item.rail.NAME != exact_eip3009.NAME and not it.is_free]
    shown: list[tuple[_Payment, Shown]] = []
    for group, read in ((by_token, read_fates), (by_permit2, read_permit2_fates)):
        asked = [(it.item.authorization, it.item.since_block) for it in group]
        shown += zip(group, await read(rpc, token, asked) if asked else [], strict=True)
    return shown


async def audit_accounts(database: Database, chain_id: int, rpc: Rpc) -> list[Finding]:
    """Return, for every settling account, whether its stored transactions follow each other without a gap.

    Raises `ChainUnavailable`.
    """
    rows = database.read(
        lambda connection: connection.execute(
            "SELECT * FROM transactions WHERE chain_id = ? ORDER BY account, account_nonce", (chain_id,)
        ).fetchall()
    )
    findings = []
    for account in dict.fromkeys(bytes(row["account"]) for row in rows):
        answer = await _transaction_count(rpc, Address(account))
        mine = [row for row in rows if bytes(row["account"]) == account]
        findings.append(_audit_account(database, Address(account), mine, answer))
    return findings


def _audit_sums(rows: Sequence[Any], kept: dict[str, int], asset: Asset) -> Finding:
    counted = _added(_shares(row) for row in rows)
    finding = Finding("seller's sums", ", ".join(f"{name} {format_amount(it, asset)}" for name, it in counted.items()))
    for name, amount_atomic in counted.items():
        if kept.get(name, 0) != amount_atomic:
            finding.differ(
                f"{name}: the book says {kept.get(name, 0)}, the payments add up to {amount_atomic} atomic units"
            )
    return finding


def _audit_payers(rows: Sequence[Any], payers: Sequence[Any]) -> Finding:
    stated = {bytes(row["payer"]): row for row in payers}
    finding = Finding("seller's payers", f"{len(stated)} payers")
    by_payer: dict[bytes, list[Any]] = {payer: [] for payer in stated}
    for row in rows:
        by_payer.setdefault(bytes(row["payer"]), []).append(row)
    for payer, theirs in by_payer.items():
        counted = _added(_shares(row) for row in theirs)
        for name, column in _COLUMNS.items():
            said = int(stated[payer][column]) if payer in stated else 0
            if said != counted[name]:
                finding.differ(
                    f"{address_text(Address(payer))}: {column} is {said}, the payments add up to {counted[name]}"
                )
    return finding


def _shares(row: Any) -> dict[str, int]:
    """Return what one payment adds to each book, in atomic units."""
    amount_atomic, is_claimed = books.due_atomic(row), row["money"] in _CLAIMED
    return {
        "earned": amount_atomic if row["money"] == "settled" else 0,
        "outstanding": amount_atomic if is_claimed else 0,
        "exposure": amount_atomic if is_claimed and row["mode"] == "async" else 0,
        "lost": amount_atomic if row["money"] == "lost" and row["work"] == "delivered" else 0,
    }


def _added(shares: Iterable[dict[str, int]]) -> dict[str, int]:
    total = {"earned": 0, "outstanding": 0, "exposure": 0, "lost": 0}
    for share in shares:
        for name, amount_atomic in share.items():
            total[name] += amount_atomic
    return total


def _judge(asset: Asset, shown: Sequence[tuple[_Payment, Shown]], head: Head, depth: int, finding: Finding) -> None:
    settled_atomic = paid_atomic = young_atomic = unnoticed = 0
    for payment, what in shown:
        value_atomic = payment.item.charged_atomic
        is_paid = what.fate is Fate.PAID
        if is_paid and what.amount_atomic not in (None, value_atomic):
            finding.differ(f"{payment.name} is booked at {value_atomic}; on chain {what.amount_atomic} has moved")
        is_young = is_paid and what.block is not None and head.number - what.block + 1 < depth
        paid_atomic += value_atomic if is_paid and not is_young else 0
        young_atomic += value_atomic if is_young else 0
        if payment.money is Money.SETTLED:
            settled_atomic += value_atomic
            if not is_paid:
                finding.differ(f"{payment.name} is booked as settled; on chain it is {what.fate.value}")
        elif is_paid and payment.money in (Money.VOID, Money.LOST):
            finding.differ(f"{payment.name} is booked as {payment.money.value}; it was paid in {what.transaction}")
        elif is_paid:
            unnoticed += 1
    finding.found = (
        f"{len(shown)} payments: {format_amount(settled_atomic, asset)} settled by the books, "
        f"{format_amount(paid_atomic, asset)} received on chain"
    )
    if young_atomic:
        finding.notes.append(f"{format_amount(young_atomic, asset)} are received less than {depth} blocks deep")
    if unnoticed:
        finding.notes.append(f"{unnoticed} payments are on the chain and wait for their verdict")


def _audit_account(database: Database, account: Address, rows: Sequence[Any], next_nonce: int) -> Finding:
    """`next_nonce` is the account's transaction count on chain."""
    now_ms = time.time_ns() // 1_000_000
    sent = [row for row in rows if row["state"] == "sent"]
    finding = Finding(
        f"settling account {address_text(account)}",
        f"{len(rows)} transactions stored, {len(sent)} not final, next nonce on chain {next_nonce}",
    )
    expected = next_nonce
    for nonce in sorted(row["account_nonce"] for row in sent if row["account_nonce"] >= next_nonce):
        if nonce != expected:
            finding.differ(f"nonces {expected} to {nonce - 1} are missing: nothing after them can be mined")
        expected = nonce + 1
    for row in sent:
        age_s = (now_ms - row["created_ms"]) // 1000
        text = f"the transaction with nonce {row['account_nonce']} is stored for {age_s} s and not final"
        if now_ms - row["created_ms"] > _STANDING_MS:
            finding.differ(f"{text}; start `farebox settle`, or look at its log")
        else:
            finding.notes.append(text)
    final = {row["id"] for row in rows if row["state"] == "final"}
    for payment_id, transaction_id in database.read(_submitted):
        if transaction_id in final:
            finding.differ(f"payment {payment_id} waits for a transaction that is judged already")
    return finding


def _submitted(connection: Connection) -> list[tuple[int, int]]:
    query = "SELECT id, transaction_id FROM payments WHERE money = 'submitted' AND transaction_id IS NOT NULL"
    return [(row["id"], row["transaction_id"]) for row in connection.execute(query)]


async def _transaction_count(rpc: Rpc, account: Address) -> int:
    try:
        return int(await rpc.call("eth_getTransactionCount", address_text(account), "latest"), 16)
    except (RpcRefused, TypeError, ValueError):
        raise ChainUnavailable("eth_getTransactionCount: the answer is not a number") from None


def _payments(connection: Connection, chain_id: int, token: Address) -> list[_Payment]:
    rows = connection.execute(
        "SELECT * FROM payments WHERE chain_id = ? AND token = ? ORDER BY id", (chain_id, token)
    ).fetchall()
    return [_Payment(item_of(row), Money(row["money"])) for row in rows]
