"""A sealed pool's file is worth nothing to a thief, and works as any other for who has the key."""

from __future__ import annotations

import secrets
import sys
import types
from pathlib import Path

import pytest

from buyer.home import Home
from buyer.journal import intend, store_signed
from buyer.pool import Pool
from buyer.seal import SEAL_VARIABLE, Seal
from contracts.errors import ConfigInvalid, StoreUnavailable
from contracts.schemes.authorization import Authorization
from contracts.storage import Connection
from tests.buyer.parts import NOW_S, add_purchase, add_signed, open_pool

SIGNATURE = b"\x01" * 65  # what `add_signed` stores


def file_bytes(home: Home) -> bytes:
    return b"".join(path.read_bytes() for path in home.path.glob("buyer.db*") if path.is_file())


def add_sealed(pool: Pool, count: int) -> None:
    purchase = pool.purchase("p")
    fresh = [
        Authorization(purchase.payer, purchase.offer.pay_to, 1000, 0, NOW_S + 86_400, secrets.token_bytes(32))
        for _ in range(count)
    ]
    seal = pool.seal()

    def work(connection: Connection) -> None:
        intents = intend(connection, purchase, fresh, balance_atomic=10**30, from_block=0, now_s=NOW_S)
        store_signed(connection, [(intent, SIGNATURE) for intent in intents], NOW_S, seal=seal)

    pool.database.transact(work)


def test_a_sealed_pool_pays_for_who_has_the_key_and_shows_a_thief_nothing(home: Home, tmp_path: Path) -> None:
    key = tmp_path / "pool.key"
    with Pool.open(home) as pool:
        add_purchase(pool)
        pool.begin_sealing(f"keyfile:{key}")
        add_sealed(pool, 3)
        spender = pool.spender()
        assert spender.claim(pool.purchase("p"), "r", NOW_S).signature == SIGNATURE
        spender.close()
    assert SIGNATURE not in file_bytes(home)
    assert key.stat().st_mode & 0o077 == 0
    key.unlink()
    with Pool.open(home) as stolen, pytest.raises(ConfigInvalid):
        stolen.spender()


def test_what_a_pool_held_before_is_sealed_too(home: Home, tmp_path: Path) -> None:
    pool, purchase = open_pool(home, 3)
    with pool:
        pool.begin_sealing(f"keyfile:{tmp_path / 'key'}")
        pool.begin_sealing(f"keyfile:{tmp_path / 'key'}")
        rows = pool.database.read(lambda it: it.execute("SELECT signature FROM authorizations").fetchall())
        assert all(SIGNATURE not in row["signature"] for row in rows)
        spender = pool.spender()
        claim = spender.claim(purchase, "r", NOW_S)
        spender.sent(claim)
        spender.lost(claim, status=None, reason="timeout")
        again = spender.reopen("r", NOW_S)
        assert again is not None
        assert (claim.signature, again.signature) == (SIGNATURE, SIGNATURE)
        spender.close()


def test_another_key_neither_seals_nor_opens(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _ = open_pool(home, 1)
    with pool:
        pool.begin_sealing(f"keyfile:{tmp_path / 'one'}")
        with pytest.raises(ConfigInvalid, match="another key"):
            pool.begin_sealing(f"keyfile:{tmp_path / 'other'}")
        monkeypatch.setenv(SEAL_VARIABLE, f"keyfile:{tmp_path / 'other'}")
        with pytest.raises(ConfigInvalid, match="is not the key"):
            pool.spender()


def test_nothing_is_stored_plain_in_a_sealed_pool(home: Home, tmp_path: Path) -> None:
    pool, purchase = open_pool(home, 1)
    with pool:
        pool.begin_sealing(f"keyfile:{tmp_path / 'key'}")
        with pytest.raises(ConfigInvalid, match="sealed"):
            add_signed(pool, purchase, 1)


def test_a_process_that_opened_the_pool_before_it_was_sealed_sends_nothing_sealed(home: Home, tmp_path: Path) -> None:
    pool, purchase = open_pool(home, 3)
    with pool:
        spender = pool.spender()
        pool.begin_sealing(f"keyfile:{tmp_path / 'key'}")
        with pytest.raises(StoreUnavailable, match="sealed since"):
            spender.claim(purchase, "r", NOW_S)
        spender.close()


def test_a_signature_cannot_be_moved_to_another_authorization() -> None:
    seal = Seal(b"k" * 32)
    closed = seal.close(SIGNATURE, b"a" * 32)
    assert seal.open(closed, b"a" * 32) == SIGNATURE
    for changed in (closed[:-1] + bytes([closed[-1] ^ 1]), b"", closed[:20]):
        with pytest.raises(ConfigInvalid, match="does not open"):
            seal.open(changed, b"a" * 32)
    with pytest.raises(ConfigInvalid):
        seal.open(closed, b"b" * 32)
    assert seal.close(SIGNATURE, b"a" * 32) != closed


@pytest.mark.parametrize("spec", ["keyfile:", "nonsense", "keyfile:{home}/key"])
def test_a_key_that_is_none_or_lies_beside_the_pool_is_refused(home: Home, spec: str) -> None:
    with Pool.open(home) as pool, pytest.raises(ConfigInvalid):
        pool.begin_sealing(spec.replace("{home}", str(home.path)))


def test_a_key_that_others_can_read_is_refused(home: Home, tmp_path: Path) -> None:
    key = tmp_path / "key"
    with Pool.open(home) as pool:
        pool.begin_sealing(f"keyfile:{key}")
        key.chmod(0o644)
        with pytest.raises(ConfigInvalid, match="0644"):
            pool.spender()


def test_the_key_may_be_in_the_keyring(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the `keyring` package, which is an extra."""
    kept: dict[tuple[str, str], str] = {}
    package = types.ModuleType("keyring")
    package.get_password = lambda service, name: kept.get((service, name))  # type: ignore[attr-defined]
    package.set_password = lambda service, name, text: kept.update({(service, name): text})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", package)
    pool, purchase = open_pool(home, 1)
    with pool:
        pool.begin_sealing("keyring")
        spender = pool.spender()
        assert spender.claim(purchase, "r", NOW_S).signature == SIGNATURE
        spender.close()
    monkeypatch.setitem(sys.modules, "keyring", None)
    with Pool.open(home) as without, pytest.raises(ConfigInvalid, match="keyring"):
        without.spender()
