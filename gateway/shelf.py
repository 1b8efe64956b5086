"""What this gateway can sell on: the purchases of one home, as they stand now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from buyer.pool import Counts, Pool
from buyer.purchase import Purchase
from contracts.errors import FareboxError, NameUnknown, PriceAboveCap, TermsChanged
from contracts.money import format_amount, parse_amount
from gateway.limits import TERMS_CHANGED_PAUSE_S, TROUBLE_TOLD_EVERY_S
from gateway.models import Ranking, by_model, cheapest_first, document, find

__all__ = ["Shelf"]


@dataclass(frozen=True, slots=True)
class _Trouble:
    """The last thing that went wrong with a purchase, and when; `told_s` is when its like was news (unix seconds)."""

    code: str
    message: str
    at_s: int
    told_s: float


class Shelf:
    """A snapshot of the pool's purchases, replaced whole by `reload`, and what was last heard of each seller."""

    def __init__(self, pool: Pool, *, ranking: Ranking = cheapest_first) -> None:
        self._pool = pool
        self._ranking = ranking
        self._purchases: tuple[Purchase, ...] = ()
        self._by_model: dict[str, list[Purchase]] = {}
        self._troubles: dict[str, _Trouble] = {}
        self._paused: dict[tuple[str, int], float] = {}
        self.reload()

    @property
    def purchases(self) -> tuple[Purchase, ...]:
        """Every purchase that calls can be paid from."""
        return self._purchases

    def reload(self) -> None:
        """Read the purchases again; another process may have bought, refilled or removed. Raises `StoreUnavailable`."""
        self._purchases = tuple(self._pool.purchases())
        self._by_model = by_model(self._purchases)

    def find(self, model: str, seller: str | None) -> list[Purchase]:
        """Return the purchases for `model`, best first. Raises `NameUnknown` when there is none."""
        found = find(model, self._by_model, seller)
        if not found:
            self.reload()
            found = find(model, self._by_model, seller)
        if not found:
            raise NameUnknown(
                f"model: no purchase of {model[:100]!r}" + (f" from {seller!r}" if seller else ""),
                remedy=f"run `farebox buy NAME --endpoint URL --model {model[:100]} --count N --max-price P`",
            )
        return self._ranking(found)

    def affordable(self, ranked: list[Purchase], caps: dict[str, str]) -> list[Purchase]:
        """Return those of `ranked` whose price is within every cap; `caps` maps a cap's name to its text.

        A cap holds for tokens of different decimals, and is never rounded up. Raises `PriceAboveCap` when none is,
        `UsageError` naming the cap that does not parse.
        """
        if not caps:
            return ranked
        kept = [
            purchase
            for purchase in ranked
            if all(purchase.offer.amount_atomic <= _cap_atomic(purchase, name, text) for name, text in caps.items())
        ]
        if not kept:
            best = ranked[0].offer
            stated = ", ".join(f"{name} is {text}" for name, text in caps.items())
            raise PriceAboveCap(
                f"{ranked[0].name} asks {format_amount(best.amount_atomic, best.asset)} a call and {stated}",
                remedy="raise the cap, or choose another seller",
            )
        return kept

    def open_for_business(self, ranked: list[Purchase], now_s: float) -> list[Purchase]:
        """Return those of `ranked` that did not just refuse their own terms. Raises `TermsChanged` for none."""
        if not self._paused:
            return ranked
        kept = [one for one in ranked if self._paused.get((one.name, one.terms_id), 0) <= now_s]
        if not kept:
            trouble = self._troubles[ranked[0].name]
            raise TermsChanged(trouble.message)
        return kept

    def note_trouble(self, purchase: Purchase, error: FareboxError, now_s: float) -> bool:
        """Remember what went wrong, and tell whether it is news: another error, or a minute after it was told.

        A seller that changed its terms is left alone for a while.
        """
        last = self._troubles.get(purchase.name)
        is_known = last is not None and last.code == error.code and now_s < last.told_s + TROUBLE_TOLD_EVERY_S
        told_s = last.told_s if last is not None and is_known else now_s
        self._troubles[purchase.name] = _Trouble(error.code, error.message, int(now_s), told_s)
        if isinstance(error, TermsChanged):
            self._paused[purchase.name, purchase.terms_id] = now_s + TERMS_CHANGED_PAUSE_S
        return not is_known

    def note_success(self, purchase: Purchase) -> None:
        """Remember that the seller answered."""
        self._paused.pop((purchase.name, purchase.terms_id), None)

    def counts(self) -> Iterator[tuple[str, Counts]]:
        """Yield name and counts of every purchase. Raises `StoreUnavailable`."""
        for purchase in self._purchases:
            yield purchase.name, self._pool.counts(purchase.name)

    def models(self) -> list[dict[str, Any]]:
        """Return the entries of `GET /v1/models`: bare ids, one a model."""
        return [document(model, purchases) for model, purchases in sorted(self._by_model.items())]

    def status(self, purchase: Purchase) -> dict[str, Any]:
        """Return one purchase for `/status`: counts, price, what could be lost at worst, the last trouble."""
        counts = self._pool.counts(purchase.name)
        trouble = self._troubles.get(purchase.name)
        return {
            "name": purchase.name,
            "state": purchase.state,
            "model": purchase.model,
            "endpoint": purchase.endpoint,
            "network": purchase.offer.network.caip2,
            "asset": purchase.offer.asset.address_text,
            "decimals": purchase.offer.asset.decimals,
            "price_atomic": str(purchase.offer.amount_atomic),
            "ready": counts.ready,
            "claimed": counts.claimed,
            "sent": counts.sent,
            "unknown": counts.unknown,
            "spent": counts.spent,
            "expired": counts.expired,
            "cancelled": counts.cancelled,
            "signed": counts.signed,
            "worst_case_loss_atomic": str(self._pool.worst_case_loss_atomic(purchase.name)),
            "last_error": None
            if trouble is None
            else {"code": trouble.code, "message": trouble.message, "at_s": trouble.at_s},
        }


def _cap_atomic(purchase: Purchase, name: str, text: str) -> int:
    return parse_amount(text, purchase.offer.asset, name, zero_allowed=True, rounds_down=True)
