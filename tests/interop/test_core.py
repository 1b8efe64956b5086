"""A core of the matrix: every rail at every server, and between them every client and every way to settle.

The whole of it is `make test-interop`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from contracts.evm.devnet import Devnet
from tests.conformance.sdk_peers import serving
from tests.interop.buyers import Buyers
from tests.interop.cells import Cell, Client, Rail, Server, Settlement, Stall, cells, impossible
from tests.interop.goods import chat
from tests.interop.meeting import check_unpaid, meet, streams_live
from tests.interop.sellers import open_stall
from tests.interop.street import Street

OFFICIAL_SERVERS = [server for server in Server if not server.is_ours]


def core() -> list[Cell]:
    """Return a cell for each rail at each server, whose client and settlement change from one to the next."""
    chosen = []
    for number, (rail, server) in enumerate((rail, server) for rail in Rail for server in Server):
        settlements = [each for each in Settlement if impossible(Stall(server, each, rail)) is None]
        settlement = settlements[number % len(settlements)]
        chosen.append(Cell(list(Client)[number % len(Client)], Stall(server, settlement, rail)))
    return chosen


def test_the_core_leaves_out_nobody() -> None:
    met = core()
    assert {cell.client for cell in met} == set(Client)
    assert {(cell.stall.server, cell.stall.rail) for cell in met} == {(s, r) for s in Server for r in Rail}
    assert {(cell.client, cell.stall.rail) for cell in met} == {(c, r) for c in Client for r in Rail}
    assert {cell.stall.settlement for cell in met} == set(Settlement)
    assert set(met) <= set(cells())


@pytest.mark.parametrize("cell", core(), ids=lambda cell: cell.name)
def test_a_client_gets_what_it_pays_for(street: Street, buyers: Buyers, cell: Cell) -> None:
    with open_stall(street, cell.stall) as opened:
        check_unpaid(street, opened)
        meet(street, buyers, cell.client, opened)


@pytest.mark.parametrize("server", OFFICIAL_SERVERS)
def test_an_official_server_holds_a_stream_back_until_it_is_settled(
    street: Street, buyers: Buyers, server: Server
) -> None:
    with open_stall(street, Stall(server, Settlement.OFFICIAL, Rail.EIP3009)) as opened:
        assert not streams_live(street, buyers, opened)


@pytest.mark.parametrize("server", OFFICIAL_SERVERS)
def test_an_official_server_settles_through_a_facilitator_or_not_at_all(
    devnet: Devnet, no_proxy: None, tmp_path: Path, server: Server
) -> None:
    asked: list[str] = []

    async def supported(_: Request) -> Response:
        kinds = [{"x402Version": 2, "scheme": "exact", "network": devnet.network}]
        return JSONResponse({"kinds": kinds, "extensions": [], "signers": {}})

    async def fail(request: Request) -> Response:
        asked.append(request.url.path)
        return Response(status_code=503)

    failing = [Route(f"/{name}", fail, methods=["POST"]) for name in ("verify", "settle")]
    with (
        serving(Starlette(routes=[Route("/supported", supported), *failing])) as url,
        Street(tmp_path, devnet, official_facilitator=url) as street,
        Buyers(street) as buyers,
        open_stall(street, Stall(server, Settlement.OFFICIAL, Rail.EIP3009)) as opened,
    ):
        bought = buyers.open(Client.PYTHON, opened, street.payer(Rail.EIP3009)).buy(chat(), None)
    assert asked == ["/verify"]
    assert bought.status != 200
    assert devnet.balance_of(opened.pay_to) == 0


def test_every_reason_why_a_cell_cannot_be_is_about_official_servers_without_a_facilitator() -> None:
    assert {cell.stall for cell in cells() if impossible(cell.stall)} == {
        Stall(server, Settlement.ENGINE, rail) for server in OFFICIAL_SERVERS for rail in Rail
    }
