"""A stand-in for models that do delegated work: what they answer can be checked, and how fast they are is given.

The goals it understands, at the end of which ` at difficulty 0.8` may stand; a model of less quality than that answers
wrongly:

    add 7            7 and all numbers among the inputs
    multiply 7       the sum of the inputs, times 7, below 1,000,003
    say TEXT         TEXT; without one an empty answer, which nobody can use
    join             the inputs, one a line

Asked for a document of a JSON schema, it plays the planner: it answers with what the task has between ```plan and ```,
once its plan was refused with what stands after ```repaired, and for the rest of a plan that failed with what stands
after ```rest. Anything else is answered as the model server does.

An answer takes `work / pace` seconds, where 500 tokens to write or 5,000 to read are one unit of work, and waits until
one of the `slots` is free. `POST /test/pace/0.5` makes it slower or faster while it runs.

Run it alone: `python -m gateway.demo.worker_server --port 0 --model small=0.6 --pace 2 --slots 4`.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import socket
import sys
from collections.abc import Mapping
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.demo.dialects import answer_text, models_document
from gateway.wishes import work_of_tokens

__all__ = ["answer_to", "sum_of", "worker_app"]

MODULUS = 1_000_003
_INPUT = re.compile(r"<<([0-9a-f]{16})>>\n(.*?)\n<<\1>>", re.DOTALL)
_GOAL = re.compile(r"^Task: (add|multiply|say|join)(?: (.*?))?(?: at difficulty ([0-9.]+))?$", re.MULTILINE)
_PLAN = re.compile(r"```(plan|repaired|rest)\n(.*?)\n```", re.DOTALL)
_NUMBER = re.compile(r"\d{1,12}")
_REFUSED = "Your first plan was refused"
_FAILED = "A first plan could not be carried out"
_BYTES_PER_TOKEN = 4


def sum_of(operation: str, operand: int, inputs: list[int]) -> int:
    """Return what `add` or `multiply` comes to."""
    return (sum(inputs) + operand if operation == "add" else sum(inputs) * operand) % MODULUS


def worker_app(models: Mapping[str, float], *, pace: float = 1e6, slots: int = 64) -> Starlette:
    """Return the stand-in: `models` and their quality, `pace` in work per second, and answers at a time."""
    free, state = asyncio.Semaphore(slots), {"pace": pace}

    async def chat(request: Request) -> Response:
        body = msgspec.json.decode(await request.body())
        quality = models.get(body.get("model"))
        if quality is None:
            return JSONResponse({"error": {"message": "model: not here", "code": "model_not_found"}}, 404)
        prompt = str(body["messages"][-1]["content"])
        plans = "response_format" in body
        text = _plan(prompt) if plans else answer_to(prompt, quality)
        # A plan is as long as it is; the other answers are a number, and stand for as many tokens as they may have.
        tokens = len(text) / _BYTES_PER_TOKEN if plans else body.get("max_tokens", 400)
        async with free:
            await asyncio.sleep(work_of_tokens(tokens, len(prompt) / _BYTES_PER_TOKEN) / state["pace"])
        return JSONResponse(_document(str(body["model"]), prompt, text))

    async def set_pace(request: Request) -> Response:
        state["pace"] = float(request.path_params["pace"])
        return Response(status_code=204)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", lambda _: JSONResponse(models_document(list(models)))),
            Route("/healthz", lambda _: JSONResponse({"ok": True})),
            Route("/test/pace/{pace:float}", set_pace, methods=["POST"]),
        ]
    )


def answer_to(prompt: str, quality: float) -> str:
    """Return what a model of this quality answers."""
    found = _GOAL.search(prompt)
    if found is None:
        return answer_text(prompt)
    operation, operand, difficulty = found[1], found[2] or "", float(found[3] or 0)
    inputs = [text for _, text in _INPUT.findall(prompt)]
    if operation == "say":
        return operand
    if operation == "join":
        return "\n".join(inputs) or "nothing"
    numbers = [int(number) for text in inputs for number in _NUMBER.findall(text)]
    wrong_by = 1 if difficulty > quality else 0
    return str(sum_of(operation, int(operand) + wrong_by, numbers))


def _plan(prompt: str) -> str:
    plans: dict[str, str] = dict(reversed(_PLAN.findall(prompt)))
    if _FAILED in prompt and "rest" in plans:
        return plans["rest"]
    if _REFUSED in prompt and "repaired" in plans:
        return plans["repaired"]
    return plans.get("plan", "I would rather not.")


def _document(model: str, prompt: str, text: str) -> dict[str, Any]:
    usage = {"prompt_tokens": len(prompt) // _BYTES_PER_TOKEN, "completion_tokens": len(text.split())}
    usage["total_tokens"] = sum(usage.values())
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "chatcmpl-0", "object": "chat.completion", "model": model, "choices": [choice], "usage": usage}


def main() -> None:
    """Serve it on loopback and say where on stdout; `--port 0` takes a free port."""
    parser = argparse.ArgumentParser(prog="python -m gateway.demo.worker_server", description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=9000, help="0 takes a free port (default: 9000)")
    parser.add_argument("--model", action="append", required=True, metavar="NAME=QUALITY", help="may be repeated")
    parser.add_argument("--pace", type=float, default=1.0, help="work per second (default: 1)")
    parser.add_argument("--slots", type=int, default=4, help="answers at a time (default: 4)")
    options = parser.parse_args()
    models = {name: float(quality or 1) for name, _, quality in (each.partition("=") for each in options.model)}
    listener = socket.create_server(("127.0.0.1", options.port))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sys.stdout.write(f"listening on http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    app = worker_app(models, pace=options.pace, slots=options.slots)
    config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
