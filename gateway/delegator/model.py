"""The model name `delegate/<planner-model>`: any OpenAI client hands a task over and gets the answer, events before it.

What is asked for: the `messages` are the task. `x-farebox-budget` or `metadata.budget` (whole tokens) and
`x-farebox-deadline-ms` or `metadata.deadline_s` say what it may take. With `metadata.soonest` "true", the budget is
spent to be done as soon as can be, not only by the deadline; with `metadata.gate` "false", a planner's plan is carried
out even where one call would be as quick. A `plan` in the body stands for the planner's.

What comes back: a chat completion. Streamed, what happens comes first, as `reasoning_content` for people and as the
member `farebox` of the same chunk for programs; `content` is the answer and nothing else. Repeating a request with the
same `x-farebox-request-id` goes on with the run it began, or gives its answer again.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec

from buyer.budgets import parse_units, shown_units
from contracts.errors import NameUnknown, RequestChanged
from gateway.client import Client
from gateway.delegator.calls import NodeFailed, NodeUnknown
from gateway.delegator.delegation import Delegation, Delegator
from gateway.delegator.journal import Run
from gateway.delegator.limits import DEADLINE_S_MAX, HEARTBEAT_S, RUNS_MAX
from gateway.delegator.order import Order, order_of, planned_of
from gateway.delegator.plan import parse_plan
from gateway.delegator.planning import open_units, spent_units
from gateway.delegator.run import NodeEvent, results_of
from gateway.envelope import Headers, Problem, Refused, error_event
from gateway.limits import BUSY_RETRY_AFTER_S
from gateway.requests import Call
from gateway.shares import Shares

__all__ = ["DELEGATE_PREFIX", "DelegateModel"]

DELEGATE_PREFIX = "delegate/"
PATH = "/v1/chat/completions"
_NO_STORE = (b"cache-control", b"no-store")
_STREAM: Headers = [(b"content-type", b"text/event-stream"), _NO_STORE]
_DOCUMENT: Headers = [(b"content-type", b"application/json"), _NO_STORE]


class DelegateModel:
    """Serves the model for one gateway."""

    def __init__(self, delegator: Delegator) -> None:
        self._delegator = delegator
        self._running = 0
        self._shares = Shares(delegator.settings.runs_per_key, "delegated tasks")

    @staticmethod
    def is_meant_by(call: Call) -> bool:
        """Tell whether a call names this model; `paid/delegate/…` is some seller's."""
        return not call.model.paid and call.path == PATH and call.model.name.startswith(DELEGATE_PREFIX)

    @property
    def ids(self) -> list[str]:
        """The names to show in the list of models."""
        planner = self._delegator.settings.planner
        return [] if planner is None else [DELEGATE_PREFIX + planner]

    async def serve(self, call: Call, client: Client) -> None:
        """Answer a call. Raises `Refused` or `FareboxError` while nothing was sent to the client yet."""
        if self._running >= RUNS_MAX:
            raise Refused(Problem(503, "busy", f"{RUNS_MAX} tasks are being delegated", BUSY_RETRY_AFTER_S))
        order = _order(call, self._delegator)
        holder = None if call.client_key is None else call.client_key.name
        if holder is not None:
            self._shares.take(holder)
        self._running += 1
        try:
            await self._serve(call, client, order)
        finally:
            self._running -= 1
            if holder is not None:
                self._shares.give_back(holder)

    async def _serve(self, call: Call, client: Client, order: Order) -> None:
        run_id = None if not call.has_id else "r" + call.key.removeprefix("id:")[:16]
        if run_id is not None and (known := self._known(run_id, order)) is not None:
            await self._go_on(call, client, known)
        else:
            await self._carry_out(call, client, self._delegator.begin(order, call.client_key, run_id))

    def _known(self, run_id: str, order: Order) -> Run | None:
        """Return the run that a request began before. Raises `RequestChanged` for another request of the same id."""
        try:
            run = self._delegator.journal.find(run_id)
        except NameUnknown:
            return None
        before = order_of(run)
        if any(getattr(before, name) != getattr(order, name) for name in ("task", "budget_units", "planner", "plan")):
            raise RequestChanged("x-farebox-request-id: this id was used for another task")
        return run

    async def _go_on(self, call: Call, client: Client, run: Run) -> None:
        if run.state in ("running", "failed"):
            await self._carry_out(call, client, self._delegator.resume(run.id, call.client_key))
            return
        plan, results = planned_of(run).plan, results_of(run)
        missing = [node.id for node in plan.nodes if node.id not in results]
        text = results.get(plan.output)
        spent, still_open = spent_units(run), open_units(run)
        last = NodeEvent("finished", 0.0, spent_units=spent, text=text, missing=missing, open_units=still_open)
        await _Teller(call, client, run.id).end(last, run)

    async def _carry_out(self, call: Call, client: Client, delegation: Delegation) -> None:
        """Carry a run out for as long as its client is there: nothing is bought for nobody."""
        teller = _Teller(call, client, delegation.id)
        telling, beating = asyncio.create_task(self._tell(teller, delegation)), asyncio.create_task(teller.beat())
        client.when_gone(lambda: _stop(telling))
        client.watch()
        try:
            await telling
        except asyncio.CancelledError:
            if not client.gone:
                raise
        finally:
            beating.cancel()

    async def _tell(self, teller: _Teller, delegation: Delegation) -> None:
        async with contextlib.aclosing(delegation.events()) as events:
            async for event in events:
                if event.happening == "finished":
                    await teller.end(event, self._delegator.journal.find(delegation.id))
                else:
                    await teller.tell(event, delegation)


