"""Goal: of many registrations, the one found first is alive, proven and payable; the others say why they are not.

Method: an index filled by hand, sellers and impostors on a web of strangers, and the real gathering, survey and search.
"""

from __future__ import annotations

import json
import resource
from collections.abc import AsyncIterator, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from contracts.address import address_text
from contracts.errors import NameUnknown, TermsNotAllowed, UsageError
from contracts.networks import Network
from registry.candidates import find_candidate
from registry.gather import Gathered, gather
from registry.index import Index
from registry.limits import DOCUMENT_TTL_S, FAILED_TTL_S, FAILURES_UNTIL_GONE, SURVEY_TTL_S
from registry.probe import probe
from registry.reputation import PaidCall
from registry.search import Query, Result, dollars, search
from registry.survey import survey
from registry.verify import Check, require_payable, verify_agent
from tests.registry.shelf import (
    NOW_S,
    OWNER,
    STRANGER,
    WALLET,
    add_agent,
    agent,
    file_of,
    naming,
    offer,
    register,
    sell,
    shelf,
)
from tests.registry.strangers import Request, Web, strangers


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with shelf(tmp_path) as opened:
        yield opened


@pytest_asyncio.fixture
async def web() -> AsyncIterator[Web]:
    async with strangers() as running:
        yield running


async def refresh(web: Web, index: Index, now_s: int = NOW_S) -> Gathered:
    async with web.fetcher() as fetcher:
        gathered = await gather(index.database, fetcher, now_s)
        await survey(index.database, fetcher, now_s)
    return gathered


def found(index: Index, text: str = "code model", calls: tuple[PaidCall, ...] = (), **options: Any) -> list[Result]:
    query = Query(text=text, **options)
    return index.database.read(lambda connection: search(connection, query, NOW_S, calls))


async def test_the_live_verified_seller_is_found_before_all_kinds_of_impostor(web: Web, index: Index) -> None:
    for number in range(10):
        add_agent(
            index, number, web.page("spam", f"/{number}", file_of(number, "https://nowhere.invalid", name="code"))
        )
    register(web, index, 20, "thief", offer(STRANGER), name="code model code model", description="code model " * 9)
    register(web, index, 21, "copy", registrations=naming(22))
    add_agent(index, 22, web.page("dead", "/card", b"code model"))
    register(web, index, 23, "honest")
    gathered = await refresh(web, index)
    assert gathered.failed == 0
    results = found(index)
    assert results[0].agent == agent(23)
    assert (results[0].state, results[0].verdict, results[0].models) == ("payable", "verified", ("m",))
    assert results[0].pay_to == WALLET
    verdicts = {result.agent.number: (result.verdict, result.reason.partition(":")[0]) for result in results}
    assert verdicts[20] == ("blocked", "payee")
    assert verdicts[21] == ("blocked", "file")
    assert 22 not in verdicts, "what is no registration file is not found"


async def test_the_price_decides_between_equals_and_a_trap_price_sinks(web: Web, index: Index) -> None:
    for number, price in ((1, 5_000_000_000), (2, 900), (3, 1100), (4, 1000)):
        register(web, index, number, f"seller{number}", offer(price_atomic=price))
    await refresh(web, index)
    order = [result.agent.number for result in found(index)]
    assert order[-1] == 1
    assert [result.agent.number for result in found(index, max_price=Fraction("0.00095"))] == [2]
    assert found(index, network=Network(8453)) == []


