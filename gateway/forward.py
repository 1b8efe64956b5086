"""Drives the payment flow over the wire: the flow decides, this module carries."""

from __future__ import annotations

import contextlib

from buyer.flow import Incoming, Lost, NeverLeft, Outcome, PaymentFlow
from gateway.upstream import Answer, Upstream

__all__ = ["drive"]


async def drive(flow: PaymentFlow, upstream: Upstream) -> tuple[Outcome, Answer | None]:
    """Run a payment flow to its outcome; a served one comes with the answer, its body still to be read.

    Whatever ends this coroutine early, cancellation included, is told to the flow as `Lost`, so that no authorization
    stays on the books as being on its way.
    """
    answer: Answer | None = None
    try:
        request = next(flow)
        while True:
            try:
                answer = await upstream.open(request)
                incoming = await _incoming(answer)
            except (NeverLeft, Lost) as failure:
                request = flow.throw(failure)
            else:
                request = flow.send(incoming)
            _close(answer)
            answer = None
    except StopIteration as ended:
        outcome: Outcome = ended.value
        if outcome.kind in ("served", "free"):
            return outcome, answer
        _close(answer)
        return outcome, None
    except BaseException:
        _close(answer)
        _give_up(flow)
        raise


async def _incoming(answer: Answer) -> Incoming:
    body = b"" if 200 <= answer.status < 300 else await answer.read_error()
    return Incoming(answer.status, answer.headers, body)


def _close(answer: Answer | None) -> None:
    if answer is not None:
        answer.close()


def _give_up(flow: PaymentFlow) -> None:
    with contextlib.suppress(StopIteration, Lost):
        flow.throw(Lost("the gateway was stopped before the answer came"))
    flow.close()
