"""Seal: the pool's signatures encrypted at rest, by AES-256-GCM of pycryptodome.

The key opens signatures; it cannot sign, and whoever has it and not the pool has nothing. Whoever has the pool's file
and not the key has nothing either. Each signature is bound to the nonce of its authorization, so that none can be put
in the place of another. A key is named as `keyfile:PATH` (32 bytes as hex, mode 0600, outside the home) or `keyring`
(the desktop's, by the `keyring` package). Seal a pool when it is new: what was written plain before may still be in
free pages of its file, and in backups.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import Any

from buyer.home import Home
from contracts.errors import ConfigInvalid
from contracts.storage import Connection

__all__ = ["SEAL_VARIABLE", "Seal", "begin_sealing", "find_seal", "make_seal_key", "read_seal_id"]

SEAL_VARIABLE = "FAREBOX_POOL_KEY"

_IV_BYTES = 12
_TAG_BYTES = 16
_SERVICE = "farebox"
_REMINDER = "pool-key"


class Seal:
    """Closes and opens signatures with one key of 32 bytes. `id` names the key and does not tell it."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.id = hashlib.sha256(b"farebox seal" + key).hexdigest()[:16]

    def close(self, signature: bytes, nonce: bytes) -> bytes:
        """Return a signature encrypted, for the authorization of that nonce."""
        cipher = self._cipher(iv := secrets.token_bytes(_IV_BYTES), nonce)
        closed, tag = cipher.encrypt_and_digest(signature)
        return iv + bytes(closed) + bytes(tag)

    def open(self, closed: bytes, nonce: bytes) -> bytes:
        """Return what `close` was given. Raises `ConfigInvalid` when it was changed or belongs elsewhere."""
        iv, body, tag = closed[:_IV_BYTES], closed[_IV_BYTES:-_TAG_BYTES], closed[-_TAG_BYTES:]
        try:
            return bytes(self._cipher(iv, nonce).decrypt_and_verify(body, tag))
        except ValueError:
            raise ConfigInvalid(
                "pool: a sealed signature does not open; its row was changed",
                remedy="restore the pool, or buy again and let these expire",
            ) from None

    def _cipher(self, iv: bytes, nonce: bytes) -> Any:
        from Crypto.Cipher import AES

        return AES.new(self._key, AES.MODE_GCM, nonce=iv, mac_len=_TAG_BYTES).update(nonce)


def begin_sealing(connection: Connection, seal: Seal) -> None:
    """Encrypt every signature of a pool, now and from now on. Raises `ConfigInvalid` when another key does."""
    known = read_seal_id(connection)
    if known == seal.id:
        return
    if known is not None:
        raise ConfigInvalid("--encrypt-with: this pool is sealed with another key", remedy="name the first key")
    for row in connection.execute("SELECT id, nonce, signature FROM authorizations").fetchall():
        closed = seal.close(row["signature"], row["nonce"])
        connection.execute("UPDATE authorizations SET signature = ? WHERE id = ?", (closed, row["id"]))
    connection.execute("UPDATE pool_state SET seal_id = ?", (seal.id,))


def read_seal_id(connection: Connection) -> str | None:
    """Return the name of the key the pool is sealed with, or None."""
    seal_id: str | None = connection.execute("SELECT seal_id FROM pool_state").fetchone()[0]
    return seal_id


def find_seal(home: Home, seal_id: str | None) -> Seal | None:
    """Return the seal of a pool by its name; None of None. Raises `ConfigInvalid` when its key is not at hand."""
    if seal_id is None:
        return None
    with contextlib.suppress(FileNotFoundError):
        spec = os.environ.get(SEAL_VARIABLE) or (home.path / _REMINDER).read_text().strip()
        seal = Seal(_read_key(spec))
        if seal.id != seal_id:
            raise ConfigInvalid(f"{SEAL_VARIABLE}: {spec} is not the key this pool is sealed with")
        return seal
    raise ConfigInvalid("the pool is sealed, and no key is named", remedy=f"set {SEAL_VARIABLE}=keyfile:PATH")


def make_seal_key(home: Home, spec: str) -> Seal:
    """Return the seal that `spec` names, its key made when there is none, and remember `spec` for later commands.

    Raises `ConfigInvalid` for a bad `spec`, and for a key inside the home, where a thief of the pool would find it.
    """
    kind, _, place = spec.partition(":")
    if kind == "keyfile" and place:
        path = Path(place).expanduser().absolute()
        if path.resolve().is_relative_to(home.path.resolve()):
            raise ConfigInvalid(f"--encrypt-with: {path} lies beside the pool", remedy="keep the key somewhere else")
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32) + "\n")
        spec = f"keyfile:{path}"
    elif spec == "keyring":
        keyring = _keyring()
        if keyring.get_password(_SERVICE, _REMINDER) is None:
            keyring.set_password(_SERVICE, _REMINDER, secrets.token_hex(32))
    seal = Seal(_read_key(spec))
    reminder = home.path / _REMINDER
    reminder.touch(mode=0o600)
    reminder.write_text(spec + "\n")
    return seal


def _read_key(spec: str) -> bytes:
    kind, _, place = spec.partition(":")
    if kind == "keyfile" and place:
        path = Path(place).expanduser()
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            text = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigInvalid(f"{path}: {getattr(error, 'strerror', 'is not text')}") from None
        if mode & 0o077:
            raise ConfigInvalid(f"{path}: mode {mode:04o} lets other users read it", remedy=f"run `chmod 600 {path}`")
    elif spec == "keyring":
        text = _keyring().get_password(_SERVICE, _REMINDER) or ""
    else:
        raise ConfigInvalid(f"expected keyfile:PATH or keyring, got {spec[:80]!r}")
    with contextlib.suppress(ValueError):
        if len(key := bytes.fromhex(text)) == 32:
            return key
    raise ConfigInvalid(f"{spec}: expected 64 hex digits")


def _keyring() -> Any:
    try:
        import keyring
    except ImportError:
        raise ConfigInvalid("keyring: the package is missing", remedy="pip install 'farebox[keyring]'") from None
    return keyring