async def test_impostors_stuffed_with_words_do_not_crowd_a_seller_out(
    web: Web, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.search.SEARCH_CANDIDATES_MAX", 3)
    for number in range(5):
        stuffed = {"name": "code model code model", "description": "code model " * 9}
        register(web, index, number, f"thief{number}", offer(STRANGER), **stuffed)
    register(web, index, 9, "honest")
    await refresh(web, index)
    assert found(index, limit=3)[0].agent == agent(9)


async def test_what_the_user_paid_before_decides_over_everything_else_equal(web: Web, index: Index) -> None:
    for number, payee in ((1, WALLET), (2, STRANGER)):
        endpoint = sell(web, f"seller{number}", offer(payee))
        uri = web.page(f"seller{number}", "/card", file_of(number, endpoint))
        add_agent(index, number, uri, wallet=payee)
    await refresh(web, index)
    calls = tuple(PaidCall("eip155:31337", STRANGER, True, NOW_S) for _ in range(5))
    results = found(index, calls=calls)
    assert [result.agent.number for result in results] == [2, 1]
    assert [result.rating for result in results] == [pytest.approx(6 / 7), None]


async def test_what_the_guard_refused_is_asked_at_once_when_it_may_be_and_not_again(web: Web, index: Index) -> None:
    register(web, index, 1, "file-refused")
    endpoint = sell(web, "seller-refused", offer())
    add_agent(index, 2, "data:application/json," + file_of(2, endpoint).decode())
    async with web.fetcher(allow_private=False) as strict:
        await gather(index.database, strict, NOW_S)
        await survey(index.database, strict, NOW_S)
        assert (found(index)[0].state, web.asked) == ("dead", [])
        await gather(index.database, strict, NOW_S + 1)
        assert await survey(index.database, strict, NOW_S + 1) == 0, "the flag alone is what makes it due"
    async with web.fetcher() as fetcher:
        assert (await gather(index.database, fetcher, NOW_S + 2)).read == 1
        assert await survey(index.database, fetcher, NOW_S + 2) == 2
        assert {result.state for result in found(index)} == {"payable"}
        assert (await gather(index.database, fetcher, NOW_S + 3)).done == 0
        assert await survey(index.database, fetcher, NOW_S + 3) == 0


async def test_a_seller_with_nothing_but_words_is_shown_after_those_that_answer(web: Web, index: Index) -> None:
    add_agent(index, 1, web.page("words", "/card", file_of(1, "mailto:x", name="code model")))
    register(web, index, 2, "seller", name="something", description="has a code model")
    await refresh(web, index)
    assert [(result.agent.number, result.state) for result in found(index)] == [(2, "payable"), (1, "unprobed")]
    assert [result.agent.number for result in found(index, is_verified=True)] == [2]


async def test_words_that_are_operators_or_nothing_search_or_say_so(web: Web, index: Index) -> None:
    register(web, index, 1, "seller")
    await refresh(web, index)
    assert [result.agent.number for result in found(index, 'code" OR NEAR(model) -x*')] == [1]
    assert found(index, "drawing^2 AND") == []
    assert [result.agent.number for result in found(index, "unheard code")] == [1], "any word, where none has all"
    for text in ("", '"*-(', "   "):
        with pytest.raises(UsageError, match="QUERY"):
            found(index, text)
    with pytest.raises(UsageError, match="--limit"):
        found(index, limit=0)
    with pytest.raises(UsageError, match="--max-price"):
        dollars("0,01", "--max-price")


async def test_a_standing_does_not_outlive_the_owner_wallet_and_file_it_was_of(web: Web, index: Index) -> None:
    register(web, index, 1, "seller")
    await refresh(web, index)
    index.database.transact(lambda connection: connection.execute("UPDATE agents SET wallet = NULL"))
    assert [(result.state, result.verdict) for result in found(index)] == [("unprobed", "unknown")]
    await refresh(web, index)
    assert [result.verdict for result in found(index)] == ["blocked"]


async def test_a_file_is_fetched_when_due_and_a_dead_one_ever_more_rarely(web: Web, index: Index) -> None:
    add_agent(index, 1, web.page("seller", "/card", file_of(1, "https://x.invalid")))
    add_agent(index, 2, web.url("seller", "/missing"))
    assert (await refresh(web, index)).done == 2
    assert (await refresh(web, index, NOW_S + FAILED_TTL_S - 1)).done == 0
    assert (await refresh(web, index, NOW_S + FAILED_TTL_S)).failed == 1
    assert (await refresh(web, index, NOW_S + 2 * FAILED_TTL_S + 1)).done == 0, "the second wait is longer"
    assert (await refresh(web, index, NOW_S + DOCUMENT_TTL_S)).done == 2


async def test_a_file_that_cannot_be_had_for_a_while_is_not_forgotten_at_once(web: Web, index: Index) -> None:
    register(web, index, 1, "seller")
    await refresh(web, index)
    path = "seller/1.json"
    page = web.pages.pop(path)
    now_s = NOW_S
    for failure in range(1, FAILURES_UNTIL_GONE + 1):
        now_s += 40 * 86_400
        await refresh(web, index, now_s)
        assert bool(found(index)) is (failure < FAILURES_UNTIL_GONE)
    web.pages[path] = page
    await refresh(web, index, now_s + 40 * 86_400)
    assert found(index)


async def test_a_changed_file_changes_what_is_found(web: Web, index: Index) -> None:
    endpoint = register(web, index, 1, "seller")
    await refresh(web, index)
    web.page("seller", "/1.json", file_of(1, endpoint, name="Painter", description="pictures", skills=["drawing"]))
    await refresh(web, index, NOW_S + DOCUMENT_TTL_S)
    assert found(index, "code") == []
    assert [result.card.name for result in found(index, "drawing")] == ["Painter"]


async def test_copies_of_one_file_cost_one_request_each_to_endpoint_and_domain(web: Web, index: Index) -> None:
    endpoint = sell(web, "seller", offer())
    for number in range(30):
        add_agent(index, number, web.page("copies", f"/{number}", file_of(number, endpoint)))
    await refresh(web, index)
    asked = [request.path for request in web.asked if request.host == "seller"]
    assert sorted(asked) == ["/.well-known/agent-registration.json", "/v1/chat/completions", "/v1/models"]


async def test_a_survey_is_repeated_when_it_is_old_and_not_before(web: Web, index: Index) -> None:
    register(web, index, 1, "seller")
    await refresh(web, index)
    asked = len(web.asked)
    await refresh(web, index, NOW_S + SURVEY_TTL_S - 1)
    assert len(web.asked) == asked
    await refresh(web, index, NOW_S + SURVEY_TTL_S)
    assert len(web.asked) > asked


@pytest.mark.parametrize(
    ("status", "body", "state", "error"),
    [
        (200, b"free", "free", "status_200"),
        (500, b"", "refused", "status_500"),
        (402, b"pay me", "unreadable", "no_x402_terms"),
        (402, b'{"x402Version": 2, "accepts": [{"scheme": 7}]}', "unreadable", "no_readable_offer"),
        (402, b'{"x402Version": 2, "accepts": ' + b"[" * 20_000, "unreadable", "malformed"),
    ],
)
async def test_an_endpoint_that_names_no_price_says_what_it_did(
    web: Web, status: int, body: bytes, state: str, error: str
) -> None:
    web.page("odd", "/buy", body, status)
    async with web.fetcher() as fetcher:
        probed = await probe(web.url("odd", "/buy"), fetcher)
    assert (probed.state, probed.error, probed.offers) == (state, error, ())


async def test_a_probe_never_carries_a_payment(web: Web, index: Index) -> None:
    register(web, index, 1, "seller")
    await refresh(web, index)
    for request in web.asked:
        assert not any("payment" in name or name in ("authorization", "cookie") for name in request.headers)


async def checked(web: Web, index: Index, number: int, **options: Any) -> Any:
    async with web.fetcher() as fetcher:
        return await verify_agent(index.database, fetcher, Check(agent=str(agent(number)), **options), [], NOW_S)


async def test_a_foreign_payee_is_refused_with_the_reason_until_the_user_pins_it(web: Web, index: Index) -> None:
    register(web, index, 1, "seller", offer(STRANGER))
    with pytest.raises(TermsNotAllowed, match="payee") as refused:
        require_payable(await checked(web, index, 1))
    assert address_text(STRANGER) in refused.value.message
    assert address_text(WALLET) in refused.value.message
    assert "--pin" in refused.value.advice
    finding, payees = require_payable(await checked(web, index, 1, pin=address_text(STRANGER)))
    assert (finding.verdict.state, payees) == ("verified", (STRANGER,))


async def test_a_file_that_changed_after_it_was_accepted_blocks_until_it_is_accepted_again(
    web: Web, index: Index
) -> None:
    endpoint = register(web, index, 1, "seller")
    require_payable(await checked(web, index, 1, accept=True))
    web.page("seller", "/1.json", file_of(1, endpoint, description="now something else"))
    with pytest.raises(TermsNotAllowed, match="content"):
        require_payable(await checked(web, index, 1))
    require_payable(await checked(web, index, 1, accept=True))


async def test_the_owner_may_be_paid_where_the_wallet_is_unset(web: Web, index: Index) -> None:
    endpoint = sell(web, "seller", offer(OWNER))
    add_agent(index, 1, web.page("seller", "/card", file_of(1, endpoint)), wallet=None)
    assert require_payable(await checked(web, index, 1))[1] == (OWNER,)


async def test_the_domain_must_stand_by_an_endpoint_that_does_not_serve_the_file(web: Web, index: Index) -> None:
    endpoint = sell(web, "shop", offer())
    add_agent(index, 1, web.page("elsewhere", "/card", file_of(1, endpoint)))
    assert (await checked(web, index, 1)).findings[0].verdict.state == "unproven"
    proof = {"registrations": naming(1)}
    web.page("shop", "/.well-known/agent-registration.json", json.dumps(proof).encode())
    assert (await checked(web, index, 1)).findings[0].verdict.state == "verified"
    proof = {"registrations": naming(2)}
    web.page("shop", "/.well-known/agent-registration.json", json.dumps(proof).encode())
    assert (await checked(web, index, 1)).findings[0].verdict.state == "blocked"


async def test_an_agent_that_is_not_in_the_index_or_of_another_registry_is_named(index: Index) -> None:
    add_agent(index, 1, "")
    for text in ("31337:2", "1:1", f"eip155:31337:{address_text(STRANGER)}/1", f"31337:{2**200}"):
        with pytest.raises(NameUnknown):
            index.database.read(partial(find_candidate, text=text))


async def test_a_hostile_set_of_files_is_gathered_within_bounds(web: Web, index: Index) -> None:
    async def flood(request: Request) -> None:
        request.writer.write(b"HTTP/1.1 200 x\r\n\r\n")
        while True:
            request.writer.write(b"x" * 65_536)
            await request.writer.drain()

    for number in range(20):
        web.pages[f"flood{number}/"] = flood
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    uris = [
        *(web.url(f"flood{number}") for number in range(20)),
        web.page("deep", "/", b'{"a":' * 40_000),
        web.page("script", "/", file_of(21, "https://x.invalid", name="<script>alert(1)</script>\x1b[2J\u202e")),
        "data:application/json," + "[" * 100_000,
        "\x00\x1b]0;title\x07",
        "https://[64:ff9b::7f00:1]/",
    ]
    for number, uri in enumerate(uris):
        add_agent(index, number, uri)
    gathered = await refresh(web, index)
    assert gathered.done == len(uris)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 64 * 1024
    names = index.database.read(lambda connection: connection.execute("SELECT name FROM agent_text").fetchall())
    assert [tuple(row) for row in names] == [("<script>alert(1)</script>[2J",)]
