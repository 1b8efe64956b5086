"""`kill -9` and power loss: nothing is lost, and nothing that left is ever offered again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from buyer.home import Home
from buyer.pool import Counts, Pool
from contracts.errors import AuthorizationsExhausted
from tests.buyer.parts import NOW_S, add_purchase, add_signed, open_pool
from tests.buyer.spending import STEPS
from tests.buyer.test_pool_model import abandon
from tests.patience import PATIENCE_S

# `make` runs a few; a thousand take a quarter of an hour: FAREBOX_TEST_KILLS=1000.
KILLS = int(os.environ.get("FAREBOX_TEST_KILLS", "6"))


def start(home: Home, step: str = "never") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.buyer.spending", str(home.path), step]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )


def said_by(process: subprocess.Popen[str]) -> list[list[str]]:
    """Return all complete lines of a process that has ended, and let go of its pipe."""
    with process:
        assert process.stdout is not None
        return [line.split() for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]


def states(pool: Pool) -> dict[str, str]:
    query = "SELECT nonce, state FROM authorizations"
    return pool.database.read(lambda c: {row["nonce"].hex(): row["state"] for row in c.execute(query)})


def check_books(said: list[list[str]], after: dict[str, str], in_doubt_before: int = 0) -> None:
    """What a dead process has told must agree with the store it left."""
    last = {nonce: event for event, nonce, _ in said}
    keys = {nonce: key for _, nonce, key in said}
    assert len(set(keys.values())) == len(keys), "one authorization was used for two requests"
    for nonce, event in last.items():
        allowed = {
            "claimed": {"ready", "unknown"},  # it may have died just before it could say `sent`
            "sent": {"unknown", "spent"},
            "served": {"spent"},
            "lost": {"unknown"},
        }[event]
        assert after[nonce] in allowed, f"{event}, but now {after[nonce]}"
    assert set(after.values()) <= {"ready", "unknown", "spent"}
    in_doubt = sum(state == "unknown" for state in after.values()) - in_doubt_before
    assert in_doubt <= 1, "more than the one in flight is in doubt"


@pytest.mark.parametrize("step", STEPS)
def test_a_process_killed_at_each_step_loses_nothing(home: Home, step: str) -> None:
    pool, _ = open_pool(home, 40)
    pool.close()
    process = start(home, step)
    said = said_by(process)
    assert process.returncode == -signal.SIGKILL
    with Pool.open(home) as reopened:
        assert reopened.counts("p").signed == 40
        check_books(said, states(reopened))


def test_a_process_killed_at_any_time_loses_nothing(home: Home) -> None:
    pool, purchase = open_pool(home, 200)
    pool.close()
    chance = random.Random(20_261_121)
    signed, in_doubt = 200, 0
    for _ in range(KILLS):
        process = start(home)
        assert process.stdout is not None
        said = [process.stdout.readline().split() for _ in range(chance.randrange(1, 60))]
        process.kill()
        said += said_by(process)
        with Pool.open(home) as reopened:
            assert reopened.counts("p").signed == signed
            after = states(reopened)
            check_books([line for line in said if line], after, in_doubt)
            in_doubt = sum(state == "unknown" for state in after.values())
            add_signed(reopened, purchase, 50)
            signed += 50


def test_what_a_killed_process_had_in_flight_is_presented_again_for_the_same_request_only(home: Home) -> None:
    pool, purchase = open_pool(home, 10)
    pool.close()
    said = said_by(start(home, "sent"))
    nonce, key = said[-1][1], said[-1][2]
    with Pool.open(home) as reopened:
        spender = reopened.spender()
        others = {spender.claim(purchase, f"other {number}", NOW_S).authorization.nonce for number in range(9)}
        assert bytes.fromhex(nonce) not in others
        with pytest.raises(AuthorizationsExhausted):
            spender.claim(purchase, "one too many", NOW_S)
        again = spender.reopen(key, NOW_S)
        assert again is not None
        assert again.authorization.nonce.hex() == nonce
        spender.close()


def test_a_living_process_keeps_its_lease_when_another_one_opens_the_pool(home: Home) -> None:
    pool, _ = open_pool(home, 10)
    pool.close()
    with start(home, "wait") as process:
        assert process.stdout is not None
        words = [process.stdout.readline().split() for _ in range(2)]
        with Pool.open(home) as other:
            assert states(other)[words[0][1]] == "sent"
        process.kill()
    with Pool.open(home) as other:
        assert states(other)[words[0][1]] == "unknown"


def test_two_processes_on_one_pool_never_use_the_same_authorization(home: Home) -> None:
    pool, _ = open_pool(home, 300)
    pool.close()
    processes = [start(home) for _ in range(2)]
    # Each spends until the pool is empty, and then ends by its own error.
    said = [line for process in processes for line in _all(process)]
    served = [nonce for event, nonce, _ in said if event == "served"]
    assert len(served) == len(set(served)) == 300
    with Pool.open(home) as reopened:
        assert reopened.counts("p") == Counts(spent=300)


def _all(process: subprocess.Popen[str]) -> list[list[str]]:
    output, _ = process.communicate(timeout=PATIENCE_S)
    return [line.split() for line in output.splitlines()]


def test_after_a_power_loss_everything_a_worker_held_waits_for_the_chain(home: Home, tmp_path: Path) -> None:
    """The store falls back to its last synced write: the lease. What was sent after it is not on that disk."""
    pool = Pool.open(home, era="before")
    purchase = add_purchase(pool)
    add_signed(pool, purchase, 40)
    worker = pool.spender(lease_size=8)
    worker.abort(worker.claim(purchase, "to take a lease", NOW_S))
    disk = tmp_path / "disk"
    disk.mkdir()
    for path in home.path.glob("buyer.db*"):
        shutil.copy(path, disk / path.name)
    sent = [worker.claim(purchase, f"r{number}", NOW_S) for number in range(8)]
    for claim in sent[:6]:
        worker.sent(claim)
        worker.served(claim, status=200, receipt=None, latency_ms=1)
    abandon(worker)
    pool.close()
    for path in home.path.glob("buyer.db*"):
        path.unlink()
    for path in disk.iterdir():
        shutil.copy(path, home.path / path.name)
    with Pool.open(home, era="after") as reopened:
        counts = reopened.counts("p")
        assert counts == Counts(ready=32, unknown=8)
        spender = reopened.spender()
        free = {spender.claim(purchase, f"new {number}", NOW_S).authorization.nonce for number in range(32)}
        assert not free & {claim.authorization.nonce for claim in sent}
        spender.close()


def test_a_copied_store_without_its_lock_files_trusts_no_lease(home: Home) -> None:
    pool, purchase = open_pool(home, 40)
    worker = pool.spender(lease_size=8)
    worker.claim(purchase, "request", NOW_S)
    abandon(worker)
    pool.close()
    shutil.rmtree(home.path / "buyer.present")
    with Pool.open(home) as restored:
        assert restored.counts("p") == Counts(ready=32, unknown=8)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_spender_is_worthless_in_a_forked_child(home: Home) -> None:
    pool, purchase = open_pool(home, 4)
    worker = pool.spender()
    child = os.fork()
    if child == 0:  # pragma: no cover - the child's own life
        try:
            worker.claim(purchase, "request", NOW_S)
        except BaseException as error:  # noqa: BLE001 - the exit code is the answer
            os._exit(7 if "fork" in str(error) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    worker.close()
    pool.close()
