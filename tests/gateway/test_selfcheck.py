"""`farebox selfcheck` finds what differs between the books and the chain, and is silent about what does not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from buyer.home import Home
from buyer.pool import Claim, Pool, Spender
from buyer.purchase import Purchase
from contracts.evm.devnet import Devnet
from contracts.storage import open_database
from gateway.cli import app
from tests.buyer.parts import add_purchase, add_signed, closed_port_url, funded_purchase, settle
from tests.e2e.parts import MODEL, Market, market
from tests.patience import PATIENCE_S
from tests.warm import Warm


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("FAREBOX_HOME", str(tmp_path / "home"))
    return Home.open()


@pytest.fixture
def pool(home: Home) -> Iterator[Pool]:
    with Pool.open(home) as opened:
        yield opened


@pytest.fixture
def purchase(chain: Devnet, pool: Pool) -> Purchase:
    return funded_purchase(pool, chain, 6, rpc_urls=(chain.rpc_url,))


@pytest.fixture
def spender(pool: Pool, purchase: Purchase) -> Iterator[Spender]:
    with closing(pool.spender()) as opened:
        yield opened


def take(spender: Spender, purchase: Purchase, key: str) -> Claim:
    claim = spender.claim(purchase, key, int(time.time()))
    spender.sent(claim)
    return claim


def put_on_chain(chain: Devnet, claim: Claim) -> str:
    return settle(chain, claim.authorization, claim.signature, claim.purchase.offer)


def check(*arguments: str, code: int) -> tuple[list[str], list[str]]:
    """Run the command and return all differences and all notes."""
    done = CliRunner().invoke(app, ["selfcheck", "--json", *arguments])
    assert done.exit_code == code, done.output
    document = json.loads(done.stdout)
    assert document["ok"] is (code == 0)
    findings: list[dict[str, Any]] = document["findings"]
    return [it for one in findings for it in one["differences"]], [it for one in findings for it in one["notes"]]


def alter(pool: Pool, sql: str) -> None:
    pool.database.transact(lambda connection: connection.execute(sql))


def test_what_is_on_its_way_or_not_yet_noticed_is_no_difference(
    chain: Devnet, purchase: Purchase, spender: Spender
) -> None:
    served, late, lost = (take(spender, purchase, key) for key in "abc")
    spender.served(served, status=200, receipt=None, latency_ms=1)
    spender.served(late, status=200, receipt=None, latency_ms=1)
    spender.lost(lost, status=None, reason="timeout")
    put_on_chain(chain, served)
    put_on_chain(chain, lost)
    differences, notes = check(code=0)
    assert not differences
    assert any("0.001 USDC were served and are not transferred yet" in note for note in notes)
    assert any("1 of unknown fate are on the chain" in note for note in notes)


def test_a_payment_that_the_books_believe_unspent_is_a_difference(
    chain: Devnet, pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    claim = spender.claim(purchase, "r", int(time.time()))
    spender.abort(claim)
    transaction = put_on_chain(chain, claim)
    differences, _ = check(code=1)
    assert [it for it in differences if f"{claim.receipt_id} is ready" in it and transaction in it]


def test_a_payment_booked_as_expired_that_the_chain_shows_is_a_difference(
    chain: Devnet, pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    claim = take(spender, purchase, "r")
    spender.lost(claim, status=None, reason="timeout")
    put_on_chain(chain, claim)
    alter(pool, "UPDATE authorizations SET state = 'expired' WHERE state = 'unknown'")
    differences, _ = check(code=1)
    assert [it for it in differences if "booked as expired unused; the chain shows 1000 atomic units" in it]


def test_a_row_that_went_missing_is_a_difference(pool: Pool, purchase: Purchase) -> None:
    alter(pool, "DELETE FROM authorizations WHERE id = (SELECT min(id) FROM authorizations)")
    differences, _ = check(code=1)
    assert differences == ["6 authorizations were signed, and 5 rows are there"]


def test_a_request_that_took_two_authorizations_is_a_difference(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    for key in "ab":
        spender.served(take(spender, purchase, key), status=200, receipt=None, latency_ms=1)
    alter(pool, "UPDATE authorizations SET request_key = 'a' WHERE request_key = 'b'")
    differences, _ = check(code=1)
    assert differences == ["request a took 2 authorizations"]


def test_a_chain_that_does_not_answer_is_not_taken_for_agreement(pool: Pool, chain: Devnet) -> None:
    made = add_purchase(pool, rpc_urls=(closed_port_url(),))
    add_signed(pool, made, 1)
    differences, _ = check(code=1)
    assert ["could not be compared" in it for it in differences] == [True]


def test_a_machine_without_a_pool_is_told_so_and_gets_none(home: Home) -> None:
    check(code=0)
    assert not home.has_pool


@pytest.fixture
def shop(tmp_path: Path, chain: Devnet, warm: Warm) -> Iterator[Market]:
    folder = tmp_path / "market"
    folder.mkdir()
    with market(folder, chain, settle="async", warm=warm) as opened:
        yield opened


def selfcheck_of(shop: Market, warm: Warm) -> tuple[int, str]:
    done = warm.run(["selfcheck", "--seller", "seller.yaml"], shop.crew.folder, environment=shop.crew.environment)
    return done.code, done.out + done.err


def test_a_whole_market_agrees_with_the_chain_and_a_changed_book_does_not(shop: Market, warm: Warm) -> None:
    shop.start_model_server()
    seller = shop.start_seller()
    shop.buy(5)
    shop.start_gateway()
    body = {"model": f"paid/{MODEL}", "messages": [{"role": "user", "content": "hello"}]}
    for _ in range(3):
        assert httpx.post(f"{shop.gateway_url}/v1/chat/completions", json=body, timeout=PATIENCE_S).status_code == 200
    shop.wait_settled(seller)
    code, text = selfcheck_of(shop, warm)
    assert code == 0, text
    assert "0.003 USDC settled by the books, 0.003 USDC received on chain" in text
    with closing(open_database(f"sqlite:///{shop.crew.folder / 'seller.db'}", "seller.migrations")) as books:
        books.transact(lambda it: it.execute("UPDATE books SET amount_atomic = '3001' WHERE name = 'earned'"))
        books.transact(
            lambda it: it.execute(
                "INSERT INTO transactions (chain_id, account, account_nonce, call_to, call_data, gas, state,"
                " created_ms) SELECT chain_id, account, account_nonce + 5, call_to, call_data, gas, 'sent', 0"
                " FROM transactions WHERE id = (SELECT max(id) FROM transactions)"
            )
        )
    code, text = selfcheck_of(shop, warm)
    assert code == 1, text
    assert "earned: the book says 3001, the payments add up to 3000 atomic units" in text
    assert "are missing: nothing after them can be mined" in text
    assert "not final; start `farebox settle`" in text
