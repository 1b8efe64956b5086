"""Delegated runs at two real sellers of one model, paid on a real chain: load, a dead worker, and books that agree.

Seller, pool, gateway and delegator are those that everybody runs; only the model behind the sellers is a stand-in.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from buyer.home import Home
from buyer.key_signer import KeySigner
from buyer.orders import BuyOrder, RefillOrder, plan_buy
from buyer.pool import Pool
from buyer.presign import carry_out
from contracts.address import address_text
from contracts.crash import VARIABLE
from contracts.evm.devnet import Devnet
from contracts.tiers import QUEUE_STATUS_PATH, QueueStatus, read_queue_status
from gateway.config import GatewayConfig
from gateway.delegator.delegation import delegating, journal_url, receipts_in
from gateway.delegator.isolated import IsolatedBuying
from gateway.delegator.journal import Journal
from gateway.delegator.order import Order
from gateway.demo.worker_server import worker_app
from gateway.desk import Desk
from gateway.upstream import Upstream
from seller import PaymentMiddleware
from seller.service import Seller
from tests.gateway.delegator.parts import UNITS_PER_ATOMIC, events_of, plan_document, plan_of
from tests.gateway.parts import gateway
from tests.paying import CHAT
from tests.patience import PATIENCE_S, eventually
from tests.seller.shop import settings

MODEL, PRICE, PRICE_ATOMIC = "worker", "0.001", 1_000
SUM: dict[str, tuple[str, list[str]]] = {
    "a": ("add 3", []),
    "b": ("add 4", []),
    "all": ("multiply 10", ["a", "b"]),
}


class Model:
    """The stand-in; while its door is closed, calls wait."""

    def __init__(self) -> None:
        self.is_open = True
        self._app = worker_app({MODEL: 1.0})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while not self.is_open:  # noqa: ASYNC110 - it is opened by another thread
            await asyncio.sleep(0.01)
        await self._app(scope, receive, send)
