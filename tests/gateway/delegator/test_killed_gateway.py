"""A gateway is killed in the middle of a task; the client repeats its request to the next one."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import yaml
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.demo.ports import free_ports
from gateway.demo.processes import Child, farebox_command
from tests.gateway.delegator.parts import plan_document, town
from tests.patience import PATIENCE_S, eventually
from tests.warm import Warm
from tests.warm_crew import WarmCrew

PRICE = 1_000
PLAN = plan_document("all", a=("add 3", []), b=("add 4", []), all=("multiply 10", ["a", "b"]))
BODY = {
    "model": "delegate/model",
    "messages": [{"role": "user", "content": f"sum it up\n```plan\n{json.dumps(PLAN)}\n```"}],
    "metadata": {"gate": "false"},
}


class Held:
    """The stand-in model, whose `plan` or `part` calls wait for as long as they are held."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.holds = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        kind = "plan" if b"response_format" in message["body"] else "part"
        while self.holds == kind:  # noqa: ASYNC110 - it is let go by another thread
            await asyncio.sleep(0.01)

        async def receive_again() -> Message:
            return message

        await self._app(scope, receive_again, send)


def test_a_task_whose_gateway_was_killed_is_finished_by_the_next_and_nothing_is_paid_twice(
    tmp_path: Path, warm: Warm
) -> None:
    with town(tmp_path, only=("model", PRICE, 1e6)) as built, WarmCrew(tmp_path, {}, warm) as crew:
        port, admin_port = free_ports(2)
        settings = {
            "listen": f"127.0.0.1:{port}",
            "admin_listen": f"127.0.0.1:{admin_port}",
            "home": str(built.home),
            "delegate": {"planner": "model"},
        }
        (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(settings))

        def start() -> Child:
            running = crew.start("serve", farebox_command("serve", "--config", "gateway.yaml"))
            crew.wait_ready(running, f"http://127.0.0.1:{admin_port}/readyz")
            return running

        def ask() -> httpx.Response:
            url, headers = f"http://127.0.0.1:{port}/v1/chat/completions", {"x-farebox-request-id": "mine"}
            return httpx.post(url, json=BODY, headers=headers, timeout=PATIENCE_S)

        model = built.sellers["only"].app = Held(built.sellers["only"].app)
        with ThreadPoolExecutor(1) as thread:
            for model.holds, payments in (("plan", 1), ("part", 3)):
                running = start()
                asked = thread.submit(ask)
                eventually(lambda: built.paid["only"] == payments, f"payment {payments} was shown")  # noqa: B023
                running.kill()
                assert isinstance(asked.exception(PATIENCE_S), httpx.TransportError)
        model.holds = ""
        start()
        answer = ask()
    assert (answer.status_code, answer.json()["choices"][0]["message"]["content"]) == (200, "70")
    assert answer.json()["farebox"]["spent"] == "0.004"
    assert built.paid["only"] == 4, "a plan and three parts, each once"
