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
from dataclasses import dataclass
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
from tests.gateway.parts import gateway, listening
from tests.patience import PATIENCE_S, eventually
from tests.seller.shop import CHAT, settings

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


@dataclass
class Stall:
    """One seller: the model behind it, where it answers, and what it has earned on the chain."""

    model: Model
    url: str
    pay_to: str
    chain: Devnet

    @property
    def earned_atomic(self) -> int:
        return self.chain.balance_of(self.pay_to)

    @property
    def queue(self) -> QueueStatus:
        return read_queue_status(httpx.get(self.url + QUEUE_STATUS_PATH, timeout=PATIENCE_S).content)


@dataclass
class Street:
    """Two sellers of one model at one price, each with one slot, and a pool that has ten payments for each."""

    home: Path
    stalls: dict[str, Stall]

    def config(self, **delegate: Any) -> GatewayConfig:
        routing = {"*": {"policy": "rule", "explore": False}}
        return GatewayConfig.model_validate({"home": str(self.home), "routing": routing, "delegate": delegate})

    def spent_atomic(self) -> tuple[int, int]:
        """Return what all runs cost, by their journal and by the pool's receipts."""
        home = Home.open(self.home)
        journal = Journal.open(journal_url(home))
        try:
            runs = [journal.find(run.id) for run in journal.recent(100)]
        finally:
            journal.close()
        with Pool.open(home) as pool:
            receipts = [receipt for run in runs for receipt in receipts_in(pool, run).values()]
        assert {receipt.state for receipt in receipts} == {"spent"}
        by_journal = sum(attempt.paid_units or 0 for run in runs for attempt in run.attempts)
        return by_journal // UNITS_PER_ATOMIC, sum(receipt.price_atomic for receipt in receipts)


@pytest.fixture
def street(chain: Devnet, tmp_path: Path) -> Iterator[Street]:
    wallet = KeySigner(secrets.token_bytes(32))
    chain.mint(address_text(wallet.address), 100 * PRICE_ATOMIC)
    with ExitStack() as stack:
        built = Street(tmp_path / "home", {})
        for name, settler in (("east", 1), ("west", 2)):
            built.stalls[name] = stack.enter_context(stall(chain, tmp_path / name, settler))
        with Pool.open(Home.open(built.home)) as pool:
            for name, each in built.stalls.items():
                buy(pool, name, each, wallet)
        yield built


@contextmanager
def stall(chain: Devnet, folder: Path, settler: int) -> Iterator[Stall]:
    folder.mkdir()
    (folder / "gas.key").touch(mode=0o600)
    (folder / "gas.key").write_text(chain.accounts[settler].key.hex())
    pay_to = address_text(KeySigner(secrets.token_bytes(32)).address)
    config = settings(
        chain,
        folder,
        pay_to=pay_to,
        settle="async",
        settler={"kind": "chain", "key_file": str(folder / "gas.key")},
        store=f"sqlite:///{folder}/seller.db",
        capacity={"slots": 1, "queue": 10},
        routes=[{"match": f"POST {CHAT}", "models": {MODEL: PRICE}}],
    )
    model = Model()
    with listening(PaymentMiddleware(model, seller=Seller(config, settles=True)), lifespan="on") as server:
        try:
            yield Stall(model, server.url, pay_to, chain)
        finally:
            model.is_open = True


def buy(pool: Pool, name: str, seller: Stall, wallet: KeySigner) -> None:
    order = BuyOrder(
        name=name,
        endpoint=seller.url,
        model=MODEL,
        count=10,
        budget=None,
        max_price=PRICE,
        accept_quote=False,
        ttl_s=None,
        refill=RefillOrder(),
        networks=(),
        assets=(),
        rpc_urls=(seller.chain.rpc_url,),
    )
    plan, _ = asyncio.run(plan_buy(pool, order, wallet, int(time.time())))
    carry_out(pool, plan, wallet)


def delegated(url: str, plan: dict[str, Any]) -> dict[str, Any]:
    body = {
        "model": f"delegate/{MODEL}",
        "messages": [{"role": "user", "content": "add"}],
        "plan": plan,
        "metadata": {"soonest": "true"},
    }
    answer = httpx.post(url + CHAT, json=body, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def sellers_of(answer: dict[str, Any]) -> dict[str, str]:
    """Return by node who did it."""
    return {event["node"]: event["seller"] for event in answer["farebox"]["events"] if event["event"] == "done"}


async def look_at_queues(desk: Desk) -> None:
    """Ask sellers for their queues, as `farebox serve` does every few seconds."""
    async with Upstream() as upstream:
        await desk.router.queues.ask(upstream, desk.shelf.purchases, desk.clock)


def test_a_worker_goes_where_no_other_worker_waits_and_all_books_agree(street: Street) -> None:
    one = plan_document("c", c=("add 5", []))
    for each in street.stalls.values():
        each.model.is_open = False
    with gateway(street.home, street.config()) as running, ThreadPoolExecutor(2) as threads:
        first = threads.submit(delegated, running.url, plan_document("all", **SUM))
        eventually(
            lambda: sum(each.queue.facts.busy + each.queue.facts.waiting for each in street.stalls.values()) == 2
        )
        queues = {name: each.queue.facts for name, each in street.stalls.items()}
        running.run(look_at_queues)
        second = threads.submit(delegated, running.url, one)
        (idle,) = (name for name, facts in queues.items() if not facts.busy)
        eventually(lambda: street.stalls[idle].queue.facts.busy == 1, "the second worker works elsewhere")
        for each in street.stalls.values():
            each.model.is_open = True
        did, did_beside = (sellers_of(answer.result(PATIENCE_S)) for answer in (first, second))
    (loaded,) = street.stalls.keys() - {idle}
    assert (did["a"], did["b"], did_beside) == (loaded, loaded, {"c": idle})
    books_agree(street, calls=4)


def books_agree(street: Street, *, calls: int) -> None:
    expected = calls * PRICE_ATOMIC
    assert street.spent_atomic() == (expected, expected)
    eventually(lambda: sum(each.earned_atomic for each in street.stalls.values()) == expected, "all was settled")


async def test_a_worker_that_dies_before_it_pays_returns_its_money_and_the_others_finish(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[str] = []
    commanded = IsolatedBuying.command

    def command(buying: IsolatedBuying, key: str) -> Sequence[str]:
        began.append(key)
        dies = (f"{VARIABLE}=buyer.claimed",) if len(began) == 1 else ()
        return ("env", *dies, *commanded(buying, key))

    monkeypatch.setattr(IsolatedBuying, "command", command)
    # Not a coin more than the three calls cost: without the dead worker's money nobody could do its part.
    order = Order("add", 3 * PRICE_ATOMIC * UNITS_PER_ATOMIC, None, plan=plan_of("all", **SUM))
    async with delegating(street.config(workers="processes")) as delegator:
        delegation = delegator.begin(order)
        events = await events_of(delegation)
        run = delegator.journal.find(delegation.id)
    assert (events[-1].text, run.state) == ("70", "done"), events
    ends = {attempt.key: (attempt.state, attempt.paid_units, attempt.reason) for attempt in run.attempts}
    assert ends.pop(began[0]) == ("failed", 0, "its worker died before it paid")
    assert set(ends.values()) == {("answered", PRICE_ATOMIC * UNITS_PER_ATOMIC, None)}
    with Pool.open(Home.open(street.home)) as pool:
        assert sum(pool.counts(name).ready for name in street.stalls) == 20 - 3
    await asyncio.to_thread(books_agree, street, calls=3)
