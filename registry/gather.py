"""Gathering: the documents behind the agents of the index, fetched where due and kept as cards and text to search.

A file inside its URI is read on the spot and never again. Every other one is asked for when it is due: a good one after
a day, a dead one after a wait that doubles with every failure. Stopping at any moment loses only what was on the way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from contracts.storage import Connection, Database, Row
from registry.card import Card, host_of
from registry.documents import Document, read_document
from registry.fetch import Fetcher
from registry.limits import (
    DOCUMENT_TTL_S,
    FAILED_TTL_S,
    FAILED_TTL_S_MAX,
    FAILURES_UNTIL_GONE,
    FETCH_BATCH,
    FETCH_RUN_MAX,
    TEXTS_EVERY,
)
from registry.retrieve import Gateways, Retrieved, retrieve

__all__ = ["Gathered", "gather", "write_texts"]

Progress = Callable[[int, int], None]

_FOREVER_S = 2**40

_DUE = """
    SELECT agents.uri_key FROM agents LEFT JOIN documents USING (uri_key)
    WHERE agents.uri_key IS NOT NULL AND (documents.uri_key IS NULL OR documents.expires_at_s <= :now_s
        OR (:allow_private AND documents.error IN
            ('http_refused', 'scheme_refused', 'port_refused', 'address_refused')))
    GROUP BY agents.uri_key ORDER BY max(agents.updated_block) DESC, max(agents.agent_id) DESC LIMIT :limit
"""
_ONE = """
    SELECT agents.uri_key, agents.uri, agents.uri_bytes, documents.card, documents.etag, documents.last_modified,
        coalesce(documents.failures, 0) AS failures
    FROM agents LEFT JOIN documents USING (uri_key) WHERE agents.uri_key = ? ORDER BY agents.uri_bytes DESC LIMIT 1
"""
_STORE = """
    INSERT INTO documents (uri_key, uri, state, content_hash, content_bytes, card, warnings, error, failures, etag,
        last_modified, fetched_at_s, expires_at_s)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (uri_key) DO UPDATE SET
        state = excluded.state, content_hash = excluded.content_hash, content_bytes = excluded.content_bytes,
        card = excluded.card, warnings = excluded.warnings, error = excluded.error, failures = excluded.failures,
        etag = excluded.etag, last_modified = excluded.last_modified, fetched_at_s = excluded.fetched_at_s,
        expires_at_s = excluded.expires_at_s
"""
_POSTPONE = """
    UPDATE documents SET error = ?, failures = ?, fetched_at_s = ?, expires_at_s = ? WHERE uri_key = ?
"""
_TEXTLESS = """
    SELECT agents.number, documents.card FROM agents JOIN documents ON documents.uri_key = agents.uri_key
    WHERE documents.card IS NOT NULL AND NOT EXISTS (SELECT 1 FROM agent_text WHERE rowid = agents.number)
