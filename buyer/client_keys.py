"""Client keys: who may call the gateway, and for which models. The store holds a hash of each, never the key.

A key is 32 random bytes, so one round of SHA-256 is all its hash needs.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from buyer.limits import NAME_LENGTH_MAX
from contracts.errors import NameUnknown, UsageError
from contracts.storage import Connection, Row

__all__ = ["PREFIX", "ClientKey", "create_key", "find_key", "read_keys", "revoke_key"]

PREFIX = "fbx_"
_NAME = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,{NAME_LENGTH_MAX - 1}}}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ClientKey:
    """One key by its name. `models` are the sellers' model ids it may call, None for all. Times are unix seconds."""

    name: str
    models: tuple[str, ...] | None
    created_s: int
    revoked_s: int | None


def create_key(connection: Connection, name: str, models: Sequence[str], now_s: int) -> str:
    """Store a new key and return it; it can never be shown again. Raises `UsageError` for a name that cannot be."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"NAME: expected up to {NAME_LENGTH_MAX} of a-z, 0-9, '.', '_' and '-', got {name[:80]!r}")
    if connection.execute("SELECT 1 FROM client_keys WHERE name = ?", (name,)).fetchone() is not None:
        raise UsageError(f"NAME: {name} is taken, also when revoked", remedy="choose another name")
    key = PREFIX + secrets.token_urlsafe(32)
    allowed = msgspec.json.encode(list(models)).decode() if models else None
    connection.execute(
        "INSERT INTO client_keys (name, hash, models, created_s) VALUES (?, ?, ?, ?)",
        (name, _hash(key), allowed, now_s),
    )
    return key


def find_key(connection: Connection, key: str) -> ClientKey | None:
    """Return the key of that text, or None when there is none or it was revoked."""
    query = "SELECT * FROM client_keys WHERE hash = ? AND revoked_s IS NULL"
    row = connection.execute(query, (_hash(key),)).fetchone()
    return None if row is None else _client_key(row)


def read_keys(connection: Connection) -> list[ClientKey]:
    """Return all keys by name, revoked ones included."""
    return [_client_key(row) for row in connection.execute("SELECT * FROM client_keys ORDER BY name").fetchall()]


def revoke_key(connection: Connection, name: str, now_s: int) -> None:
    """Refuse a key from now on. Raises `NameUnknown`."""
    query = "UPDATE client_keys SET revoked_s = ? WHERE name = ? AND revoked_s IS NULL"
    if connection.execute(query, (now_s, name)).rowcount == 0:
        raise NameUnknown(f"no valid key is called {name[:80]!r}", remedy="run `farebox key list`")


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _client_key(row: Row) -> ClientKey:
    models = None if row["models"] is None else tuple(msgspec.json.decode(row["models"], type=list[str]))
    return ClientKey(row["name"], models, row["created_s"], row["revoked_s"])
