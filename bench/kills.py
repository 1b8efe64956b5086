"""Kills a worker that claims, again and again, and looks for every claim it had acknowledged.

A child claims, marks as sent and says so through a pipe; after a random number of such words it is killed wherever it
happens to be. What it had said must be in the store afterwards: not free for another request, and held for the very
request it was claimed for.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.workload import an_offer, presign
from buyer.home import Home
from buyer.pool import Counts, Pool
from buyer.signers import KeySigner

__all__ = ["Losses", "count_losses"]

# Claims a child acknowledges before its end, at most; the kill falls somewhere in or after them.
_CLAIMS_MAX = 40
_POOL_SIZE = 2_000
_WORD = struct.Struct("<q")
_SECRET = b"\x01" * 32


@dataclass(frozen=True, slots=True)
class Losses:
    """How many workers were killed, what they had acknowledged, and how much of it the store did not know."""

    kills: int
    acknowledged: int
    lost: int


def count_losses(folder: Path, kills: int, timeout_s: float) -> Losses:
    """Kill up to `kills` workers, for at most `timeout_s`."""
    home = Home.open(folder)
    deadline_s = time.monotonic() + timeout_s
    random_ = random.Random(1)
    done = acknowledged = lost = 0
    seen: set[int] = set()
    signed = _fill(home)
    while done < kills and time.monotonic() < deadline_s:
        claimed = _one_kill(home, done, random_.randrange(_CLAIMS_MAX), random_.random() * 0.002)
        requests, counts = _books(home, claimed)
        assert counts.signed == signed, "the pool lost or gained authorizations"
        lost += sum(requests.get(row_id) != f"kill {done} claim {number}" for number, row_id in enumerate(claimed))
        # An authorization acknowledged twice went to two requests.
        lost += len(seen.intersection(claimed))
        seen.update(claimed)
        acknowledged += len(claimed)
        done += 1
        if counts.ready < _CLAIMS_MAX * 4:
            signed = _fill(home)
    return Losses(done, acknowledged, lost)


def _fill(home: Home) -> int:
    """Sign more and return how many were signed in all."""
    with Pool.open(home) as pool:
        presign(pool, an_offer(), KeySigner(_SECRET), _POOL_SIZE)
        return pool.counts("bench").signed


def _books(home: Home, ids: Sequence[int]) -> tuple[dict[int, str], Counts]:
    """Settle what the dead left; return the request each of `ids` is held for, where it is not free, and the counts."""
    marks = ", ".join("?" * len(ids))
    query = f"SELECT id, request_key FROM authorizations WHERE state = 'unknown' AND id IN ({marks})"
    with Pool.open(home) as pool:
        rows = pool.database.read(lambda connection: connection.execute(query, ids).fetchall())
        return {row["id"]: row["request_key"] for row in rows}, pool.counts("bench")


def _one_kill(home: Home, number: int, words: int, delay_s: float) -> list[int]:
    """Let a child claim until it has said `words` claims and `delay_s` has passed; return all it said."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            _claim_for_ever(home, number, writer)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        heard = said.read(_WORD.size * words)
        time.sleep(delay_s)
        os.kill(child, signal.SIGKILL)
        heard += said.read()
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, "the worker ended by itself"
    return [row_id for (row_id,) in _WORD.iter_unpack(heard[: len(heard) - len(heard) % _WORD.size])]


def _claim_for_ever(home: Home, number: int, writer: int) -> None:
    pool = Pool.open(home)
    purchase = pool.purchase("bench")
    spender = pool.spender()
    for index in range(_CLAIMS_MAX * 2):
        # Two of three are noted beside the books; the books have to take in what is noted when one is not.
        claim = spender.claim(purchase, f"kill {number} claim {index}", int(time.time()), is_new=index % 3 > 0)
        spender.sent(claim)
        os.write(writer, _WORD.pack(claim.row_id))
    while True:
        signal.pause()


if __name__ == "__main__":
    print(json.dumps(asdict(count_losses(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))))
