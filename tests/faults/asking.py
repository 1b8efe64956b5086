"""A client of the gateway that never gives up: it repeats its request until the answer will not change."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import httpx

from tests.faults.town import MODEL, Town
from tests.patience import PATIENCE_S

__all__ = ["Answer", "ask_until_final", "body_of", "repeat_until_final"]

REPEAT_PAUSE_S = 0.05
# What another try cannot change: the client's own mistake, or a request that is over.
_FINAL = (400, 402, 409)


@dataclass(frozen=True, slots=True)
class Answer:
    """The last answer to a request; status 0 when none ever came.

    `code` is that of an error, or "answer_incomplete" for a stream whose seller says that it has no more of it.
    """

    status: int
    code: str
    text: str
    repeats: int


def body_of(prompt: str, knobs: dict[str, str] | None = None, *, stream: bool = False) -> dict[str, Any]:
    """Return a chat call; `knobs` are the stand-in model server's."""
    return {
        "model": f"paid/{MODEL}",
        "messages": [{"role": "user", "content": prompt}],
        "stream": stream,
        "metadata": knobs or {},
    }


async def ask_until_final(
    here: Town, client: httpx.AsyncClient, request_id: str, body: dict[str, Any], *, final: tuple[int, ...] = ()
) -> Answer:
    """Ask, and repeat the same request through every failure, until there is a whole answer or a final refusal.

    Without a `request_id`, the gateway has to know a repetition by its content. Statuses in `final` are taken as they
    come, too.
    """
    status, code, text = 0, "", ""
    headers = {"x-farebox-request-id": request_id} if request_id else {}
    deadline, repeat = time.monotonic() + PATIENCE_S, -1
    while time.monotonic() < deadline:
        repeat += 1
        if repeat:
            await asyncio.sleep(REPEAT_PAUSE_S)
        try:
            answer = await client.post(f"{here.gateway_url}/v1/chat/completions", json=body, headers=headers)
        except httpx.HTTPError:
            continue
        status, code, text = answer.status_code, _code_of(answer.text), answer.text
        if status == 200 and _is_whole(text, stream=body["stream"]):
            return Answer(200, "", text, repeat)
        if status == 200 and "answer_incomplete" in text:
            return Answer(200, "answer_incomplete", text, repeat)
        if status in final or (status in _FINAL and code != "request_in_progress"):
            return Answer(status, code, text, repeat)
    return Answer(status, code, text, repeat)


def repeat_until_final(here: Town, request_id: str, body: dict[str, Any], *, final: tuple[int, ...] = ()) -> Answer:
    """`ask_until_final` for a thread."""

    async def ask() -> Answer:
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            return await ask_until_final(here, client, request_id, body, final=final)

    return asyncio.run(ask())


def _is_whole(text: str, *, stream: bool) -> bool:
    return "data: [DONE]" in text if stream else "choices" in text


def _code_of(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["code"])
    except (ValueError, LookupError, TypeError):
        return ""
