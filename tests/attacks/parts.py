"""Counts money and goods of an attack: what left the seller against what the chain shows, by parts of its own.

Nothing here asks the seller's books. A delivery is an answer that holds the goods; a payment is an `AuthorizationUsed`
log followed by its `Transfer` to the payee.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from contracts.address import Address, parse_address
from contracts.errors import FareboxError
from contracts.evm.devnet import Devnet
from contracts.headers import PAYMENT_SIGNATURE, X_PAYMENT, decode_payment
from contracts.schemes.authorization import Authorization
from contracts.schemes.exact_eip3009 import AUTHORIZATION_USED_TOPIC, TRANSFER_TOPIC, decode_payload
from contracts.typed_data import word_of_address
from tests.attacks.runs import Key, Run, RunWatch
from tests.attacks.score import SCORE, Score
from tests.seller.shop import PRICE_ATOMIC, SELLER, Shop, open_shop

__all__ = ["GOODS", "Key", "Till", "attacked", "key_of", "payments_on_chain"]

GOODS = b'{"goods":"a1b2c3d4"}'
"""What the attacked application answers; nothing else Farebox says holds it."""


def key_of(header: str, name: str = PAYMENT_SIGNATURE) -> Key | None:
    """Return whose authorization a payment header carries, or None where it cannot be read."""
    try:
        authorization, _ = decode_payload(decode_payment(name, header).payload)
    except FareboxError:
        return None
    return bytes(authorization.payer), authorization.nonce


def payments_on_chain(chain: Devnet, payee: str) -> dict[Key, int]:
    """Return what the chain shows paid to `payee` by authorization, in atomic units."""
    found: dict[Key, int] = {}
    to = "0x" + word_of_address(parse_address(payee)).hex()
    logs = chain.rpc("eth_getLogs", {"address": chain.token, "fromBlock": "0x0", "toBlock": "latest"})
    for used, moved in pairwise(logs):
        is_pair = used["topics"][0] == AUTHORIZATION_USED_TOPIC and moved["topics"][0] == TRANSFER_TOPIC
        if is_pair and moved["topics"][1:] == [used["topics"][1], to]:
            key = bytes.fromhex(used["topics"][1][-40:]), bytes.fromhex(used["topics"][2][2:])
            found[key] = int(moved["data"], 16)
    return found


@dataclass(frozen=True)
class _Delivery:
    key: Key | None
    price_atomic: int
    replayed: bool


class Till:
    """Stands between attackers and one seller, and counts at the end.

    `runs` tells how often the seller's application ran; `price_of` the price of a request. `watch_runs`, where the
    application is at hand, has looked at every start of it. What the design lets a payer or a model server take, a test
    must `expect` by number.
    """

    def __init__(
        self,
        chain: Devnet,
        payee: str,
        runs: Callable[[], int],
        price_of: Callable[[httpx.Request], int],
        goods: bytes = GOODS,
    ) -> None:
        self._chain, self._payee, self._runs, self._price_of, self._goods = chain, payee, runs, price_of, goods
        self._before = set(payments_on_chain(chain, payee))
        self._runs_before = runs()
        self._deliveries: list[_Delivery] = []
        self._expected = {"withdrawn_runs": 0, "failed_runs": 0, "unpaid_credit": 0}
        self._gifts: set[Key] = set()
        self.run_watch: RunWatch | None = None
        self.statuses: Counter[int] = Counter()

    def watch(self, client: httpx.AsyncClient) -> None:
        """Look at every answer this client gets."""
        client.event_hooks = {"request": [], "response": [self._see]}

    def watch_runs(self, shop: Shop) -> None:
        """Look at every start of the shop's application."""
        self.run_watch = RunWatch(shop, lambda key: key in payments_on_chain(self._chain, self._payee))

    async def _see(self, answer: httpx.Response) -> None:
        self.see(answer.request, answer.status_code, dict(answer.headers), await answer.aread())

    def see(self, request: httpx.Request, status: int, headers: dict[str, str], body: bytes) -> None:
        """Look at one answer."""
        self.statuses[status] += 1
        if self._goods not in body:
            return
        key = None
        for name in (PAYMENT_SIGNATURE, X_PAYMENT):
            if name in request.headers:
                key = key or key_of(request.headers[name], name)
        replayed = headers.get("x-farebox-replayed") == "true"
        self._deliveries.append(_Delivery(key, self._price_of(request), replayed))

    def count(self) -> Score:
        """Return what the attack came to so far, by the answers and starts seen, and by the chain."""
        paid = payments_on_chain(self._chain, self._payee)
        for key in self._before | self._gifts:
            paid.pop(key, None)
        given = Counter(delivery.key for delivery in self._deliveries if not delivery.replayed)
        credit = {run.key for run in self._watched() if run.on_credit}
        unpaid = [each for each in self._deliveries if each.key is None or paid.get(each.key, 0) < each.price_atomic]
        score = Score(
            goods_without_payment=sum(each.key not in credit for each in unpaid) + sum(n - 1 for n in given.values()),
            money_without_goods=len(paid.keys() - {delivery.key for delivery in self._deliveries}),
            server_errors=sum(number for status, number in self.statuses.items() if status >= 500),
            attacks=1,
            answers=self.statuses.total(),
            goods=len(self._deliveries),
            paid=len(paid),
            runs=self._runs() - self._runs_before,
        )
        self._count_runs(score, paid)
        return score

    def _watched(self) -> list[Run]:
        return [] if self.run_watch is None else self.run_watch.runs

    def _count_runs(self, score: Score, paid: dict[Key, int]) -> None:
        if self.run_watch is None:
            score.runs_without_payment = max(0, score.runs - score.paid)
            return
        runs = self._watched()
        unseen = max(0, score.runs - len(runs) - self.run_watch.free)
        score.runs_without_payment = unseen + sum(not run.paid_for for run in runs)
        good = [run for run in runs if run.paid_for]
        score.failed_runs = sum(run.failed for run in good)
        score.unpaid_credit = sum(run.on_credit and run.key not in paid for run in good if not run.failed)
        score.withdrawn_runs = sum(not run.on_credit and run.key not in paid for run in good if not run.failed)

    def expect(self, **numbers: int) -> None:
        """Expect more of what the design allows: `withdrawn_runs`, `failed_runs` or `unpaid_credit`, by number."""
        for name, number in numbers.items():
            self._expected[name] += number

    def expect_gift(self, authorization: Authorization) -> None:
        """Expect a transfer that was no payment for any request here."""
        self._gifts.add((bytes(authorization.payer), authorization.nonce))

    def close(self) -> Score:
        """Count, put it on the scoreboard, and fail where a promise was broken, or kept where a loss was expected."""
        score = self.count()
        SCORE.add(score)
        assert score.is_clean, f"{score}, answers {dict(self.statuses)}"
        allowed = {name: getattr(score, name) for name in self._expected}
        assert allowed == self._expected, f"{score}, answers {dict(self.statuses)}"
        return score


@asynccontextmanager
async def attacked(chain: Devnet, folder: Path, **changed: Any) -> AsyncIterator[tuple[Shop, Till]]:
    """Open a shop under attack: at the end everything is settled, counted and on the scoreboard."""
    async with open_shop(chain, folder, **changed) as shop:
        shop.app.body = GOODS
        till = Till(chain, chain.accounts[SELLER].address, lambda: shop.app.runs, lambda request: _price(shop, request))
        till.watch(shop.client)
        till.watch_runs(shop)
        yield shop, till
        await shop.settled()
        till.close()


def _price(shop: Shop, request: httpx.Request) -> int:
    """Return what was asked for, by the price list and the request as it was written."""
    prices = {"/v1/audio/transcriptions": 2000, "/paid": 10_000}
    if b'"big-model"' in request.content:
        return 10_000
    return prices.get(request.url.path, PRICE_ATOMIC)


def payer_of(chain: Devnet, account: int) -> Address:
    """Return an account's address as bytes."""
    return parse_address(chain.accounts[account].address)
