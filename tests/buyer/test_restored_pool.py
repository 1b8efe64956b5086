"""A pool restored from a backup is noticed, and nothing of it is spent before the chain was asked."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from buyer.home import Home
from buyer.pool import Claim, Counts, Pool, Spender
from buyer.purchase import Purchase
from buyer.refill import process
from buyer.signers import Signer
from contracts.address import parse_address
from contracts.errors import ConfigInvalid, PoolRestored
from contracts.evm.devnet import Devnet
from contracts.signature import SigningKey
from tests.buyer.parts import add_purchase, add_signed, offer_of, open_pool, settle, token_of
from tests.buyer.test_pool_model import abandon


def no_wallet() -> Signer:
    pytest.fail("nothing may be signed")


class Backup:
    """A copy of the store's files, made while they are in use, and put back later."""

    def __init__(self, home: Home, folder: Path) -> None:
        self.home, self.folder = home, folder
        folder.mkdir()
        for path in home.path.glob("buyer.db*"):
            if path.is_file():
                shutil.copy(path, folder / path.name)

    def restore(self) -> None:
        for path in self.home.path.glob("buyer.db*"):
            if path.is_file():
                path.unlink()
        for path in self.folder.iterdir():
            shutil.copy(path, self.home.path / path.name)


@pytest.fixture
def purchase(chain: Devnet, home: Home) -> Purchase:
    """Ten authorizations of a funded wallet, good for an hour."""
    account = chain.accounts[0]
    chain.mint(account.address, 10**6)
    offer = offer_of(asset=token_of(chain), pay_to=parse_address(chain.accounts[1].address))
    with Pool.open(home) as pool:
        made = add_purchase(pool, offer=offer, payer=parse_address(account.address), rpc_urls=(chain.rpc_url,))
        add_signed(pool, made, 10, valid_before_s=int(time.time()) + 3600, key=SigningKey(account.key))
    return made


def spend(spender: Spender, purchase: Purchase, key: str, *, is_new: bool = False) -> Claim:
    claim = spender.claim(purchase, key, int(time.time()), is_new=is_new)
    spender.sent(claim)
    spender.served(claim, status=200, receipt=None, latency_ms=1)
    return claim


def process_p(pool: Pool, *, trust_unused: bool = False) -> None:
    asyncio.run(process(pool, pool.purchase("p"), no_wallet, trust_unused=trust_unused))


@pytest.mark.parametrize("is_new", [False, True], ids=["in the books", "noted beside them"])
@pytest.mark.parametrize("when", ["before the lease", "within the lease"])
def test_a_restored_backup_hands_out_nothing_before_the_chain_was_asked(
    chain: Devnet, home: Home, purchase: Purchase, tmp_path: Path, when: str, is_new: bool
) -> None:
    pool = Pool.open(home)
    spender = pool.spender()
    if when == "before the lease":
        backup = Backup(home, tmp_path / "backup")
        first = spend(spender, purchase, "a", is_new=is_new)
    else:
        first = spend(spender, purchase, "a", is_new=is_new)
        backup = Backup(home, tmp_path / "backup")
    claims = [first, spend(spender, purchase, "b", is_new=is_new), spend(spender, purchase, "c", is_new=is_new)]
    spender.close()
    pool.close()
    settle(chain, claims[1].authorization, claims[1].signature, purchase.offer)
    backup.restore()

    with Pool.open(home) as restored:
        spender = restored.spender()
        with pytest.raises(PoolRestored, match="older copy"):
            spender.claim(purchase, "d", int(time.time()))
        process_p(restored)
        counts = restored.counts("p")
        assert counts.ready == 0, "whether an unused one was sent cannot be known"
        assert counts.spent >= 1
        assert counts.signed == 10
        spender.close()


def test_who_knows_that_nothing_was_sent_since_may_trust_what_the_chain_shows_unused(
    chain: Devnet, home: Home, purchase: Purchase, tmp_path: Path
) -> None:
    backup = Backup(home, tmp_path / "backup")
    with Pool.open(home) as pool:
        spender = pool.spender()
        claim = spend(spender, purchase, "a")
        settle(chain, claim.authorization, claim.signature, purchase.offer)
        spender.close()
    backup.restore()
    with Pool.open(home) as restored:
        process_p(restored, trust_unused=True)
        assert restored.counts("p") == Counts(ready=9, spent=1)
        spender = restored.spender()
        assert spend(spender, restored.purchase("p"), "b").authorization.nonce != claim.authorization.nonce
        spender.close()
    with Pool.open(home) as again:
        assert not again.purchase("p").is_restored, "it is told once"


@pytest.fixture
def quiet(home: Home) -> Iterator[Pool]:
    pool, _ = open_pool(home, 5)
    with pool:
        yield pool


def test_a_pool_that_was_only_opened_closed_or_killed_is_no_older_copy(home: Home, quiet: Pool) -> None:
    for number in range(3):
        with Pool.open(home) as pool:
            spender = pool.spender()
            spend(spender, pool.purchase("p"), f"r{number}")
            if number != 1:
                spender.close()
            assert not pool.purchase("p").is_restored


def test_a_power_loss_is_no_older_copy(home: Home, tmp_path: Path) -> None:
    pool, purchase = open_pool(home, 5)
    spender = pool.spender()
    spender.abort(spender.claim(purchase, "to take a lease", 1_800_000_000))
    disk = Backup(home, tmp_path / "disk")
    claim = spender.claim(purchase, "r", 1_800_000_000)
    spender.sent(claim)
    abandon(spender)
    disk.restore()
    with Pool.open(home, era="after") as reopened:
        assert not reopened.purchase("p").is_restored
        assert reopened.counts("p").unknown >= 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_pool_that_others_can_read_is_not_opened(home: Home, mode: int) -> None:
    open_pool(home, 1)[0].close()
    (home.path / "buyer.db").chmod(mode)
    with pytest.raises(ConfigInvalid, match=f"mode {mode:04o}") as refused:
        Pool.open(home)
    assert "chmod 600" in refused.value.advice
