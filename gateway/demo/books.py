"""The demo's books: what the buyer's pool says and what the chain says, side by side. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Books"]


@dataclass(frozen=True, slots=True)
class Books:
    """Counts are authorizations; amounts are atomic units of the token. `seller_delta_atomic` is read on chain."""

    calls: int
    signed: int
    spent: int
    remaining: int
    unknown: int
    price_atomic: int
    seller_before_atomic: int
    seller_after_atomic: int
    settlement_tx_hashes: list[str]
    first_byte_ms: float

    @property
    def seller_delta_atomic(self) -> int:
        """What the seller's address gained on chain."""
        return self.seller_after_atomic - self.seller_before_atomic

    @property
    def worst_case_loss_atomic(self) -> int:
        """What could be lost at the very most with everything that was signed."""
        return self.signed * self.price_atomic

    @property
    def agree(self) -> bool:
        """Whether every call was paid once, nothing is in doubt, and the chain shows exactly what was spent."""
        return (
            self.calls == self.spent
            and self.unknown == 0
            and self.signed == self.spent + self.remaining
            and self.seller_delta_atomic == self.spent * self.price_atomic
        )

    def document(self, addresses: dict[str, str]) -> dict[str, Any]:
        """Return what `farebox demo --json` prints."""
        return {
            "ok": self.agree,
            **asdict(self),
            "seller_delta_atomic": self.seller_delta_atomic,
            "settlement_txs": len(self.settlement_tx_hashes),
            "worst_case_loss_atomic": self.worst_case_loss_atomic,
            "addresses": addresses,
        }
