"""Goal: nobody can lift or sink an agent for free, and what is not known is called unrated.

Method: ratings by example, and for each trick the rating that must not count.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.address import Address, parse_address
from contracts.evm.devnet import Devnet
from contracts.evm.registries import place_registries
from contracts.networks import Network
from registry.agent_id import AgentId
from registry.chains import chain_of
from registry.index import open_index
from registry.limits import RATING_HALF_LIFE_S, RATINGS_PER_REVIEWER
from registry.ratings import read_reputation, trust
from registry.reputation import Experience, PaidCall, Rating, Reputation, TagScore, experience_of, judge_ratings
from tests.registry.ledger_of_agents import Registrar
from tests.registry.syncing import Books

NOW_S = 1_800_000_000
OWNER, WALLET, ALICE, BOB, SYBIL = (Address(bytes([n]) * 20) for n in range(1, 6))
NETWORK = "eip155:84532"


def stars(client: Address, value: int, *, paid_by: int | None = None, index: int = 1, age_s: int = 0) -> Rating:
    proof = None if paid_by is None else paid_by.to_bytes(32, "big")
    return Rating(client, index, value, 0, "starred", NOW_S - age_s, proof)


def judged(
    *ratings: Rating, trusted: tuple[Address, ...] = (), own: Experience | None = None
) -> tuple[TagScore, Reputation]:
    reputation = judge_ratings(ratings, related=(OWNER, WALLET), trusted=trusted, own=own, now_s=NOW_S)
    return reputation.tags[0], reputation


def test_a_crowd_that_never_paid_leaves_an_agent_unrated() -> None:
    crowd = [stars(Address(bytes([n]) * 20), 100) for n in range(10, 60)]
    tag, reputation = judged(*crowd)
    assert (tag.raw, tag.filtered, tag.paid, tag.mean) == (50, 50, 0, None)
    assert reputation.score is None


def test_a_paid_rating_counts_and_its_transaction_counts_once() -> None:
    tag, reputation = judged(stars(ALICE, 80, paid_by=1), stars(SYBIL, 0, paid_by=1))
    assert tag.paid == 1
    assert reputation.score == pytest.approx(0.8)


def test_an_address_the_user_trusts_counts_without_a_payment() -> None:
    assert judged(stars(BOB, 60), trusted=(BOB,))[1].score == pytest.approx(0.6)


@pytest.mark.parametrize("insider", [OWNER, WALLET])
def test_what_an_agent_says_of_itself_never_counts_even_paid_or_trusted(insider: Address) -> None:
    tag, reputation = judged(stars(insider, 100, paid_by=1), trusted=(insider,))
    assert (tag.raw, tag.filtered, tag.paid) == (1, 0, 0)
    assert reputation.score is None
    assert reputation.related == 1


def test_one_reviewer_is_heard_a_few_times_and_with_its_newest_ratings() -> None:
    old = [stars(ALICE, 0, paid_by=n, index=n, age_s=1000) for n in range(1, 50)]
    new = [stars(ALICE, 100, paid_by=100 + n, index=100 + n) for n in range(RATINGS_PER_REVIEWER)]
    tag, reputation = judged(*old, *new)
    assert tag.paid == RATINGS_PER_REVIEWER
    assert reputation.score == pytest.approx(1.0)


def test_a_rating_weighs_half_after_its_half_life() -> None:
    _, reputation = judged(stars(ALICE, 100, paid_by=1), stars(BOB, 10, paid_by=2, age_s=RATING_HALF_LIFE_S))
    assert reputation.score == pytest.approx((100 + 0.5 * 10) / 1.5 / 100)


def test_tags_are_never_mixed_and_a_tag_without_a_known_unit_has_no_score() -> None:
    slow = replace(stars(ALICE, 900, paid_by=1), tag="responseTime")
    up = Rating(BOB, 1, 9977, 2, "uptime", NOW_S, (2).to_bytes(32, "big"))
    reputation = judge_ratings([slow, up, stars(ALICE, 87, paid_by=3)], related=(), trusted=(), own=None, now_s=NOW_S)
    assert {tag.tag: tag.mean for tag in reputation.tags} == {
        "responseTime": None,
        "starred": pytest.approx(87),
        "uptime": pytest.approx(99.77),
    }
    assert reputation.score == pytest.approx(0.87)


def test_ones_own_paid_calls_come_before_what_anybody_says() -> None:
    calls = [PaidCall(NETWORK, WALLET, served, NOW_S, 100 + n) for n, served in enumerate([False] * 8 + [True])]
    own = experience_of(calls, NETWORK, (OWNER, WALLET))
    assert own == Experience(9, 1, 108)
    assert judged(stars(ALICE, 100, paid_by=1), own=own)[1].score == pytest.approx(2 / 11)


def test_calls_that_paid_somebody_else_or_elsewhere_are_no_experience_with_this_agent() -> None:
    calls = [PaidCall(NETWORK, ALICE, True, NOW_S), PaidCall("eip155:8453", WALLET, True, NOW_S)]
    assert experience_of(calls, NETWORK, (OWNER, WALLET)) is None


@given(st.lists(st.integers(-(10**38), 10**38), max_size=20), st.integers(0, 18))
def test_a_score_stays_a_share_whatever_numbers_are_on_chain(values: list[int], decimals: int) -> None:
    ratings = [
        Rating(Address(bytes([n]) * 20), 1, value, decimals, "starred", NOW_S, n.to_bytes(32, "big"))
        for n, value in enumerate(values, 10)
    ]
    score = judge_ratings(ratings, related=(), trusted=(), own=None, now_s=NOW_S).score
    assert (score is None) == (not values)
    assert score is None or 0 <= score <= 1


def test_revoked_ratings_and_those_of_former_owners_and_wallets_do_not_count(chain: Devnet, tmp_path: Path) -> None:
    place_registries(chain)
    registrar = Registrar(chain)
    seller, wallet, reviewer, buyer = 1, 2, 3, 4
    number = registrar.register(seller, "https://seller.example/card.json")
    registrar.set_wallet(seller, wallet, number)
    for client in (reviewer, reviewer, wallet):
        registrar.rate(client, number)
    registrar.revoke(reviewer, number, 1)
    registrar.transfer(seller, buyer, number)
    registrar.rate(seller, number)
    books = Books(tmp_path)
    books.sync("own", [chain.rpc_url])
    with open_index(tmp_path / "own.db") as index:
        own = AgentId(31337, chain_of(Network(31337)).identity, number)
        for account in (seller, wallet, reviewer):
            address = parse_address(registrar.account(account))
            index.database.transact(partial(trust, reviewer=address, note="", now_s=NOW_S))
        found = index.database.read(lambda connection: read_reputation(connection, own, [], NOW_S))
    (tag,) = found.tags
    assert (tag.raw, tag.filtered, tag.paid) == (3, 1, 1)
    assert found.related == 2
