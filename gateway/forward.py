"""Drives the payment flow over the wire: the flow decides, this module carries."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from buyer.flow import Incoming, Lost, NeverLeft, Outcome, Outgoing, PaymentFlow, advance
from gateway.upstream import Answer, Upstream

__all__ = ["drive"]


async def drive(
    flow: PaymentFlow, upstream: Upstream, *, blocking: Callable[[], bool] = lambda: False
) -> tuple[Outcome, Answer | None]:
    """Run a payment flow to its outcome; a served one comes with the answer, its body still to be read.

    `blocking` says whether a step would wait for the store now: then it runs in a thread. Whatever ends this
    coroutine early, cancellation included, is told to the flow as `Lost`, so that no authorization stays on the books
    as being on its way.
    """
    answer: Answer | None = None
    try:
        step = await _advance(flow, None, blocking)
        while isinstance(step, Outgoing):
            _close(answer)
            answer = None
            happened: Incoming | NeverLeft | Lost
            try:
                answer = await upstream.open(step)
                happened = await _incoming(answer)
            except (NeverLeft, Lost) as failure:
                happened = failure
            step = await _advance(flow, happened, blocking)
    except BaseException:
        _close(answer)
        await _give_up(flow, blocking)
        raise
    if step.kind in ("served", "free"):
        return step, answer
    _close(answer)
    return step, None


async def _advance(
    flow: PaymentFlow, happened: Incoming | NeverLeft | Lost | None, blocking: Callable[[], bool]
) -> Outgoing | Outcome:
    if not blocking():
        return advance(flow, happened)
    step = asyncio.ensure_future(asyncio.to_thread(advance, flow, happened))
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        # A running generator cannot be told anything; the store's own time-outs bound this wait.
        await asyncio.wait([step])
        raise


async def _incoming(answer: Answer) -> Incoming:
    body = b"" if 200 <= answer.status < 300 else await answer.read_error()
    return Incoming(answer.status, answer.headers, body)


def _close(answer: Answer | None) -> None:
    if answer is not None:
        answer.close()


async def _give_up(flow: PaymentFlow, blocking: Callable[[], bool]) -> None:
    with contextlib.suppress(Lost):
        await _advance(flow, Lost("the gateway was stopped before the answer came"), blocking)
    flow.close()
