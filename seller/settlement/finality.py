"""Looks at verdicts again until no re-organisation of the chain can change them.

A payment that the chain no longer shows is due again: its transaction is sent once more, byte for byte, and what was
earned is not counted as earned meanwhile. A loss that the chain shows as paid after all is earned.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from contracts.address import Address
from contracts.errors import ChainUnavailable, StoreUnavailable
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.lifecycle import Money, MoneyEvent
from contracts.limits import RPC_BATCH_MAX
from contracts.storage import Conflict, Connection, Database
from seller import books
from seller.limits import FINAL_BLOCKS, REORG_LOOKS, UNPROVEN_MAX
from seller.settlement.evidence import Evidence, is_shown
from seller.settlement.outbox import Item, item_of, now_ms

__all__ = ["Finality"]

_log = logging.getLogger("farebox.seller.settlement")


@dataclass(frozen=True, slots=True)
class _Unproven:
    """A payment with its present verdict, and what was seen of it last."""

    item: Item
    money: Money
    transaction_hash: str
    block: int | None
    misses: int


class Finality:
    """Checks the settled and lost payments of one token. Only the holder of the account's lease may call it."""

    def __init__(self, database: Database, rpc: Rpc, chain_id: int, token: Address) -> None:
        self._database = database
        self._rpc = rpc
        self._chain_id = chain_id
        self._token = token
        self._evidence = Evidence(rpc, token)
        self._head_hash = ""

    async def check(self) -> None:
        """Look at the payments that were not looked at for longest. Raises `ChainUnavailable`, `StoreUnavailable`."""
        unproven = self._oldest()
        if not unproven:
            return
        head, head_hash, receipts = await self._receipts(
            list(dict.fromkeys(each.transaction_hash for each in unproven))
        )
        if head_hash == self._head_hash and all(each.block is not None and not each.misses for each in unproven):
            return  # the same chain as the last time
        seen: list[tuple[_Unproven, int]] = []
        for each in unproven:
            receipt = receipts.get(each.transaction_hash)
            if each.money is Money.SETTLED and receipt is not None and self._shows(receipt, each):
                seen.append((each, int(receipt["blockNumber"], 16)))
            elif head >= (each.block or 0) and await self._is_as_judged(each):
                seen.append((each, each.block or head))
        await self._write(lambda connection: _note_seen(connection, seen, head), durable=False)
        self._head_hash = head_hash

    async def _receipts(self, hashes: Sequence[str]) -> tuple[int, str, dict[str, dict[str, Any]]]:
        """Return height and hash of the chain's head, and the receipts it has; all are one node's answer."""
        wanted = [each for each in hashes if each]
        calls: list[tuple[str, list[Any]]] = [("eth_getBlockByNumber", ["latest", False])]
        calls += [("eth_getTransactionReceipt", [each]) for each in wanted]
        block, *answers = await self._rpc.batch(calls)
        for answer in (block, *answers):
            if isinstance(answer, RpcRefused):
                raise ChainUnavailable(f"the chain's node refused to answer: {answer.message}")
        try:
            receipts = {each: answer for each, answer in zip(wanted, answers, strict=True) if answer is not None}
            return int(block["number"], 16), str(block["hash"]), receipts
        except (TypeError, KeyError, ValueError):
            raise ChainUnavailable("eth_getBlockByNumber: the answer is not a block") from None

    def _shows(self, receipt: dict[str, Any], each: _Unproven) -> bool:
        try:
            return is_shown(receipt["logs"], each.item, self._token)
        except (KeyError, TypeError, IndexError, ValueError):
            return False

    async def _is_as_judged(self, each: _Unproven) -> bool:
        """Ask the token itself where the transaction is gone, or decides otherwise; write down what has changed."""
        verdict = await self._evidence.judge(each.item)
        if verdict.event is MoneyEvent.CHAIN_PAID:
            await self._write(lambda connection: _paid_elsewhere(connection, each, verdict.transaction_hash))
        elif each.money is Money.LOST:
            return True
        elif each.misses + 1 < REORG_LOOKS:
            await self._write(lambda connection: _note_missed(connection, each))
        else:
            _log.warning("payment %d is due again: the chain no longer shows %s", each.item.id, each.transaction_hash)
            await self._write(lambda connection: _due_again(connection, each, self._chain_id))
        return False

    def _oldest(self) -> list[_Unproven]:
        rows = self._database.read(
            lambda connection: connection.execute(
                "SELECT payments.*, unproven.block AS seen_block, unproven.misses FROM unproven"
                " JOIN payments ON payments.id = unproven.payment_id"
                " WHERE payments.chain_id = ? AND payments.token = ? ORDER BY unproven.checked_ms LIMIT ?",
                (self._chain_id, self._token, UNPROVEN_MAX),
            ).fetchall()
        )
        hashes: set[str] = set()
        chosen = []
        for row in rows:
            hashes.add(row["transaction_hash"] or "")
            if len(hashes) >= RPC_BATCH_MAX:
                break  # what one request can ask
            chosen.append(
                _Unproven(
                    item_of(row), Money(row["money"]), row["transaction_hash"] or "", row["seen_block"], row["misses"]
                )
            )
        return chosen

    async def _write(self, work: Any, *, durable: bool = True) -> None:
        try:
            await self._database.write(work, durable=durable)
        except Conflict as error:
            raise StoreUnavailable(f"{self._database.name}: {error}") from None


