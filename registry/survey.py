"""Surveying: which agents answer with a price now, and what of them is proven; kept for search, with its history.

Sends unpaid requests and fetches domain proofs; never pays. Endpoints and domains that many agents name are asked once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from contracts.storage import Connection, Database, Row
from registry.agent_id import AgentId
from registry.candidates import ONE, Candidate, candidate_from
from registry.card import Card
from registry.documents import read_json
from registry.fetch import Fetcher
from registry.limits import SURVEY_BATCH, SURVEY_RUN_MAX, SURVEY_TTL_S, WELL_KNOWN_BYTES_MAX
from registry.probe import Probe, cheapest, endpoints_of, probe
from registry.retrieve import retrieve_well_known
from registry.standing import Finding, read_pins, store_survey
from registry.uri import locate
from registry.verification import (
    Pin,
    Verdict,
    check_chain,
    check_content,
    check_domain,
    check_file,
    check_payee,
    judge,
    origin_of,
)

__all__ = ["Surveyor", "survey"]

T = TypeVar("T")
Progress = Callable[[int, int], None]

# Only agents with something to ask at; those never looked at first, then those whose last look is the oldest.
_DUE = """
    SELECT agents.chain_id, agents.agent_id FROM agents JOIN documents USING (uri_key)
        LEFT JOIN standings USING (chain_id, agent_id)
    WHERE EXISTS (SELECT 1 FROM services WHERE services.uri_key = agents.uri_key AND services.host IS NOT NULL)
        AND coalesce(json_extract(documents.card, '$.x402'), 1) <> 0
        AND (standings.surveyed_at_s IS NULL OR standings.surveyed_at_s <= :since_s
            OR (:allow_private AND standings.state = 'dead' AND (
                SELECT error FROM probes WHERE endpoint = standings.endpoint ORDER BY number DESC LIMIT 1
            ) IN ('scheme_refused', 'port_refused', 'address_refused'))
            OR standings.uri_key IS NOT agents.uri_key OR standings.owner IS NOT agents.owner
            OR standings.wallet IS NOT agents.wallet)
    ORDER BY coalesce(standings.surveyed_at_s, 0), agents.number DESC LIMIT :limit
"""


class Surveyor:
    """One run: answers are remembered, so that a thousand copies of one file cost one request."""

    def __init__(self, fetcher: Fetcher, model: str | None = None) -> None:
        self._fetcher = fetcher
        self._model = model
        self._probes: dict[str, asyncio.Task[Probe]] = {}
        self._proofs: dict[str, asyncio.Task[tuple[Any, str | None]]] = {}

    async def look(self, candidate: Candidate, pins: Sequence[Pin] = (), endpoint: str | None = None) -> list[Finding]:
        """Return what was found at each endpoint that may be for sale, or at `endpoint` alone; the best one first."""
        card = candidate.card or Card()
        endpoints = endpoints_of(card) if endpoint is None else (endpoint,)
        return sorted([await self._examine(candidate, where, pins) for where in endpoints], key=_order)

    async def _examine(self, candidate: Candidate, endpoint: str, pins: Sequence[Pin]) -> Finding:
        probed = await self._once(self._probes, endpoint, lambda: probe(endpoint, self._fetcher, self._model))
        file_url = locate(candidate.on_chain.uri, allow_http=self._fetcher.policy.allow_private).url
        origin = origin_of(endpoint)
        proof, error = None, None
        if file_url is None or origin_of(file_url) != origin:
            if probed.state == "dead":
                error = probed.error
            else:
                proof, error = await self._once(self._proofs, origin, lambda: self._proof(origin))
        return Finding(probed, _verdict_of(candidate, probed, proof, error, pins))

    async def _proof(self, origin: str) -> tuple[Any, str | None]:
        found = await retrieve_well_known(origin, self._fetcher)
        if found.data is None:
            return None, found.error
        document, codes = read_json(found.data, WELL_KNOWN_BYTES_MAX)
        return document, None if document is not None else (codes or ("json_malformed",))[-1]

    async def _once(self, known: dict[str, asyncio.Task[T]], key: str, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if key not in known:
            known[key] = asyncio.create_task(ask())
        return await known[key]


def _verdict_of(
    candidate: Candidate, probed: Probe, proof: Any, proof_error: str | None, pins: Sequence[Pin]
) -> Verdict:
    """Return the ladder of an agent at one endpoint. Pure."""
    location = locate(candidate.on_chain.uri, allow_http=True)
    offers = probed.offers if probed.state == "payable" else None
    return judge(
        [
            check_chain(candidate.on_chain),
            check_file(candidate.agent, candidate.card, candidate.error),
            check_domain(candidate.agent, origin_of(probed.endpoint), location.url, proof, proof_error),
            check_content(candidate.content_hash, candidate.approved_hash),
            check_payee(candidate.agent, candidate.on_chain, probed.endpoint, offers, pins),
        ]
    )


async def survey(database: Database, fetcher: Fetcher, now_s: int, *, progress: Progress | None = None) -> int:
    """Look at every agent whose file may offer something for sale and that is due; return how many these were.

    Raises `StoreUnavailable` alone.
    """
    # What our own guard refused is no news of a seller: once it may be reached, it is asked at once.
    wanted = {"since_s": now_s - SURVEY_TTL_S, "allow_private": fetcher.policy.allow_private, "limit": SURVEY_RUN_MAX}
    due = database.read(lambda connection: connection.execute(_DUE, wanted).fetchall())
    surveyor, looked_at = Surveyor(fetcher), 0
    for start in range(0, len(due), SURVEY_BATCH):
        batch, pins = database.read(partial(_batch, places=due[start : start + SURVEY_BATCH]))
        found = await asyncio.gather(*(surveyor.look(candidate, pins.get(candidate.agent, ())) for candidate in batch))
        findings = list(zip(batch, found, strict=True))
        database.transact(partial(_store, findings=findings, now_s=now_s), durable=False)
        if progress is not None:
            progress(min(start + SURVEY_BATCH, len(due)), len(due))
        looked_at += len(batch)
    return looked_at


def _may_sell(candidate: Candidate) -> bool:
    card = candidate.card
    return card is not None and card.x402 is not False and bool(endpoints_of(card))


def _batch(connection: Connection, places: Sequence[Row]) -> tuple[list[Candidate], dict[AgentId, list[Pin]]]:
    """Return the agents at `places` that may sell something, and the user's pins for them."""
    batch = []
    for chain_id, agent_id in places:
        row = connection.execute(ONE, (chain_id, agent_id)).fetchone()
        if row is not None and _may_sell(candidate := candidate_from(row)):
            batch.append(candidate)
    return batch, {candidate.agent: read_pins(connection, candidate.agent) for candidate in batch}


def _store(connection: Connection, findings: Sequence[tuple[Candidate, list[Finding]]], now_s: int) -> None:
    asked: set[str] = set()
    for candidate, found in findings:
        if found:
            store_survey(connection, candidate, found, now_s, asked)


def _order(finding: Finding) -> tuple[int, int, int]:
    """Order findings: proven before unproven before blocked, with a price before without, then the lower price."""
    states = ("verified", "unproven", "blocked")
    offer = cheapest(finding.probe.offers)
    price = 0 if offer is None else offer.amount_atomic * 10 ** max(0, 18 - offer.asset.decimals)
    return states.index(finding.verdict.state), int(finding.probe.state != "payable"), price
