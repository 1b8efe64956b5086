"""Nonces: what tells one authorization of a wallet from another, on disk before anything is signed with it.

A token takes any 32 bytes, so they are random. Permit2 keeps one bit for each, 256 to a word: a purchase has words of
its own, with random numbers, and takes their bits in order. So one read of the chain tells of 256 authorizations, one
transaction revokes as many, and a settlement in a word that was used before is cheaper.
"""

from __future__ import annotations

import secrets

from buyer.purchase import Purchase
from contracts.networks import PERMIT2
from contracts.schemes.rails import rail_of
from contracts.storage import Connection

__all__ = ["close_words", "draw_nonces"]

_WORD_BYTES = 31
_BITS = 256


def draw_nonces(connection: Connection, purchase: Purchase, count: int) -> list[bytes]:
    """Return `count` nonces that were never drawn before, 32 bytes each. Must run in one synced transaction."""
    offer = purchase.offer
    if rail_of(offer).registry(offer.asset.address) != PERMIT2:
        return [secrets.token_bytes(32) for _ in range(count)]
    nonces: list[bytes] = []
    while len(nonces) < count:
        nonces += _draw_from_word(connection, purchase, count - len(nonces))
    return nonces


def close_words(connection: Connection) -> None:
    """Draw nothing more from the words there are: an older copy of the store does not know what was drawn since."""
    connection.execute("UPDATE permit2_words SET next_bit = ?", (_BITS,))


def _draw_from_word(connection: Connection, purchase: Purchase, wanted: int) -> list[bytes]:
    query = "SELECT word, next_bit FROM permit2_words WHERE purchase_id = ? AND next_bit < ? LIMIT 1"
    row = connection.execute(query, (purchase.id, _BITS)).fetchone()
    if row is None:
        row = {"word": secrets.token_bytes(_WORD_BYTES), "next_bit": 0}
        connection.execute("INSERT INTO permit2_words VALUES (?, ?, 0)", (row["word"], purchase.id))
    word, first = bytes(row["word"]), int(row["next_bit"])
    end = min(_BITS, first + wanted)
    connection.execute("UPDATE permit2_words SET next_bit = ? WHERE word = ?", (end, word))
    return [word + bytes((bit,)) for bit in range(first, end)]
