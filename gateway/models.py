"""Model names: `paid/<model>`, `paid/<model>@<seller>`, and the purchases they mean. Pure.

At most one leading `paid/` is taken off; every other slash, colon and @ belongs to the model's own name. `<seller>` is
the name of a purchase.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import msgspec

from buyer.purchase import Purchase
from contracts.money import format_amount

__all__ = ["PAID_PREFIX", "ModelName", "Ranking", "by_model", "cheapest_first", "document", "find", "parse_model"]

PAID_PREFIX = "paid/"

Ranking = Callable[[Sequence[Purchase]], list[Purchase]]
"""Orders the purchases that could answer a call, best first. The place where a bidder attaches."""


class ModelName(msgspec.Struct, frozen=True):
    """What a request's `model` says: the name without its prefix, and whether the prefix was there."""

    name: str
    paid: bool


def parse_model(text: str) -> ModelName:
    """Return the model named by `text`: `paid/org/m:8b` → (`org/m:8b`, paid)."""
    if text.startswith(PAID_PREFIX):
        return ModelName(text[len(PAID_PREFIX) :], True)
    return ModelName(text, False)


def by_model(purchases: Iterable[Purchase]) -> dict[str, list[Purchase]]:
    """Return the purchases of each model."""
    offered: dict[str, list[Purchase]] = {}
    for purchase in purchases:
        offered.setdefault(purchase.model, []).append(purchase)
    return offered


def find(name: str, offered: Mapping[str, Sequence[Purchase]], seller: str | None = None) -> list[Purchase]:
    """Return which purchases `name` (without `paid/`) means, only `seller`'s if one is pinned. `offered` are by model.

    A purchase whose model is exactly `name` goes first, so that a model with an @ in its own name stays reachable;
    only then is the part after the last @ read as a seller.
    """
    found = list(offered.get(name, ()))
    if not found:
        model, at, named = name.rpartition("@")
        if at and model:
            found = [purchase for purchase in offered.get(model, ()) if purchase.name == named]
    return found if seller is None else [purchase for purchase in found if purchase.name == seller]


def cheapest_first(purchases: Sequence[Purchase]) -> list[Purchase]:
    """Order by price in whole tokens (tokens differ in decimals), then by name."""
    if len(purchases) < 2:
        return list(purchases)  # of most models there is one, and exact prices cost more than the rest of the choice
    return sorted(purchases, key=lambda purchase: (_price(purchase), purchase.name))


def document(model: str, purchases: Sequence[Purchase]) -> dict[str, Any]:
    """Return one entry of `GET /v1/models`: OpenAI's fields, and what a call costs."""
    best, *_ = ranked = cheapest_first(purchases)
    asset = best.offer.asset
    return {
        "id": model,
        "object": "model",
        "created": 0,
        "owned_by": "farebox",
        "farebox": {
            "paid_id": PAID_PREFIX + model,
            "price_atomic": str(best.offer.amount_atomic),
            "price": format_amount(best.offer.amount_atomic, asset),
            "decimals": asset.decimals,
            "asset": asset.address_text,
            "network": best.offer.network.caip2,
            "sellers": [purchase.name for purchase in ranked],
        },
    }


def _price(purchase: Purchase) -> Fraction:
    price_tokens: int = 10**purchase.offer.asset.decimals
    return Fraction(purchase.offer.amount_atomic, price_tokens)