def _note_seen(connection: Connection, seen: Sequence[tuple[_Unproven, int]], head: int) -> None:
    """Note where payments were seen, and look no more at those that lie deep enough."""
    now = now_ms()
    connection.executemany(
        "UPDATE unproven SET block = ?, misses = 0, checked_ms = ? WHERE payment_id = ?",
        [(block, now, each.item.id) for each, block in seen if head - block + 1 < FINAL_BLOCKS],
    )
    connection.executemany(
        "DELETE FROM unproven WHERE payment_id = ?",
        [(each.item.id,) for each, block in seen if head - block + 1 >= FINAL_BLOCKS],
    )


def _note_missed(connection: Connection, each: _Unproven) -> None:
    connection.execute(
        "UPDATE unproven SET misses = misses + 1, checked_ms = ? WHERE payment_id = ?", (now_ms(), each.item.id)
    )


def _paid_elsewhere(connection: Connection, each: _Unproven, transaction_hash: str) -> None:
    if _is_as_seen(connection, each):
        if each.money is Money.LOST:
            books.move(connection, each.item.id, MoneyEvent.CHAIN_PAID, now_ms(), transaction_hash=transaction_hash)
            return
        connection.execute(
            "UPDATE payments SET transaction_hash = ?, updated_ms = ? WHERE id = ?",
            (transaction_hash, now_ms(), each.item.id),
        )
        connection.execute(
            "UPDATE unproven SET block = NULL, misses = 0, checked_ms = ? WHERE payment_id = ?",
            (now_ms(), each.item.id),
        )


def _due_again(connection: Connection, each: _Unproven, chain_id: int) -> None:
    """Take the money back out of the books. What was delivered for it is on credit from now on."""
    if not _is_as_seen(connection, each):
        return
    connection.execute(
        "UPDATE payments SET mode = CASE WHEN work = 'delivered' THEN 'async' ELSE mode END, transaction_hash = NULL,"
        " transaction_id = NULL, attempts = 0, due_ms = 0 WHERE id = ?",
        (each.item.id,),
    )
    books.move(connection, each.item.id, MoneyEvent.CHAIN_REORGANISED, now_ms())
    transaction_id = _reopened(connection, each.transaction_hash, chain_id)
    if transaction_id is not None:
        connection.execute("UPDATE payments SET transaction_id = ? WHERE id = ?", (transaction_id, each.item.id))
        books.move(connection, each.item.id, MoneyEvent.SUBMIT, now_ms())


def _reopened(connection: Connection, transaction_hash: str, chain_id: int) -> int | None:
    """Return our transaction of that hash, to be sent again; None where it is not ours or its nonce is in use."""
    ours = connection.execute(
        "SELECT transactions.* FROM transactions JOIN signed_forms ON signed_forms.transaction_id = transactions.id"
        " WHERE signed_forms.hash = ? AND transactions.chain_id = ?",
        (transaction_hash, chain_id),
    ).fetchone()
    if ours is None:
        return None
    rival = connection.execute(
        "SELECT 1 FROM transactions WHERE chain_id = ? AND account = ? AND account_nonce = ? AND state = 'sent'"
        " AND id <> ?",
        (chain_id, ours["account"], ours["account_nonce"], ours["id"]),
    ).fetchone()
    if rival is not None:
        return None
    connection.execute("UPDATE transactions SET state = 'sent' WHERE id = ?", (ours["id"],))
    return int(ours["id"])


def _is_as_seen(connection: Connection, each: _Unproven) -> bool:
    row = connection.execute("SELECT money FROM payments WHERE id = ?", (each.item.id,)).fetchone()
    return row is not None and row["money"] == each.money.value
