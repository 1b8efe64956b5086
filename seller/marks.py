"""Payers whose money went away after work had begun for them: each settles first, until the seller lifts the mark."""

from __future__ import annotations

from dataclasses import dataclass

from contracts.address import Address
from contracts.storage import Connection

__all__ = ["Marked", "lift_mark", "marked"]


@dataclass(frozen=True, slots=True)
class Marked:
    """A payer that settles first: how often work for it was lost, and what it has paid all the same, atomic units."""

    payer: Address
    withdrawn_count: int
    settled_atomic: int


def marked(connection: Connection, chain_id: int, token: Address, limit: int) -> list[Marked]:
    """Return up to `limit` marked payers of a token, those that cost most work first."""
    rows = connection.execute(
        "SELECT payer, withdrawn_count, settled_atomic FROM payers"
        " WHERE chain_id = ? AND token = ? AND withdrawn_count > 0 ORDER BY withdrawn_count DESC, payer LIMIT ?",
        (chain_id, token, limit),
    )
    return [
        Marked(Address(bytes(row["payer"])), row["withdrawn_count"], int(row["settled_atomic"]))
        for row in rows.fetchall()
    ]


def lift_mark(connection: Connection, key: tuple[int, Address, Address]) -> bool:
    """Take the mark off the payer with this (chain id, token, payer); False when it had none."""
    changed = connection.execute(
        "UPDATE payers SET withdrawn_count = 0 WHERE chain_id = ? AND token = ? AND payer = ? AND withdrawn_count > 0",
        key,
    )
    return changed.rowcount == 1
