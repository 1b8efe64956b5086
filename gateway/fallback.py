"""The user's own server behind every model that is not `paid/…`: streamed through, nothing paid."""

from __future__ import annotations

from buyer.flow import Lost, NeverLeft, Outgoing
from gateway.client import Client
from gateway.envelope import Problem, Refused, error_event
from gateway.requests import Call
from gateway.upstream import Answer, Upstream, passed_on

__all__ = ["fall_back"]


async def fall_back(call: Call, client: Client, upstream: Upstream, base_url: str, key: str | None) -> int:
    """Pass `call`, with the client's own Authorization, to `base_url` and its answer back; return the status.

    Raises `Refused` (502) when the server cannot be reached. Reading stops when the client leaves.
    """
    request = Outgoing("POST", base_url + call.route, call.fallback_headers(key), call.body)
    try:
        answer = await upstream.open(request)
    except (NeverLeft, Lost) as error:
        problem = Problem(502, "fallback_unreachable", f"fallback: {error}; check that the server at `fallback` runs")
        raise Refused(problem) from None
    try:
        if 300 <= answer.status < 400:
            raise Refused(Problem(502, "fallback_redirects", "fallback: redirects are not followed"))
        await _pass_on(call, client, answer)
    finally:
        answer.close()
    return answer.status


async def _pass_on(call: Call, client: Client, answer: Answer) -> None:
    client.watch()
    await client.start(answer.status, passed_on(answer.headers))
    try:
        async for chunk in answer.chunks():
            if client.gone:
                return
            await client.body(chunk)
    except Lost as error:
        if answer.is_event_stream:
            await client.end(error_event(call.path, Problem(502, "fallback_broke_off", f"fallback: {error}")))
        return
    await client.end()
