"""An account that never sent a transaction pays through Permit2: it signs the approval, and the settler submits it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from gateway.cli import app as farebox
from tests.interop.buyers import Buyers
from tests.interop.cells import Client, Rail, Server, Settlement, Stall
from tests.interop.goods import CHAT, chat, price_atomic
from tests.interop.meeting import meet
from tests.interop.sellers import open_stall
from tests.interop.street import Street

OURS = Stall(Server.MIDDLEWARE, Settlement.ENGINE, Rail.PERMIT2)
OFFICIAL_WITH_OUR_FACILITATOR = Stall(Server.FASTAPI, Settlement.OURS, Rail.PERMIT2)


@pytest.mark.parametrize("stall", [OURS, OFFICIAL_WITH_OUR_FACILITATOR], ids=lambda stall: stall.slug)
@pytest.mark.parametrize("client", [Client.PYTHON, Client.FETCH])
def test_an_official_client_pays_without_an_approval_and_without_gas(
    street: Street, client: Client, stall: Stall
) -> None:
    with Buyers(street, read_chain=True) as buyers, open_stall(street, stall) as opened:
        meet(street, buyers, client, opened, approved=False)


@pytest.mark.parametrize("settlement", [Settlement.OURS, Settlement.OFFICIAL])
def test_farebox_pay_pays_an_official_server_without_an_approval_and_without_gas(
    street: Street, settlement: Settlement
) -> None:
    payer = street.payer(Rail.PERMIT2, approved=False)
    with open_stall(street, Stall(Server.FASTAPI, settlement, Rail.PERMIT2)) as opened:
        wallet = ["--signer", f"keyfile:{street.key_file(payer)}", "--rpc", street.chain.rpc_url]
        words = ["pay", opened.url + CHAT, "--data", json.dumps(chat()), "--max-price", "0.001", *wallet, "--json"]
        done = CliRunner().invoke(farebox, words, env={"FAREBOX_HOME": str(street.folder_of("home") / "pool")})
        assert done.exit_code == 0, done.output
        assert street.chain.balance_of(opened.pay_to, opened.token) == price_atomic(Rail.PERMIT2)


@pytest.mark.parametrize("client", [Client.PYTHON, Client.FETCH])
def test_a_client_that_does_not_look_at_the_chain_is_told_what_is_missing(
    street: Street, buyers: Buyers, client: Client
) -> None:
    payer = street.payer(Rail.PERMIT2, approved=False)
    with open_stall(street, OURS) as opened:
        bought = buyers.open(client, opened, payer).buy(chat(), None)
    assert bought.status == 412
    assert "permit2_allowance_required" in bought.body
    assert street.chain.balance_of(opened.pay_to, opened.token) == 0
