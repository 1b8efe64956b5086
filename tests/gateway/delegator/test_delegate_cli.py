"""`farebox delegate`: what a person types, sees, and can do about it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from starlette.types import Scope, Send
from typer.testing import CliRunner, Result

from buyer.home import Home
from buyer.pool import Pool
from contracts import console
from gateway.cli import app
from gateway.delegator import buying, commands, live
from tests.gateway.delegator.parts import Town, hedge_at_once, hold, order, plan_document, plan_of, town
from tests.gateway.delegator.test_planner import HOSTILE
from tests.patience import eventually

PRICE = 1_000
GOOD = plan_document("all", a=("add 3", []), b=("add 4", []), all=("multiply 10", ["a", "b"]))

Farebox = Callable[..., Result]


@pytest.fixture
def built(tmp_path: Path) -> Iterator[Town]:
    with town(tmp_path, only=("model", PRICE, 1e6)) as one:
        yield one


@pytest.fixture(scope="module")
def unpaid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """One town for all tests in which nothing may be paid."""
    with town(tmp_path_factory.mktemp("unpaid"), only=("model", PRICE, 1e6)) as one:
        yield one


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Town], Farebox]:
    """Return what types a command at the home of a town."""
    monkeypatch.setattr(console.out, "width", 200)
    monkeypatch.setattr(console.err, "width", 200)

    def at(place: Town) -> Farebox:
        monkeypatch.setenv("FAREBOX_HOME", str(place.home))
        return lambda *arguments: CliRunner().invoke(app, ["delegate", *arguments])

    return at


@pytest.fixture
def farebox(built: Town, typed: Callable[[Town], Farebox]) -> Farebox:
    return typed(built)


@pytest.fixture
def free(unpaid: Town, typed: Callable[[Town], Farebox]) -> Iterator[Farebox]:
    """Return what types a command that must not pay anything."""
    yield typed(unpaid)
    assert unpaid.shown["only"] == 0


@pytest.fixture
def plan(tmp_path: Path) -> str:
    return written(tmp_path, GOOD)


def written(folder: Path, document: dict[str, Any]) -> str:
    file = folder / "plan.json"
    file.write_text(json.dumps(document))
    return str(file)


def test_a_task_is_done_and_its_answer_is_all_there_is_on_stdout(built: Town, farebox: Farebox, plan: str) -> None:
    done = farebox("run", "sum it up", "--budget", "0.05", "--plan", plan)
    assert (done.exit_code, done.stdout) == (0, "70\n")
    assert "done     all" in done.stderr
    assert "model@only at only  0.001" in done.stderr
    assert built.paid["only"] == 3


def test_as_json_a_run_is_one_document_that_list_and_show_know_too(farebox: Farebox, plan: str, tmp_path: Path) -> None:
    done = json.loads(farebox("run", "sum it up", "--budget", "0.05", "--plan", plan, "--json").stdout)
    assert (done["ok"], done["text"], done["spent"], done["state"]) == (True, "70", "0.003", "done")
    (listed,) = json.loads(farebox("list", "--json").stdout)["runs"]
    assert (listed["run"], listed["task"], listed["spent"]) == (done["run"], "sum it up", "0.003")
    picture = tmp_path / "run.svg"
    shown = json.loads(farebox("show", done["run"], "--svg", str(picture), "--json").stdout)
    assert [node["id"] for node in shown["nodes"]][-1] == "all"
    assert {attempt["seller"] for attempt in shown["attempts"]} == {"only"}
    assert {attempt["payment"] for attempt in shown["attempts"]} == {"spent"}
    assert all(attempt["receipt"] for attempt in shown["attempts"])
    drawn = ET.fromstring(picture.read_text())
    assert len(drawn.findall("{http://www.w3.org/2000/svg}rect")) == 1 + 2 * 3
    refused = farebox("show", done["run"], "--svg", str(tmp_path / "nowhere" / "run.svg"))
    assert refused.exit_code == 2
    assert "--svg" in refused.stderr
    table = farebox("show", done["run"]).stdout
    assert "0.003 of 0.05 spent" in table
    assert "0.001" in table


def test_a_dry_run_shows_who_would_do_what_and_pays_nothing(free: Farebox, plan: str) -> None:
    shown = free("run", "--plan", plan, "--budget", "0.05", "--dry-run")
    assert shown.exit_code == 0
    assert "at most 0.003 in all" in shown.stdout
    assert "nothing was paid" in shown.stdout
    assert "a planner is paid" in free("run", "x", "--planner-model", "m", "--budget", "0.05", "--dry-run").stdout


def test_who_has_bought_nothing_yet_is_told_to_buy(tmp_path: Path, typed: Callable[[Town], Farebox]) -> None:
    refused = typed(Town(tmp_path / "home"))("run", "x", "--budget", "0.05")
    assert refused.exit_code == 1
    assert "nothing that was bought can be spent now\nrun `farebox buy" in refused.stderr


@pytest.mark.parametrize("code", HOSTILE)
def test_a_hostile_plan_is_refused_with_its_own_error(free: Farebox, tmp_path: Path, code: str) -> None:
    file = written(tmp_path, HOSTILE[code])
    for arguments in (("run", "x", "--budget", "0.05", "--plan", file), ("plan", file)):
        refused = free(*arguments)
        assert refused.exit_code == 1
        assert refused.stderr.startswith(f"{code}: ")
        assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (("run", "--budget", "0.05"), 2, "TASK"),
        (("run", "", "--budget", "0.05"), 2, "task: expected 1 to 20000 characters"),
        (("run", "  ", "--budget", "0.05"), 2, "task: expected 1 to 20000 characters"),
        (("run", "x", "--budget", "lots"), 2, "--budget: expected a number of tokens"),
        (("run", "x", "--budget", "0"), 2, "budget: expected more than zero"),
        (("run", "x", "--budget", "0.05", "--deadline", "soon"), 2, "--deadline: expected a time"),
        (("run", "x", "--budget", "0.05", "--plan", "/nowhere"), 2, "/nowhere: no such file"),
        (("run", "x", "--budget", "0.05", "--planner-model", "ghost"), 2, "no purchase of 'ghost'"),
        (("run", "x", "--budget", "0.0005"), 4, "0.0005 is missing"),
        (("run", "x", "--budget", "0.05", "--deadline", "0.01s"), 1, "s are left for it"),
        (("show", "ghost"), 2, "no run is called 'ghost'"),
        (("resume", "ghost"), 2, "no run is called 'ghost'"),
        (("plan",), 2, "which plan?"),
    ],
)
def test_a_mistake_is_named_with_its_exit_code_and_costs_nothing(
    free: Farebox, arguments: tuple[str, ...], exit_code: int, said: str
) -> None:
    refused = free(*arguments)
    assert refused.exit_code == exit_code
    assert said in refused.stderr


def test_a_run_without_an_answer_says_what_is_missing_and_resume_gives_it_later(
    built: Town, farebox: Farebox, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buying, "_PAUSES_S", [0.01])

    async def hang_up(scope: Scope, body: bytes, header: str, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        raise ConnectionError

    serve = built.sellers["only"]._serve
    monkeypatch.setattr(built.sellers["only"], "_serve", hang_up)
    cut = farebox("run", "--plan", plan, "--budget", "0.05", "--json")
    document = json.loads(cut.stdout)
    assert cut.exit_code == 6
    assert (document["ok"], document["state"]) == (False, "running")
    assert "all" in document["missing"]
    monkeypatch.setattr(built.sellers["only"], "_serve", serve)
    done = farebox("resume", document["run"])
    assert (done.exit_code, done.stdout) == (0, "70\n")
    with Pool.open(Home.open(built.home)) as pool:
        assert pool.counts("only").spent == built.paid["only"] == 3, (
            "the first payments were shown again, and no others"
        )


def test_the_answer_is_printed_while_a_second_seller_is_still_at_it_whose_price_counts_when_it_is_done(
    tmp_path: Path, typed: Callable[[Town], Farebox], monkeypatch: pytest.MonkeyPatch
) -> None:
    hedge_at_once(monkeypatch)
    with town(tmp_path, slow=("model", PRICE, 1e6), fast=("model", 2 * PRICE, 1e6)) as pair:
        release, farebox = hold(pair.sellers["slow"]), typed(pair)

        def print_and_release(*arguments: Any, **options: Any) -> None:
            console.print_document(*arguments, **options)
            release()

        monkeypatch.setattr(commands, "print_document", print_and_release)
        plan = written(tmp_path, plan_document("a", a=("add 3", [])))
        done = farebox("run", "--plan", plan, "--budget", "0.05")
        assert (done.exit_code, done.stdout) == (0, "3\n")
        assert "0.002 spent, 0.001 more open" in done.stderr
        (listed,) = json.loads(farebox("list", "--json").stdout)["runs"]
        assert (listed["spent"], listed["open"]) == ("0.003", "0")
        assert "answered   fast" in farebox("show", listed["run"]).stdout


async def test_who_stops_a_run_is_told_how_to_go_on_with_it(
    built: Town, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.err, "width", 200)
    release = hold(built.sellers["only"])
    async with built.delegating() as delegator:
        delegation = delegator.begin(order(plan_of("a", a=("add 3", []))))
        async with contextlib.aclosing(delegation.events()) as events:
            followed = asyncio.create_task(commands._followed(delegation, events))
            await asyncio.to_thread(eventually, lambda: built.shown["only"], "a payment was shown")
            followed.cancel()
            with pytest.raises(asyncio.CancelledError):
                await followed
        release()
    assert f"`farebox delegate resume {delegation.id}` goes on with it" in capsys.readouterr().err


def test_on_a_terminal_a_tree_shows_state_seller_price_and_time(
    built: Town, farebox: Farebox, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(live, "err", screen)
    assert farebox("run", "--plan", plan, "--budget", "0.05").exit_code == 0
    assert isinstance(screen.file, io.StringIO)
    last = screen.file.getvalue().rpartition("0.003 of 0.05 spent")[2]
    assert "✓ all  model@only at only  0.001  " in last
    assert last.index("✓ all") < last.index("✓ a  ")


def test_the_schema_of_a_plan_is_what_plans_are_checked_by(free: Farebox, plan: str) -> None:
    schema = json.loads(free("plan", "--schema").stdout)
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"version", "nodes", "output"}
    assert "3 nodes, the answer is all" in free("plan", plan).stdout
