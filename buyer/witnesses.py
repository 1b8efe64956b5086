"""Several endpoints of one chain, asked side by side: what gives money back counts only where none of them denies it.

One endpoint may lie, be behind, or be on a fork. One that is away, or answers nonsense, has no say, so that two do not
fail twice as often as one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self, TypeVar

from contracts.errors import ChainUnavailable, TermsNotAllowed
from contracts.evm.rpc import Rpc
from contracts.evm.token import chain_id_of
from contracts.networks import Network

__all__ = ["Witnesses"]

T = TypeVar("T")


class Witnesses:
    """Those of the named endpoints that serve one chain. Whoever fails once is not asked any more."""

    def __init__(self, rpcs: Sequence[Rpc]) -> None:
        self._rpcs = list(rpcs)

    @classmethod
    @asynccontextmanager
    async def open(cls, urls: Sequence[str], network: Network) -> AsyncIterator[Self]:
        """Connect. Raises `ChainUnavailable` when no endpoint answers, `TermsNotAllowed` when none is of the chain."""
        async with AsyncExitStack() as stack:
            # An empty list is an error, too, and `Rpc` says which.
            rpcs = [await stack.enter_async_context(Rpc([url])) for url in dict.fromkeys(urls)] or [Rpc(urls)]
            witnesses = cls(rpcs)
            chain_ids = await witnesses.ask(chain_id_of)
            of_it = [
                rpc for rpc, chain_id in zip(witnesses._rpcs, chain_ids, strict=True) if chain_id == network.chain_id
            ]
            if not of_it:
                raise TermsNotAllowed(
                    f"the RPC endpoint is of chain {chain_ids[0]}, not of {network.caip2}",
                    remedy=f"name an endpoint of {network.label} with --rpc",
                )
            witnesses._rpcs = of_it
            yield witnesses

    async def ask(self, question: Callable[[Rpc], Awaitable[T]]) -> list[T]:
        """Return what each says that answers. Raises `ChainUnavailable`, of the first, when none does."""
        answers = await asyncio.gather(*(question(rpc) for rpc in self._rpcs), return_exceptions=True)
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        for failure in failures:
            if not isinstance(failure, ChainUnavailable) or len(failures) == len(answers):
                raise failure
        self._rpcs = [
            rpc for rpc, answer in zip(self._rpcs, answers, strict=True) if not isinstance(answer, BaseException)
        ]
        return [answer for answer in answers if not isinstance(answer, BaseException)]
