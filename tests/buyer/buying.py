"""A process that signs a pool and is killed between signing and storing: `python -m tests.buyer.buying HOME RPC KEY`.

Its signer kills the process as soon as it has signed the second chunk.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from buyer.home import Home
from buyer.pool import Pool
from buyer.presign import Draft, carry_out, prepare
from buyer.signers import KeySigner
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization
from tests.buyer.parts import offer_of, terms_of, token_at

COUNT = 80


class Deadly(KeySigner):
    """Signs, and takes the process down with the second batch of signatures in its hands."""

    calls = 0

    def sign_authorizations(self, authorizations: Sequence[Authorization], offer: Offer) -> list[bytes]:
        signatures = super().sign_authorizations(authorizations, offer)
        self.calls += 1
        if self.calls == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return signatures


def main(folder: str, rpc_url: str, token: str, key: str) -> None:
    wallet = Deadly(bytes.fromhex(key))
    draft = Draft(
        name="p",
        kind="pool",
        endpoint="http://127.0.0.1:8402",
        model="m",
        payer=wallet.address,
        terms=terms_of(offer_of(asset=token_at(token))),
        price_cap_atomic=1000,
        ttl_s=86_400,
        refill=None,
        rpc_urls=(rpc_url,),
    )
    with Pool.open(Home.open(Path(folder))) as pool:
        carry_out(pool, asyncio.run(prepare(pool, draft, COUNT, int(time.time()))), wallet)


if __name__ == "__main__":
    main(*sys.argv[1:])
