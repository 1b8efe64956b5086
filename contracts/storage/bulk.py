"""Statements about many rows at once: one turn of the store for a whole piece of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TypeVar

__all__ = ["in_pieces", "placeholders"]

T = TypeVar("T")

# Few sizes, so that a store prepares few statements; 64 rows of 25 values are far below every store's limit of values.
_SIZES = (64, 32, 16, 8, 4, 2, 1)


def in_pieces(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield `rows` in order, in pieces whose lengths are powers of two, 64 at most."""
    begin = 0
    for size in _SIZES:
        while len(rows) - begin >= size:
            yield rows[begin : begin + size]
            begin += size


@lru_cache(maxsize=64)
def placeholders(columns: int, rows: int) -> str:
    """Return `(?, ?), (?, ?)` for two rows of two columns."""
    return ", ".join([f"({', '.join('?' * columns)})"] * rows)
