"""Bring the index up to the head of a chain: newest blocks first, in windows that each endpoint allows.

    look     the head that most endpoints have, and whether the last one is still there (if not: back to the common
             ancestor)
    fill     every block that is not in the index, newest first; each window is one transaction
    confirm  the head is still the head; nothing is missing; a sample of agents is on chain what the logs made of them
    finish   the head is recorded

Whatever goes wrong, what was stored is right and is not asked for again, except of an endpoint that lied: what it told
is forgotten as a whole and asked of the others, or of itself in smaller pieces.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from contracts.errors import ChainUnavailable
from contracts.evm.rpc import Rpc, RpcRefused
from registry.chains import RegistryChain
from registry.completeness import holes
from registry.contradictions import contradictions
from registry.endpoints import Endpoint, NoWayOn, Pool, Refusal, endpoint_name, refusal_of
from registry.heads import Sight, agreed_sight
from registry.index import Head, Index
from registry.limits import HEADS_APART_TOLD, READ_TRIES_MAX, SYNC_FAILURES_MAX, SYNC_ROUNDS_MAX
from registry.reading import (
    Behind,
    Forked,
    Suspicious,
    check_registries,
    read_count,
    read_hashes,
    read_implementation,
    read_recent,
    read_window,
)

__all__ = ["Progress", "SyncReport", "sync_chain"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a sync is: blocks read of those that were missing at its start, and events found so far."""

    blocks_done: int
    blocks_total: int
    events: int


@dataclass(slots=True)
class SyncReport:
    """What a sync did. `rolled_back_to` is the common ancestor of the last re-org; `warnings` are for a person."""

    chain_id: int
    head_block: int = 0
    agent_count: int = 0
    events: int = 0
    requests: int = 0
    rolled_back_to: int | None = None
    warnings: list[str] = field(default_factory=list)


T = TypeVar("T")
OnProgress = Callable[[Progress], None]


