"""Spend: probe, policy, signers, the authorization pool and the payment flow.

    from buyer import AsyncClient, Home, Pool, SpendPolicy

Names load on first use, so that a process which only spends from a pool never loads what can sign.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from buyer.client import AsyncClient, Client
    from buyer.home import Home
    from buyer.policy import SpendPolicy
    from buyer.pool import Pool
    from buyer.signers import open_signer

__all__ = ["AsyncClient", "Client", "Home", "Pool", "SpendPolicy", "open_signer"]

_MODULES = {
    "AsyncClient": "buyer.client",
    "Client": "buyer.client",
    "Home": "buyer.home",
    "Pool": "buyer.pool",
    "SpendPolicy": "buyer.policy",
    "open_signer": "buyer.signers",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'buyer' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
