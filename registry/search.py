"""Searching the local index: full text, then everything else that is known, in one process and without a network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import msgspec

from contracts.address import Address
from contracts.errors import UsageError
from contracts.networks import Network
from contracts.storage import Connection, Row
from registry.agent_id import AgentId
from registry.card import Card
from registry.limits import SEARCH_CANDIDATES_MAX, SEARCH_LIMIT_MAX, SEARCH_WORDS_MAX
from registry.rank import Facts, Offered, Terms, median_price, price_of, terms_of
from registry.ratings import scores
from registry.reputation import PaidCall
from registry.verification import OnChain

__all__ = ["Query", "Result", "dollars", "search"]

_WORD = re.compile(r"\w+")
_DOLLARS = re.compile(r"\$?([0-9]{1,12}(?:\.[0-9]{1,18})?)", re.ASCII)
# bm25 weights of name, description, skills, tags, endpoints. What may be long is read of the best results alone.
_FOUND = """
    SELECT agents.number, agents.chain_id, agents.agent_id, agents.owner, agents.wallet, agents.uri_key,
        standings.*, bm25(agent_text, 8.0, 3.0, 5.0, 3.0, 1.0) AS relevance
    FROM agent_text CROSS JOIN agents ON agents.number = agent_text.rowid
        {join} standings ON standings.chain_id = agents.chain_id AND standings.agent_id = agents.agent_id
            AND standings.uri_key IS agents.uri_key AND standings.owner IS agents.owner
            AND standings.wallet IS agents.wallet
    WHERE agent_text MATCH :words AND (:chain_id IS NULL OR agents.chain_id = :chain_id) AND {where}
    ORDER BY relevance LIMIT :limit
"""
_LONG = """
    SELECT agents.uri, documents.card FROM agents JOIN documents USING (uri_key) WHERE agents.number = ?
"""
_FOR_SALE = "standings.state = 'payable' AND standings.verdict <> 'blocked'"
# Those that can be bought come first and alone; however well stuffed with words, spam cannot push them out.
_SELLERS = _FOUND.format(join="CROSS JOIN", where=_FOR_SALE)
_OTHERS = _FOUND.format(join="LEFT JOIN", where=f"NOT coalesce({_FOR_SALE}, 0)")


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is looked for: `max_price` in whole dollars, `network` where it is paid, `chain_id` where registered."""

    text: str
    max_price: Fraction | None = None
    network: Network | None = None
    chain_id: int | None = None
    is_verified: bool = False
    limit: int = 20

    def __post_init__(self) -> None:
        """Refuse, with `UsageError`, a query without a word and a silly limit."""
        if not self.words:
            raise UsageError("QUERY: expected at least one word", remedy='as in: farebox discover search "code model"')
        if not 0 < self.limit <= SEARCH_LIMIT_MAX:
            raise UsageError(f"--limit: expected 1 to {SEARCH_LIMIT_MAX}, got {self.limit}")

    @property
    def words(self) -> list[str]:
        """The words of the text; everything else, FTS5's operators included, only separates them."""
        return _WORD.findall(self.text.replace("_", " "))[:SEARCH_WORDS_MAX]


@dataclass(frozen=True, slots=True)
class Result:
    """One agent found. `state` and `verdict` are of its last survey, `unprobed` and `unknown` without one."""

    agent: AgentId
    on_chain: OnChain
    card: Card
    terms: Terms
    state: str
    verdict: str
    reason: str
    endpoint: str | None
    offered: Offered
    pay_to: Address | None
    latency_ms: int | None
    models: tuple[str, ...]
    surveyed_at_s: int | None
    rating: float | None


def dollars(text: str, field: str) -> Fraction:
    """Return the dollars that `0.01` or `$0.01` means. Raises `UsageError` naming `field`."""
    found = _DOLLARS.fullmatch(text.strip())
    if found is None:
        raise UsageError(f'{field}: expected dollars with a decimal point, as "0.01", got {text[:40]!r}')
    return Fraction(found[1])


