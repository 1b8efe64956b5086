"""Earn: price book, verification, reservations, settlement, ASGI middleware and proxy.

    from seller import PaymentMiddleware, SellerConfig

Names load on first use, so that a command which does not sell loads nothing of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seller.asgi import PaymentMiddleware
    from seller.config import SellerConfig

__all__ = ["PaymentMiddleware", "SellerConfig"]

_MODULES = {"PaymentMiddleware": "seller.asgi", "SellerConfig": "seller.config"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'seller' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
