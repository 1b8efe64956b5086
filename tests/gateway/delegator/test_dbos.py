"""The same behaviour of runs as workflows of DBOS, and a run that another process takes up."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psycopg
import pytest
import pytest_asyncio

from contracts.errors import ConfigInvalid
from gateway.delegator.calls import CallNode
from gateway.delegator.dbos_engine import DbosEngine
from gateway.delegator.events import NodeEvent
from gateway.delegator.job import Job
from gateway.delegator.journal import Journal, Run
from gateway.delegator.replan import Replan
from gateway.delegator.run import Limits, Planned
from tests.gateway.delegator.behaviours import Behaviours
from tests.gateway.delegator.engines import FORK, Engine, Seller, planned
from tests.gateway.delegator.parts import events_of, order, plan_of, town
from tests.stores.servers import own_server

T = TypeVar("T")
REPO = Path(__file__).parents[3]
DEADLINE_S = 240

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with own_server() as server:
        yield server.new_database()


@pytest.fixture(scope="module")
def journal(url: str) -> Iterator[Journal]:
    journal = Journal.open(url)
    yield journal
    journal.close()


@pytest.fixture(scope="module")
def taken_up() -> list[Seller]:
    """The sellers of runs that were begun elsewhere, one a run."""
    return []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dbos(url: str, journal: Journal, taken_up: list[Seller]) -> AsyncIterator[DbosEngine]:
    async def take_up(run: Run) -> Job:
        taken_up.append(seller := Seller())
        return Job(planned(FORK), seller, Limits(run.budget_units))

    engine = DbosEngine.launch(url, journal, take_up)
    yield engine
    engine.close()


@pytest.fixture
def engine(journal: Journal, dbos: DbosEngine) -> Engine:
    def carry(
        planned: Planned, call_node: CallNode, journal: Journal, run: Run, limits: Limits, replan: Replan | None
    ) -> AsyncIterator[NodeEvent]:
        return dbos.run(planned, call_node, journal, run, limits, replan=replan)

    return Engine(journal, carry)


async def test_a_delegation_whose_settings_say_dbos_is_a_workflow(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool stays where it is; only the journal must be where other machines see it."""
    monkeypatch.setattr("gateway.delegator.delegation.journal_url", lambda _: url)
    with town(tmp_path, chat=("model", 1_000, 1e6)) as built:
        built.settings["delegate"] = {"engine": "dbos"}
        async with built.delegating() as delegator:
            delegation = delegator.begin(order(plan_of("sum", a=("add 3", []), sum=("add 4", ["a"]))))
            events = await events_of(delegation)
            run = delegator.journal.find(delegation.id)
    assert (events[-1].text, run.state, built.paid["chat"]) == ("7", "done", 2)
    with psycopg.connect(url) as connection:
        steps = connection.execute("SELECT function_name FROM farebox_dbos.operation_outputs").fetchall()
    assert {attempt.key for attempt in run.attempts} <= {name for (name,) in steps}, "a step is named by its key"


class TestDbosOnPostgres(Behaviours):
    """The engine for many machines."""


CHILD = """
import asyncio, sys
from gateway.delegator.dbos_engine import DbosEngine
from gateway.delegator.journal import Journal
from tests.gateway.delegator.engines import FORK, Engine, Seller

async def main():
    journal = Journal.open(sys.argv[1])
    dbos = DbosEngine.launch(sys.argv[1], journal, take_up=None)
    seller = Seller()
    seller.waits_for["b"] = asyncio.Event()  # for ever
    engine = Engine(journal, lambda *given: follow(dbos.run(*given[:5])), run_id=sys.argv[2])
    await engine.carry_out(FORK, seller)

async def follow(events):
    async for event in events:
        yield event
        if event.happening == "done":
            print(event.node_id, flush=True)

asyncio.run(main())
"""


async def came_true(look: Callable[[], Awaitable[T]], is_there: Callable[[T], bool]) -> T:
    """Look again and again, and return what was seen once it is there."""
    async with asyncio.timeout(DEADLINE_S):
        while not is_there(seen := await look()):  # noqa: ASYNC110 - it becomes true in another process
            await asyncio.sleep(0.05)
        return seen


async def test_a_run_whose_process_was_killed_is_finished_by_another(
    url: str, journal: Journal, dbos: DbosEngine, taken_up: list[Seller]
) -> None:
    run_id = "of-a-process-that-dies"
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, url, run_id, cwd=REPO, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        assert await child.stdout.readline() == b"a\n"
        assert run_id not in await dbos.recover(), "it lives"
    finally:
        child.kill()
        await child.communicate()
    # The server notices in its own time that the process is gone.
    await came_true(dbos.recover, lambda found: run_id in found)
    run = await came_true(lambda: asyncio.to_thread(journal.find, run_id), lambda run: run.state != "running")
    assert (run.state, [attempt.number for attempt in run.attempts]) == ("done", [0, 0, 0])
    seller = taken_up[-1]
    asked = {attempt.node_id: attempt.key for attempt in seller.asked}
    assert asked == {each.node_id: each.key for each in run.attempts if each.node_id != "a"}, "a was answered before"


async def test_a_run_whose_process_died_before_it_was_a_workflow_is_finished_too(
    url: str, journal: Journal, dbos: DbosEngine
) -> None:
    dying = Journal.open(url)
    dying.begin(Run("hardly-begun", "t", FORK.model_dump_json(), "", 100, None, 0))
    dying.close()
    await came_true(dbos.recover, lambda found: "hardly-begun" in found)
    assert "hardly-begun" not in await dbos.recover(), "it is in hand"
    run = await came_true(lambda: asyncio.to_thread(journal.find, "hardly-begun"), lambda run: run.state != "running")
    assert (run.state, len(run.attempts)) == ("done", 3)


async def test_dbos_is_started_once_and_only_on_postgres(dbos: DbosEngine, url: str, journal: Journal) -> None:
    async def take_up(_: Run) -> Job:
        raise AssertionError

    with pytest.raises(ConfigInvalid, match="already"):
        DbosEngine.launch(url, journal, take_up)
    with pytest.raises(ConfigInvalid, match="PostgreSQL"):
        DbosEngine.launch("sqlite:///runs.db", journal, take_up)