def search(connection: Connection, query: Query, now_s: int, calls: Sequence[PaidCall] = ()) -> list[Result]:
    """Return the best results first; `calls` are one's own paid ones. Reads the local file alone."""
    rows = _rows(connection, query)
    registries = {row[0]: Address(row[1]) for row in connection.execute("SELECT chain_id, identity FROM chains")}
    agents = [AgentId(row["chain_id"], registries[row["chain_id"]], row["agent_id"]) for row in rows]
    rated = scores(connection, agents, calls=calls, now_s=now_s)
    offers = [_offered(row) for row in rows]
    prices = [price_of(offer) for offer in offers]
    best = min((row["relevance"] for row in rows), default=-1.0)
    median = median_price(prices)
    found = []
    for row, agent, offer, price in zip(rows, agents, offers, prices, strict=True):
        if not _wanted(query, row, price):
            continue
        facts = Facts(
            # bm25 is negative, the smaller the better; an ordinary match still counts for something.
            text=0.3 + 0.7 * min(1.0, row["relevance"] / best if best else 1.0),
            state=row["state"] or "unprobed",
            verdict=row["verdict"] or "unknown",
            age_s=now_s - (row["surveyed_at_s"] or now_s),
            answered=row["answered"] or 0,
            probed=row["probed"] or 0,
            rating=rated.get(agent),
            price=price,
        )
        found.append((terms_of(facts, median), row, agent, offer))
    found.sort(key=lambda entry: (-entry[0].score, entry[2]))
    results = (_result(connection, *entry, rating=rated.get(entry[2])) for entry in found[: query.limit])
    return [result for result in results if result is not None]


def _rows(connection: Connection, query: Query) -> list[Row]:
    """Return the candidates: those with every word, or where these are few, with any."""
    words = [f'"{word}"*' for word in query.words]
    values = {"words": " AND ".join(words), "chain_id": query.chain_id, "limit": SEARCH_CANDIDATES_MAX}
    rows = connection.execute(_SELLERS, values).fetchall()
    if len(rows) < query.limit:
        rows += connection.execute(_OTHERS, {**values, "limit": query.limit}).fetchall()
    if not rows and len(words) > 1:
        values["words"] = " OR ".join(words)
        rows = connection.execute(_SELLERS, values).fetchall()
        rows += connection.execute(_OTHERS, {**values, "limit": query.limit}).fetchall()
    return rows


def _wanted(query: Query, row: Row, price: Fraction | None) -> bool:
    if query.is_verified and row["verdict"] != "verified":
        return False
    if query.network is not None and row["network"] != query.network.caip2:
        return False
    return query.max_price is None or (price is not None and price <= query.max_price)


def _offered(row: Row) -> Offered:
    return Offered(row["network"], row["asset"], row["price_atomic"], row["decimals"], row["symbol"])


def _result(
    connection: Connection, terms: Terms, row: Row, agent: AgentId, offered: Offered, *, rating: float | None
) -> Result | None:
    """Return one result, or None where a sync in another process took its file away meanwhile."""
    long = connection.execute(_LONG, (row["number"],)).fetchone()
    if long is None or long["card"] is None:
        return None
    owner, wallet, pay_to = (
        None if row[name] is None else Address(row[name]) for name in ("owner", "wallet", "pay_to")
    )
    return Result(
        agent=agent,
        on_chain=OnChain(owner, wallet, long["uri"]),
        card=msgspec.json.decode(long["card"], type=Card),
        terms=terms,
        state=row["state"] or "unprobed",
        verdict=row["verdict"] or "unknown",
        reason=row["reason"] or "",
        endpoint=row["endpoint"],
        offered=offered,
        pay_to=pay_to,
        latency_ms=row["latency_ms"],
        models=tuple(msgspec.json.decode(row["models"] or "[]", type=list[str])),
        surveyed_at_s=row["surveyed_at_s"],
        rating=rating,
    )
