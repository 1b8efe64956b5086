"""Thousands of broken payment headers: a mistake of the sender is a 4xx, and nothing is given for it."""

from __future__ import annotations

import asyncio
import json
import os
import random
from pathlib import Path
from typing import Any

import pybase64

from contracts.evm.devnet import Devnet
from tests.attacks.parts import attacked
from tests.paying import authorize, payment_document
from tests.seller.shop import BODY, BUYER, CHAT, Shop

COUNT = int(os.environ.get("FAREBOX_MUTATIONS", "2000"))
SEED = int(os.environ.get("FAREBOX_SEED", "402"))
AT_ONCE = 16
HEADERS = ("PAYMENT-SIGNATURE", "X-PAYMENT")
# What HTTP lets through in a header value.
CHARACTERS = [chr(point) for point in (*range(0x20, 0x7F), 0x09, *range(0x80, 0x100))]
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 1.5, 1e308, 10**400, 2**63, 2**64, "", "0x", "0", "null", "\x00", "\ud7ff", "é",
    [], {}, [[]], [None], {"": None}, "9" * 100, "0x" + "0" * 64, "0x" + "g" * 40, "eip155:31337", "eip155:", "exact",
    "\u202e", "a" * 5000, "-0", "NaN", "1e9", "٣",
]  # fmt: skip


class Mutator:
    """Makes broken headers out of good ones, the same for the same seed."""

    def __init__(self, shop: Shop, seed: int) -> None:
        self._rng = random.Random(seed)
        offer = shop.seller.book.routes[0].quote_for(None).offer
        key = shop.chain.accounts[BUYER].key
        self._documents = [payment_document(*authorize(key, offer), offer) for _ in range(8)]

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the payment headers of one request."""
        rng = self._rng
        name = rng.choice(HEADERS) if rng.random() < 0.3 else HEADERS[0]
        found = [(name, self._value())]
        while rng.random() < 0.05:
            found.append((rng.choice(HEADERS), self._value()))
        return [(name.encode(), value.encode("latin-1", "replace").strip()) for name, value in found]

    def _value(self) -> str:
        rng = self._rng
        document = rng.choice(self._documents)
        kind = rng.randrange(10)
        if kind < 5:
            text = json.dumps(self._changed(document))
        elif kind == 5:
            text = self._garbled(json.dumps(document))
        elif kind == 6:
            text = json.dumps(document)[: rng.randrange(900)]
        elif kind == 7:
            depth = rng.choice((10, 600, 5000))
            text = json.dumps(document)[:-1] + ',"x":' + "[" * depth + "]" * rng.choice((0, depth)) + "}"
        elif kind == 8:
            text = json.dumps(rng.choice(VALUES))
        else:
            return "".join(rng.choices(CHARACTERS, k=rng.randrange(1, 300)))
        encoded = pybase64.b64encode(text.encode("utf-8", "surrogatepass")).decode()
        return self._garbled(encoded) if rng.random() < 0.2 else encoded

    def _changed(self, document: dict[str, Any]) -> Any:
        changed: Any = json.loads(json.dumps(document))
        for _ in range(self._rng.randrange(1, 4)):
            parent = changed
            while True:
                name = self._rng.choice(list(parent))
                if not isinstance(parent[name], dict) or not parent[name] or self._rng.random() < 0.2:
                    break
                parent = parent[name]
            value = parent[name]
            match self._rng.randrange(5):
                case 0:
                    del parent[name]
                case 1 if isinstance(value, str):
                    parent[name] = self._garbled(value)
                case 2:
                    parent[self._garbled(name)] = parent.pop(name)
                case 3:
                    parent[name] = self._rng.choice(([value], {name: value}, str(value), [value] * 50))
                case _:
                    parent[name] = self._rng.choice(VALUES)
            if not changed:
                break
        return changed

    def _garbled(self, text: str) -> str:
        rng = self._rng
        at = rng.randrange(len(text) + 1)
        match rng.randrange(6):
            case 0:
                return text[:at] + rng.choice(CHARACTERS) + text[at:]
            case 1:
                return text[:at] + text[at + 1 :]
            case 2:
                return text[:at] + rng.choice(CHARACTERS) + text[at + 1 :]
            case 3:
                return text[:at] + text[at:] * 2
            case 4:
                return text[at:] + text[:at]
            case _:
                return text.swapcase()


async def test_no_mutated_payment_is_answered_with_5xx_or_buys_twice(chain: Devnet, tmp_path: Path) -> None:
    """S16, I18: `make test-attacks` sends 10,000, `make test` a fifth of it; FAREBOX_SEED begins elsewhere."""
    async with attacked(chain, tmp_path) as (shop, till):
        mutator = Mutator(shop, SEED)
        left = COUNT

        async def attacker() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await shop.client.post(CHAT, content=BODY, headers=mutator.headers())

        await asyncio.gather(*(attacker() for _ in range(AT_ONCE)))
        assert till.statuses.total() == COUNT
        assert set(till.statuses) <= {200, 400, 402, 409}
        assert till.statuses[400] > COUNT // 2
        # Of the eight payments beneath all of it, each buys at most once.
        assert shop.app.runs <= 8