"""


@dataclass(slots=True)
class Gathered:
    """What one run did: files read, unchanged ones, and failures by code."""

    read: int = 0
    unchanged: int = 0
    failed: int = 0

    @property
    def done(self) -> int:
        """Documents looked at."""
        return self.read + self.unchanged + self.failed


async def gather(
    database: Database,
    fetcher: Fetcher,
    now_s: int,
    *,
    gateways: Gateways | None = None,
    progress: Progress | None = None,
) -> Gathered:
    """Fetch every document that is due, newest agents first, and make the text of all agents searchable.

    Raises `StoreUnavailable` alone: whatever strangers do ends as an error code beside their URI.
    """
    # What our own guard refused is no news of a host: once it may be reached, it is asked at once.
    wanted = {"now_s": now_s, "allow_private": fetcher.policy.allow_private, "limit": FETCH_RUN_MAX}
    due = [row[0] for row in database.read(lambda connection: connection.execute(_DUE, wanted).fetchall())]
    gathered = Gathered()
    for start in range(0, len(due), FETCH_BATCH):
        rows = database.read(partial(_batch, keys=due[start : start + FETCH_BATCH]))
        batch = await asyncio.gather(*(_retrieved(row, fetcher, gateways or Gateways()) for row in rows))
        for _, found in batch:
            gathered.unchanged += found.is_unchanged
            gathered.failed += found.error is not None
            gathered.read += found.data is not None
        database.transact(partial(_store, batch=batch, now_s=now_s), durable=False)
        if start % TEXTS_EVERY == 0:
            write_texts(database)
        if progress is not None:
            progress(gathered.done, len(due))
    write_texts(database)
    return gathered


def write_texts(database: Database) -> int:
    """Give every agent that has a card and no text its text, and return how many these were."""

    def write(connection: Connection) -> int:
        rows = [
            (number, *_text_of(msgspec.json.decode(card, type=Card)))
            for number, card in connection.execute(_TEXTLESS).fetchall()
        ]
        connection.executemany(
            "INSERT INTO agent_text (rowid, name, description, skills, tags, endpoints) VALUES (?, ?, ?, ?, ?, ?)", rows
        )
        return len(rows)

    return database.transact(write, durable=False)


def _batch(connection: Connection, keys: Sequence[bytes]) -> list[Row]:
    """Return what is known of some documents; one by one, since a URI may be as long as its file."""
    rows = (connection.execute(_ONE, (key,)).fetchone() for key in keys)
    return [row for row in rows if row is not None]


async def _retrieved(row: Row, fetcher: Fetcher, gateways: Gateways) -> tuple[Row, Retrieved]:
    if row["uri_bytes"] > len(row["uri"].encode()):
        return row, Retrieved(error="uri_too_long", is_lasting=True)
    known = {"etag": row["etag"], "last_modified": row["last_modified"]} if row["card"] is not None else {}
    return row, await retrieve(row["uri"], fetcher, gateways, **known)


def _store(connection: Connection, batch: Iterable[tuple[Row, Retrieved]], now_s: int) -> None:
    for row, found in batch:
        key = row["uri_key"]
        if found.is_unchanged:
            connection.execute(_POSTPONE, (None, 0, now_s, now_s + DOCUMENT_TTL_S, key))
        elif found.data is None and row["card"] is not None and row["failures"] + 1 < FAILURES_UNTIL_GONE:
            # A host that is down for an hour is no reason to forget what it said.
            wait_s = _wait_s(row["failures"])
            connection.execute(_POSTPONE, (found.error, row["failures"] + 1, now_s, now_s + wait_s, key))
        else:
            _replace(connection, row, found, now_s)


def _replace(connection: Connection, row: Row, found: Retrieved, now_s: int) -> None:
    """Store what a URI leads to now. Agents whose text changed lose the old one."""
    key, document = row["uri_key"], Document(None)
    if found.data is not None:
        document = read_document(found.data)
    failures = 0 if found.error is None else row["failures"] + 1
    wait_s = _FOREVER_S if found.is_lasting else DOCUMENT_TTL_S if found.error is None else _wait_s(row["failures"])
    card = None if document.card is None else msgspec.json.encode(document.card).decode()
    connection.execute(
        _STORE,
        (
            key,
            row["uri"],
            "failed" if found.data is None else "ok",
            found.content_hash,
            None if found.data is None else len(found.data),
            card,
            msgspec.json.encode(tuple(dict.fromkeys((*found.codes, *document.warnings)))).decode(),
            found.error,
            failures,
            found.etag,
            found.last_modified,
            now_s,
            now_s + wait_s,
        ),
    )
    if card == row["card"]:
        return
    connection.execute("DELETE FROM services WHERE uri_key = ?", (key,))
    connection.execute("DELETE FROM agent_text WHERE rowid IN (SELECT number FROM agents WHERE uri_key = ?)", (key,))
    services = document.card.services if document.card is not None else ()
    connection.executemany(
        "INSERT INTO services (uri_key, position, name, endpoint, version, host) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (key, position, service.name, service.endpoint, service.version, host_of(service.endpoint))
            for position, service in enumerate(services)
        ],
    )


def _wait_s(failures: int) -> int:
    return min(FAILED_TTL_S << min(failures, 20), FAILED_TTL_S_MAX)


def _text_of(card: Card) -> tuple[str, str, str, str, str]:
    endpoints = " ".join(f"{service.name} {service.endpoint}" for service in card.services)
    return card.name, card.description, " ".join(card.skills), " ".join(card.tags), endpoints
