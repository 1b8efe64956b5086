"""Workers in processes of their own: each opens the pool itself, bids by itself, and can be killed by itself.

What a dead worker did is read in the pool, once its claims were settled as those of any process that died. Nothing had
left: its money goes back to the run. Something had: the same key is asked again, which buys nothing.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from buyer.client_keys import ClientKey
from buyer.pool import Pool
from contracts.errors import FareboxError
from gateway.config import GatewayConfig
from gateway.delegator.buying import Asked, Buying, request_key
from gateway.delegator.calls import Answer, NodeFailed, NodeUnknown
from gateway.delegator.journal import Attempt
from gateway.delegator.limits import RESULT_LENGTH_MAX
from gateway.delegator.ways import Wish
from gateway.desk import Desk

__all__ = ["IsolatedBuying"]

# Prompt, schema and settings.
_JOB_BYTES_MAX = 4 * 1024 * 1024


class IsolatedBuying(Buying):
    """Buys each answer in a process of its own. `processes` are those that run, by attempt key."""

    def __init__(self, desk: Desk, client_key: ClientKey | None = None) -> None:
        super().__init__(desk, client_key)
        self._job = {
            "config": desk.config.model_copy(update={"home": str(desk.pool.home.path)}).model_dump(mode="json"),
            "client_key": None if client_key is None else asdict(client_key),
        }
        self._home = desk.pool.home
        self.processes: dict[str, asyncio.subprocess.Process] = {}

    def command(self, key: str) -> Sequence[str]:  # noqa: ARG002 - others may start each worker in its own way
        """Return what the worker of an attempt is started with."""
        return (sys.executable, "-m", "gateway.delegator.isolated")

    async def buy(self, attempt: Attempt, asked: Asked, wish: Wish) -> Answer:
        """See `Buying.buy`."""
        job = {
            **self._job,
            "attempt": asdict(attempt),
            "tokens": asked.tokens,
            "schema": asked.schema,
            "wish": {"deadline_s": wish.deadline_s, "is_urgent": wish.is_urgent, "avoid": sorted(wish.avoid)},
        }
        end = await self._end_of(attempt.key, json.dumps(job).encode())
        if end is None:
            if await asyncio.to_thread(self._left, attempt.key):
                return await super().buy(attempt, asked, wish)
            raise NodeFailed("its worker died before it paid")
        if end["end"] == "failed":
            raise NodeFailed(end["message"], paid_units=int(end["paid_units"]))
        if end["end"] == "unknown":
            raise NodeUnknown(end["message"])
        return Answer(end["text"], int(end["paid_units"]))

    async def _end_of(self, key: str, job: bytes) -> dict[str, Any] | None:
        """Return what a worker says in the end; None when it died."""
        process = await asyncio.create_subprocess_exec(
            *self.command(key),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=RESULT_LENGTH_MAX * 8,
        )
        self.processes[key] = process
        try:
            told, _ = await process.communicate(job)
        finally:
            self.processes.pop(key, None)
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0 or not told:
            return None
        end: dict[str, Any] = json.loads(told)
        return end

    def _left(self, key: str) -> bool:
        """Tell whether a payment of a worker that died has left. Opening the pool settles what the dead left behind."""
        with Pool.open(self._home) as pool:
            return pool.receipt_of(request_key(key)) is not None


async def _work(job: dict[str, Any]) -> dict[str, Any]:
    """Buy one answer and return how it ended."""
    from gateway.serve import open_desk

    config = GatewayConfig.model_validate_json(json.dumps(job["config"]))
    client_key = None if job["client_key"] is None else ClientKey(**job["client_key"])
    attempt = Attempt(**job["attempt"])
    wish = Wish(job["wish"]["deadline_s"], job["wish"]["is_urgent"], frozenset(job["wish"]["avoid"]))
    try:
        async with open_desk(config) as desk:
            buying = Buying(desk, client_key)
            answer = await buying.buy(attempt, Asked(job["tokens"], job["schema"]), wish)
            await buying.close()
    except NodeFailed as error:
        return {"end": "failed", "message": error.message, "paid_units": str(error.paid_units)}
    except FareboxError as error:
        return {"end": "unknown", "message": error.message}
    return {"end": "answered", "text": answer.text, "paid_units": str(answer.paid_units)}


def main() -> None:
    """Do the one job on stdin and say on stdout how it ended."""
    job = json.loads(sys.stdin.buffer.read(_JOB_BYTES_MAX))
    sys.stdout.write(json.dumps(asyncio.run(_work(job))))


if __name__ == "__main__":
    main()