async def sync_chain(
    index: Index,
    chain: RegistryChain,
    rpc_urls: Sequence[str],
    *,
    on_progress: OnProgress = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> SyncReport:
    """Read everything new of `chain` into the index, from the first of `rpc_urls` that serves well.

    May be killed at any moment and called again. Raises `UsageError` for a chain without registries,
    `RequestInProgress` while another process syncs it, `ChainUnavailable` when no endpoint gets us further; what was
    read until then is kept.
    """
    index.adopt(chain)
    rpcs = {endpoint_name(url): Rpc([url]) for url in dict.fromkeys(rpc_urls)}
    try:
        with index.syncing(chain.chain_id):
            sync = _Sync(index, chain, on_progress, pause)
            await sync.meet(rpcs, clock)
            return await sync.run()
    finally:
        for rpc in rpcs.values():
            await rpc.close()


class _Moved(Exception):
    """The chain is no longer the one whose head we read."""


class _Sync:
    def __init__(
        self, index: Index, chain: RegistryChain, on_progress: OnProgress, pause: Callable[[float], Awaitable[None]]
    ) -> None:
        self._index = index
        self._chain = chain
        self._on_progress = on_progress
        self._pause = pause
        self._pool = Pool([], time.monotonic)
        self._failures = 0
        self.report = SyncReport(chain.chain_id)

    async def meet(self, rpcs: dict[str, Rpc], clock: Callable[[], float]) -> None:
        """Keep the endpoints that answer for this chain, with what we know of them."""
        serving, silent = [], []
        for name, rpc in rpcs.items():
            try:
                if await check_registries(rpc, self._chain):
                    known = self._index.learned(self._chain.chain_id, name)
                    endpoint = Endpoint(name, rpc)
                    if known is not None:
                        endpoint = Endpoint(name, rpc, known.window_blocks, known.window_max, known.lies)
                    serving.append(endpoint)
                else:
                    self.report.warnings.append(f"{name}: serves another chain; it is not used")
            except ChainUnavailable as error:
                silent.append(error.message)
                self.report.warnings.append(f"{name}: {error.message}")
        if not serving:
            raise ChainUnavailable("; ".join(self.report.warnings) or "rpc: no endpoint is named")
        self._pool = Pool(serving, clock)

    async def run(self) -> SyncReport:
        """Go round until the index is what the chain says."""
        for _ in range(SYNC_ROUNDS_MAX):
            sight = await self._look()
            head, recent, teller = sight.head, sight.recent, sight.endpoint
            if head.number < (known := self._finished_head()):
                self.report.warnings.append(f"the endpoints are {known - head.number} blocks behind the index")
                return self._reported()
            # A sync that did not finish may have been told of blocks that there are not.
            self._index.roll_back(self._chain.chain_id, head.number)
            try:
                await self._fill(head, recent)
                hashes = await self._patiently(teller, partial(read_hashes, teller.rpc, [head.number]))
                if hashes.get(head.number) != head.hash:
                    continue
                counted = await self._count(head)
                if await self._find_liars(head, counted, teller):
                    continue
                await self._finish(head, recent, teller, counted)
                return self._reported()
            except _Moved:
                continue
            except NoWayOn:
                raise
            except ChainUnavailable:
                self._failed()
                self._pool.rest(teller)
        raise ChainUnavailable(
            f"the chain and its logs did not come together in {SYNC_ROUNDS_MAX} rounds",
            remedy="name another endpoint with --rpc",
        )

    # Look

    async def _look(self) -> Sight:
        """Return the highest block that most endpoints have, as one of them shows it, after following a re-org."""
        sights = await self._sights()
        tries = 1
        while (agreed := await agreed_sight(sights)) is None:
            if tries == READ_TRIES_MAX:
                raise NoWayOn(
                    f"the endpoints do not agree about the latest blocks ({_names(sights)})",
                    remedy="name one more with --rpc, or leave out the one that is wrong",
                )
            tries += 1
            for sight in sights:
                self._pool.rest(sight.endpoint)
            await self._wait()
            sights = await self._sights()
        apart = max(sight.head.number for sight in sights) - agreed.head.number
        if apart > HEADS_APART_TOLD:
            self.report.warnings.append(
                f"the endpoints are {apart} blocks apart; the index goes as far as most of them"
            )
        await self._follow(agreed)
        return agreed

    async def _sights(self) -> list[Sight]:
        """Return what each endpoint that answers shows of the latest blocks; at least one does."""
        while True:
            sights = []
            for endpoint in list(self._pool.endpoints):
                try:
                    head, recent = await self._patiently(endpoint, partial(read_recent, endpoint.rpc))
                    sights.append(Sight(head, recent, endpoint))
                except NoWayOn:
                    raise
                except (ChainUnavailable, RpcRefused, Behind, Forked):
                    self._failed()
                    self._pool.rest(endpoint)
            if sights:
                return sights
            await self._wait()

    async def _follow(self, sight: Sight) -> None:
        """Go back to the newest block that the index and the chain have in common."""
        head, recent, teller = sight.head, sight.recent, sight.endpoint
        known = [(number, hash_) for number, hash_ in self._index.checkpoints(self._chain.chain_id)]
        below = [(number, hash_) for number, hash_ in known if number <= head.number]
        for start in range(0, len(below), 100):
            some = below[start : start + 100]
            asked = [number for number, _ in some if number not in recent]
            hashes = recent | (await read_hashes(teller.rpc, asked) if asked else {})
            for number, hash_ in some:
                if hashes.get(number) == hash_:
                    if (start, number) != (0, below[0][0]):
                        self._roll_back(number)
                    return
        if below:
            self._roll_back(self._chain.first_block - 1)

    def _roll_back(self, ancestor: int) -> None:
        self._index.roll_back(self._chain.chain_id, ancestor)
        self.report.rolled_back_to = ancestor

    def _known_head(self) -> int:
        known = self._index.checkpoints(self._chain.chain_id)
        return known[0][0] if known else -1

    def _finished_head(self) -> int:
        row = self._index.chain(self._chain.chain_id)
        return -1 if row is None or row["head_block"] is None else int(row["head_block"])

    # Fill

    async def _fill(self, head: Head, recent: dict[int, bytes]) -> None:
        """Read every missing block up to `head`. Raises `_Moved`, or `ChainUnavailable` after too many failures."""
        # Kept before the first window: a sync that dies here must notice a re-org when it goes on.
        self._index.remember(self._chain.chain_id, sorted(recent.items()))
        forks = 0
        total = self._missing(head)
        while gaps := self._index.gaps(self._chain.chain_id, self._chain.first_block, head.number):
            endpoint = await self._next_endpoint()
            low, last = gaps[0]
            first = max(low, last - endpoint.window_blocks + 1)
            try:
                window = await read_window(
                    endpoint.rpc, self._chain, first, last, endpoint=endpoint.name, recent=recent
                )
            except Forked:
                forks += 1
                self._pool.rest(endpoint)
                if forks > len(self._pool.endpoints):
                    raise _Moved from None
                continue
            except (Behind, Suspicious, RpcRefused, ChainUnavailable) as error:
                await self._refused(endpoint, last - first + 1, error)
                continue
            self._index.store(self._chain.chain_id, window)
            self._failures = 0
            endpoint.grow()
            self._learned(endpoint)
            self.report.events += len(window.identity_events) + len(window.feedback_events)
            self._on_progress(Progress(total - self._missing(head), total, self.report.events))

    def _missing(self, head: Head) -> int:
        gaps = self._index.gaps(self._chain.chain_id, self._chain.first_block, head.number)
        return sum(last - first + 1 for first, last in gaps)

    async def _next_endpoint(self) -> Endpoint:
        await self._wait()
        self.report.requests += 1
        return self._pool.pick()[0]

    async def _wait(self) -> None:
        _, rest_s = self._pool.pick()
        if rest_s > 0:
            await self._pause(rest_s)

    async def _refused(self, endpoint: Endpoint, asked: int, error: Exception) -> None:
        """Ask for less, or leave the endpoint alone, by what it said."""
        self._failed()
        refusal, hint = Refusal.UNKNOWN, None
        if isinstance(error, RpcRefused):
            refusal, hint = refusal_of(error)
        elif isinstance(error, Behind):
            refusal = Refusal.BEHIND
        elif isinstance(error, Suspicious):
            refusal = Refusal.SIZE
        elif not await _is_up(endpoint):
            refusal = Refusal.RATE
        if refusal in (Refusal.RATE, Refusal.BEHIND) or asked == 1:
            self._pool.rest(endpoint)
        else:
            endpoint.shrink(asked, refusal, hint)
            self._learned(endpoint)

    async def _patiently(self, endpoint: Endpoint, read: Callable[[], Awaitable[T]]) -> T:
        """Return what `read` returns, giving a busy endpoint some time. Raises what `read` does."""
        for _ in range(READ_TRIES_MAX - 1):
            try:
                return await read()
            except ChainUnavailable:
                self._failed()
                self._pool.rest(endpoint)
                await self._pause(endpoint.rest_s)
        return await read()

    def _failed(self) -> None:
        self._failures += 1
        if self._failures > SYNC_FAILURES_MAX:
            raise ChainUnavailable(
                f"no RPC endpoint got us further in {SYNC_FAILURES_MAX} requests; run it again later"
            )

    def _learned(self, endpoint: Endpoint) -> None:
        self._index.learn(self._chain.chain_id, endpoint.name, endpoint.window_blocks, endpoint.window_max)

    # Confirm

    async def _count(self, head: Head) -> int:
        """Return the number of agents at `head`, as most endpoints that have the block tell it."""
        counts = []
        for endpoint in self._pool.endpoints[:3]:
            try:
                read = partial(read_count, endpoint.rpc, self._chain, head.number)
                counts.append(await self._patiently(endpoint, read))
            except NoWayOn:
                raise
            except (ChainUnavailable, RpcRefused):
                continue
        if not counts:
            raise ChainUnavailable("no endpoint tells the number of agents")
        return max(counts, key=lambda count: (counts.count(count), count))

    async def _find_liars(self, head: Head, agent_count: int, teller: Endpoint) -> bool:
        """Forget what liars told, and tell whether there was one."""
        places = holes(
            self._index,
            self._chain.chain_id,
            agent_count=agent_count,
            first_block=self._chain.first_block,
            head_block=head.number,
        )
        if not places:
            patiently = partial(self._patiently, teller)
            places = await contradictions(self._index, teller.rpc, self._chain, head, patiently)
        liars = self._index.tellers(self._chain.chain_id, places) if places else []
        for name in liars:
            self._index.forget(self._chain.chain_id, name)
            used = [each for each in self._pool.endpoints if each.name == name]
            for endpoint in used:
                self._distrust(endpoint)
            if not used:
                self.report.warnings.append(f"{name}: had left out logs; everything it told was read again")
        return bool(liars)

    def _distrust(self, endpoint: Endpoint) -> None:
        """Ask the others; the only endpoint is asked again for a fraction, where lies have no room."""
        if len(self._pool.endpoints) > 1:
            self._pool.drop(endpoint)
            self.report.warnings.append(f"{endpoint.name}: left out logs; everything it told was read again elsewhere")
            return
        if endpoint.window_blocks == 1 and endpoint.window_max == 1:
            raise NoWayOn(
                f"{endpoint.name} leaves out logs that the chain has", remedy="name another endpoint with --rpc"
            )
        endpoint.window_max = endpoint.window_blocks = max(1, min(endpoint.window_blocks, self._widest()) // 8)
        self._learned(endpoint)
        self.report.warnings.append(
            f"{endpoint.name}: left out logs; it is read again {endpoint.window_blocks} blocks at a time"
        )

    def _widest(self) -> int:
        """Return how many blocks there are at all: a window wider than the chain is no wider than it."""
        return max(1, self._known_head() + 1 - self._chain.first_block)

    # Finish

    async def _finish(self, head: Head, recent: dict[int, bytes], teller: Endpoint, agent_count: int) -> None:
        chain_id = self._chain.chain_id
        read = partial(read_implementation, teller.rpc, self._chain, head.number)
        implementation = await self._patiently(teller, read)
        before = self._index.chain(chain_id)
        if before is not None and before["implementation"] not in (None, implementation):
            self.report.warnings.append("the identity registry was upgraded since the last sync; its rules may differ")
        self._index.remember(chain_id, sorted(recent.items()))
        self._index.finish(
            chain_id, head, agent_count=agent_count, implementation=implementation, now_s=int(time.time())
        )

    def _reported(self) -> SyncReport:
        row = self._index.chain(self._chain.chain_id)
        if row is not None and row["head_block"] is not None:
            self.report.head_block, self.report.agent_count = row["head_block"], row["agent_count"]
        return self.report


def _names(sights: Sequence[Sight]) -> str:
    return ", ".join(sight.endpoint.name for sight in sights)


async def _is_up(endpoint: Endpoint) -> bool:
    """Tell whether an endpoint that failed to give logs answers at all: if so, they were too many."""
    try:
        await endpoint.rpc.call("eth_blockNumber")
    except (ChainUnavailable, RpcRefused):
        return False
    return True