def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()


class _Teller:
    """Writes one answer, whole or streamed. Until the plan stands nothing is sent, so that errors have their status."""

    def __init__(self, call: Call, client: Client, run_id: str) -> None:
        self._client, self._run_id = client, run_id
        self._streams = call.fields.get("stream") == msgspec.Raw(b"true")
        self._model = msgspec.json.decode(call.fields["model"], type=str)
        self._told: list[dict[str, Any]] = []

    async def tell(self, event: NodeEvent, delegation: Delegation) -> None:
        """Say what happened."""
        document = _event_document(event, delegation)
        if not self._streams:
            self._told.append(document)
            return
        if event.happening == "planned" and not self._client.started:
            await self._client.start(200, _STREAM)
            await self._chunk({"role": "assistant", "content": ""})
        if self._client.started:
            await self._chunk({"reasoning_content": _line(event, document)}, document)

    async def beat(self) -> None:
        """Keep a stream alive where nothing happens for long; clients skip comments, and proxies count bytes."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if self._streams and self._client.started and not self._client.delivered:
                await self._client.body(b": at work\n\n")

    async def end(self, last: NodeEvent, run: Run) -> None:
        """Give the answer, or say what is missing."""
        # What goes on after that is for the books, whether or not the client is still there.
        self._client.when_gone(lambda: None)
        spent, still_open = shown_units(last.spent_units or 0), shown_units(last.open_units)
        summary = {"run": self._run_id, "state": run.state, "spent": spent, "open": still_open}
        if last.text is None:
            await self._missing(last, run)
        elif not self._streams:
            await self._client.answer(200, _DOCUMENT, self._document(last.text, {**summary, "events": self._told}))
        else:
            if not self._client.started:
                await self._client.start(200, _STREAM)
            await self._chunk({"content": last.text})
            await self._chunk({}, summary, finish="stop")
            await self._client.end(b"data: [DONE]\n\n")

    async def _missing(self, last: NodeEvent, run: Run) -> None:
        spent = shown_units(last.spent_units or 0)
        if run.state == "running":
            message = f"run {run.id}: an answer that was paid for is not there yet; {spent} spent; repeat the request with the same x-farebox-request-id, or run `farebox delegate resume {run.id}`"  # noqa: E501 - one sentence
            problem = Problem(503, NodeUnknown.code, message, retry_after_s=5)
        else:
            missing = ", ".join(last.missing) or "the answer"
            problem = Problem(502, NodeFailed.code, f"run {run.id}: no answer, {missing} missing; {spent} spent")
        if not self._client.started:
            await self._client.problem(PATH, problem)
        else:
            await self._client.end(error_event(PATH, problem))

    def _document(self, text: str, summary: dict[str, Any]) -> bytes:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return msgspec.json.encode({**self._head("chat.completion"), "choices": [choice], "farebox": summary})

    async def _chunk(self, delta: dict[str, str], ours: Any = None, *, finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        document = {**self._head("chat.completion.chunk"), "choices": [choice]}
        if ours is not None:
            document["farebox"] = ours
        await self._client.body(b"data: " + msgspec.json.encode(document) + b"\n\n")

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{self._run_id}", "object": kind, "created": 0, "model": self._model}


def _order(call: Call, delegator: Delegator) -> Order:
    """Return what a call orders. Raises `Refused` naming the field, `PlanInvalid`."""
    settings, planner = delegator.settings, call.model.name.removeprefix(DELEGATE_PREFIX)
    if not planner:
        raise _bad(f"model: expected {DELEGATE_PREFIX}<the model that plans>")
    _refuse_what_workers_cannot(call)
    metadata = _field(call, "metadata", dict[str, Any]) or {}
    budget_units = settings.budget_units
    given = call.budget or metadata.get("budget")
    if given is not None:
        budget_units = parse_units(given, "budget") or 0
    if budget_units > settings.max_budget_units:
        raise _bad(f"budget: at most {settings.max_budget} is allowed here")
    deadline_s = call.wishes.deadline_s or _deadline_s(metadata.get("deadline_s")) or settings.deadline_s
    if deadline_s > settings.max_deadline_s:
        raise _bad(f"deadline: at most {settings.max_deadline_s:g} s are allowed here")
    plan = call.fields.get("plan")
    return Order(
        _task(call),
        budget_units,
        deadline_s,
        planner=planner,
        plan=None if plan is None else parse_plan(bytes(plan)),
        is_judged=_flag(metadata, "gate", default=True),
        is_soonest=_flag(metadata, "soonest", default=False),
    )


def _refuse_what_workers_cannot(call: Call) -> None:
    """Refuse, before anything is paid, what the answer of a delegated task would silently leave out."""
    if (_field(call, "n", int | None) or 1) != 1:
        raise _bad("n: a delegated task has one answer")
    for name in ("tools", "functions"):
        if _field(call, name, Any):
            raise _bad(f"{name}: the workers of a delegated task call none; leave it out")
    form = _field(call, "response_format", dict[str, Any] | None)
    if form and form.get("type") != "text":
        raise _bad("response_format: a delegated task is answered in text; say in the task what form it shall have")


def _task(call: Call) -> str:
    """Return the conversation as a task: one message as it is, several each with its role."""
    messages = _field(call, "messages", list[dict[str, Any]]) or []
    said = [(str(each.get("role", "user")), _content(each.get("content"))) for each in messages]
    if not said:
        raise _bad("messages: expected at least one")
    if len(said) == 1:
        return said[0][1]
    return "\n\n".join(f"{role}: {text}" for role, text in said)


def _content(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "\n".join(str(part.get("text", "")) for part in content)
    raise _bad("messages: a task is text; other content cannot be handed to workers")


def _field(call: Call, name: str, shape: Any) -> Any:
    raw = call.fields.get(name)
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _bad(f"{name}: {error}") from None


def _deadline_s(given: object) -> float | None:
    if given is None:
        return None
    try:
        seconds = float(str(given).removesuffix("s"))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= DEADLINE_S_MAX:
        raise _bad(f"metadata.deadline_s: expected seconds, more than zero and at most {DEADLINE_S_MAX:.0f}")
    return seconds


def _flag(metadata: dict[str, Any], name: str, *, default: bool) -> bool:
    """Return a switch; metadata of OpenAI's clients are strings."""
    given = metadata.get(name, default)
    if isinstance(given, bool):
        return given
    if given not in ("true", "false"):
        raise _bad(f'metadata.{name}: expected "true" or "false"')
    return bool(given == "true")


def _event_document(event: NodeEvent, delegation: Delegation) -> dict[str, Any]:
    document: dict[str, Any] = {"event": event.happening, "at_s": round(event.at_s, 3)}
    if event.node_id is not None:
        document["node"] = event.node_id
        document["offer"] = event.offer
        document["seller"] = delegation.sellers.get(event.node_id)
    for name, units in (("paid", event.paid_units), ("spent", event.spent_units)):
        if units is not None:
            document[name] = shown_units(units)
    if event.reason is not None:
        document["reason"] = event.reason
    return document


def _line(event: NodeEvent, document: dict[str, Any]) -> str:
    words = [event.happening, document.get("node"), document.get("seller") or document.get("offer"), event.reason]
    return "  ".join(str(word) for word in words if word) + "\n"


def _bad(message: str) -> Refused:
    return Refused(Problem(400, "invalid_request", message))
