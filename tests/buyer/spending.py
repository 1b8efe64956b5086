"""A process that spends, for tests that kill it: `python -m tests.buyer.spending HOME STEP`.

It says on stdout what it did, each line in one write after the step is done; what is in the pipe survives its death.
With a STEP it kills itself there; with `wait` it stops after its first SENT until its stdin ends; otherwise it spends
until somebody kills it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from buyer.home import Home
from buyer.pool import Pool
from tests.buyer.parts import NOW_S

__all__ = ["STEPS"]

STEPS = ("opened", "leased", "claimed", "sent", "served", "lost", "reopened")


def say(*words: str) -> None:
    os.write(1, (" ".join(words) + "\n").encode())


def main(folder: str, step: str) -> None:
    def reach(name: str) -> None:
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    pool = Pool.open(Home.open(Path(folder)))
    purchase = pool.purchase("p")
    spender = pool.spender(lease_size=8)
    reach("opened")
    spender.abort(spender.claim(purchase, "only to lease", NOW_S))
    reach("leased")
    number = 0
    while True:
        number += 1
        key = f"{os.getpid()}:{number}"
        # Of a request that is new, the steps are written down beside the books.
        claim = spender.claim(purchase, key, NOW_S, is_new=number % 2 == 1)
        nonce = claim.authorization.nonce.hex()
        say("claimed", nonce, key)
        reach("claimed")
        spender.sent(claim)
        say("sent", nonce, key)
        reach("sent")
        if step == "wait":
            sys.stdin.read()
        if number % 3:
            spender.served(claim, status=200, receipt=None, latency_ms=1)
            say("served", nonce, key)
            reach("served")
            continue
        spender.lost(claim, status=None, reason="timeout")
        say("lost", nonce, key)
        reach("lost")
        again = spender.reopen(key, NOW_S)
        assert again is not None
        say("sent", again.authorization.nonce.hex(), key)
        reach("reopened")
        spender.served(again, status=200, receipt=None, latency_ms=1)
        say("served", nonce, key)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
